//! Notes of staging paths, for what the mount table does not show: that a path is one, and raw block volumes, of which
//! nothing is mounted there.
//!
//! They keep an unstage from taking away what another staging path needs. Nothing is given up because of a note, and
//! none is needed to give something up: one that is lost lets the first unstage detach a device that nobody uses, who uses
//! it is in the mount table.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use provisioners::{Error, Result, Stored, seal, unseal};
use serde::{Deserialize, Serialize};

use super::attachment::Attachment;
use super::paths::is_absent;
use super::{Host, digest};

/// A raw block volume's note. Of a file system only its path is noted, as it is.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    path: PathBuf,
    /// Whether the path was there: CSI has the caller make it. If it is gone then, the volume is not staged there any more.
    present: bool,
    attachment: Attachment,
}

impl Stored for Note {
    const KIND: &'static str = "Staging";
}

impl Host {
    /// Whether a path is one at which volumes are staged: kubelet's, or one that was noted.
    pub(super) fn is_staging(&self, path: &Path) -> bool {
        self.is_kubelets_staging(path) || self.staging_note(path).exists()
    }

    /// `plugins/kubernetes.io/csi/pv/<volume>/globalmount` up to Kubernetes 1.23,
    /// `plugins/kubernetes.io/csi/<driver>/<digest>/globalmount` since 1.24.
    fn is_kubelets_staging(&self, path: &Path) -> bool {
        let below = self.paths.real_kubelet().join("plugins/kubernetes.io/csi");
        path.starts_with(below) && path.file_name().is_some_and(|name| name == "globalmount")
    }

    fn staging_notes(&self) -> PathBuf {
        self.state.join("staged")
    }

    fn staging_note(&self, path: &Path) -> PathBuf {
        self.staging_notes().join(digest(path.as_os_str().as_encoded_bytes(), 16))
    }

    fn write_staging(&self, note: &Path, content: &[u8]) -> Result<()> {
        fs::create_dir_all(self.staging_notes())
            .and_then(|()| fs::write(note, content))
            .map_err(|e| Error::io(format!("writing {}", note.display()), e))
    }

    /// Notes that a path is one at which volumes are staged, where it does not show that itself.
    pub(super) fn note_staging(&self, path: &Path) -> Result<()> {
        let (note, content) = (self.staging_note(path), path.as_os_str().as_encoded_bytes());
        if self.is_kubelets_staging(path) || fs::read(&note).is_ok_and(|has| has == content) {
            return Ok(());
        }
        self.write_staging(&note, content)
    }

    /// Notes that a device is staged at a path as a raw block volume. Where that cannot be written it is said in the log:
    /// the volume can be used.
    pub(super) fn note_block_staging(&self, path: &Path, device: &Path) -> Result<()> {
        let Some(attachment) = Attachment::of(device)? else { return Ok(()) };
        let note = Note { path: path.to_owned(), present: path.exists(), attachment };
        let content = seal(&note)?;
        if let Err(error) = self.write_staging(&self.staging_note(path), &content) {
            tracing::warn!(path = %path.display(), %error, "the staging path of a raw block volume is not noted");
        }
        Ok(())
    }

    /// The end of a note. Where it cannot be removed, because the directory is read-only or damaged, other notes may be as
    /// old: they say nothing then.
    pub(super) fn forget_staging(&self, path: &Path) -> bool {
        let note = self.staging_note(path);
        match fs::remove_file(&note) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                tracing::warn!(note = %note.display(), %error, "the note of a staging path stays");
                false
            }
            _ => true,
        }
    }

    /// Whether a device is staged somewhere as a raw block volume. Notes of what is over are removed on the way.
    pub(super) fn is_block_staged(&self, device: &Path) -> Result<bool> {
        let Some(now) = Attachment::of(device)? else { return Ok(false) };
        let mut staged = false;
        for entry in fs::read_dir(self.staging_notes()).into_iter().flatten().flatten() {
            let Some(note) = read(&entry.path()) else { continue };
            if !note.attachment.is_now()? || (note.present && is_absent(&note.path).is_ok_and(|gone| gone)) {
                self.forget_staging(&note.path);
            } else if note.attachment == now {
                tracing::info!(device = %device.display(), path = %note.path.display(), "the device stays: it is staged here, too");
                staged = true;
            }
        }
        Ok(staged)
    }
}

/// A raw block volume's note; one that cannot be read keeps nobody from anything.
fn read(path: &Path) -> Option<Note> {
    let content = fs::read(path).ok()?;
    if content.starts_with(b"/") {
        return None;
    }
    unseal(&path.display().to_string(), &content)
        .inspect_err(|error| tracing::warn!(%error, "a note of a staging path cannot be read"))
        .ok()
}
