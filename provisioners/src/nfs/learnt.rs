//! Shares that only classes and handles name (`anyShare`): noted once a server has answered for one, so that the next
//! process finds its volumes and its trash again. The note is a file in the state directory, and one on each configured
//! share (`.volumectl/shares/`), for a controller often has no disk of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::client::found;
use super::config::{check_path, check_server};
use super::handle::ShareId;
use super::identity::hex;
use super::pool::lock;
use super::share::{OWN, Share, Told};
use super::store::Store;
use crate::record::{decode, encode, kind};
use crate::{Error, Result};

/// The directory of the notes on a configured share.
const SHARES: &[u8] = b"shares";

/// A note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ShareNote {
    /// `<server>#<path>`.
    id: String,
    server: String,
    path: String,
}

kind!(ShareNote, "Share");

fn file_of(id: &ShareId) -> String {
    format!("{}.json", hex(&Sha256::digest(id.to_string().as_bytes())[..16]))
}

impl Store {
    fn notes(&self) -> Option<PathBuf> {
        self.config.state.as_ref().map(|state| state.join("nfs-shares"))
    }

    /// Notes a share that was found to exist, once in a process.
    pub(super) fn learn(&self, share: &Arc<Share>) {
        let ShareId::Direct(server, path) = &share.id else { return };
        if !share.begin_note() {
            return;
        }
        let note = ShareNote { id: share.id.to_string(), server: server.clone(), path: path.clone() };
        let (name, Ok(content)) = (file_of(&share.id), encode(&note)) else { return };
        let mut kept = Vec::new();
        if let Some(dir) = self.notes() {
            kept.push(write(&dir, &name, &content));
        }
        for home in self.shares().iter().filter(|home| home.configured && home.is_down().is_none()) {
            kept.push(note_on(home, &name, &content));
        }
        for error in kept.iter().filter_map(|kept| kept.as_ref().err()) {
            tracing::warn!(share = %share.id, %error, "noting a share");
        }
        if !kept.iter().any(Result::is_ok) {
            tracing::warn!(share = %share.id, "it is known until the restart only; make stateDir last, or configure a share");
            share.note_again();
        }
    }

    /// Takes up the shares that the state directory knows.
    pub(super) fn recall(&self) {
        let Some(dir) = self.notes().filter(|_| self.config.any_share) else { return };
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let read = fs::read(&path).map_err(|e| Error::io(format!("reading {}", path.display()), e));
            self.take_up(read.and_then(|content| decode(&path.display().to_string(), &content)));
        }
    }

    /// Takes up the shares that a configured one knows.
    pub(super) fn recall_from(&self, home: &Share) -> Result<()> {
        if !self.config.any_share || !home.configured {
            return Ok(());
        }
        let doing = "looking for shares that classes have named";
        let dir = home.with_own(|own| {
            let Some(top) = home.look(&own.root, OWN.as_bytes())? else { return Ok(None) };
            home.look(&top.fh, SHARES)
        });
        let Some(dir) = dir.told(home, doing)? else { return Ok(()) };
        for entry in home.entries(&dir.fh).told(home, doing)? {
            if lock(&self.shares).values().any(|share| file_of(&share.id).as_bytes() == entry.name) {
                continue;
            }
            let what = format!("{}/{OWN}/shares/{}", home.place(), String::from_utf8_lossy(&entry.name));
            if let Some((_, content)) = home.get(&dir.fh, &entry.name).told(home, doing)? {
                self.take_up(decode(&what, &content));
            }
        }
        Ok(())
    }

    fn take_up(&self, note: Result<ShareNote>) {
        let good =
            |note: &ShareNote| check_server(&note.server).and_then(|()| check_path(&note.path)).is_ok();
        match note {
            Ok(note) if good(&note) => {
                if let Ok(share) = self.share(&ShareId::Direct(note.server, note.path)) {
                    share.take_for_known();
                }
            }
            Ok(note) => tracing::warn!(id = note.id, "a note of a share that cannot be one is left alone"),
            Err(error) => tracing::warn!(%error, "a note of a share is left alone"),
        }
    }
}

fn note_on(home: &Share, name: &str, content: &[u8]) -> Result<()> {
    let note = home.with_own(|own| {
        let Some(top) = home.look(&own.root, OWN.as_bytes())? else { return Ok(()) };
        let dir = home.ensure(&top.fh, SHARES)?;
        match found(home.ask(|s| s.lookup(&dir, name.as_bytes())))? {
            Some(_) => Ok(()),
            None => home.replace(own, &dir, name.as_bytes(), content),
        }
    });
    note.told(home, "noting a share")
}

/// Writes a file that is there whole or not at all.
fn write(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let write = || {
        fs::create_dir_all(dir)?;
        let mut draft = tempfile_in(dir)?;
        std::io::Write::write_all(&mut draft.1, content)?;
        draft.1.sync_all()?;
        fs::rename(&draft.0, &path)
    };
    if path.exists() {
        return Ok(());
    }
    write().map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

/// A new file of our own, which [`Store::recall`] does not read.
fn tempfile_in(dir: &Path) -> std::io::Result<(PathBuf, fs::File)> {
    let path = dir.join(format!(".{}", super::share::draft_name()));
    let file = fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    Ok((path, file))
}
