//! What a node does before it serves calls: clearing up after a predecessor that was killed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use provisioners::{Error, Result};

use super::{Host, freeze, loopdev, users};

impl Host {
    /// Clears up after a predecessor that was killed: thaws what it left frozen, detaches its loop devices whose backing
    /// file is gone. Returns what it did, and what it could not do.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut done = freeze::recover(&self.state)?;
        done.extend(self.rbd.recover()?);
        done.extend(self.detach_orphans()?);
        Ok(done)
    }

    /// A device is ours if it has this node's label, which the kernel keeps with it and no other program gives; its file
    /// must have been on a file system of a configured root, and nobody, in whatever mount name space, may use it.
    fn detach_orphans(&self) -> Result<Vec<String>> {
        let Some(label) = self.known_label()? else { return Ok(Vec::new()) };
        let file_systems: Vec<_> =
            self.volume_roots.iter().filter_map(|root| Some(fs::metadata(root).ok()?.dev())).collect();
        let mut done = Vec::new();
        for it in loopdev::orphans(&label, &file_systems)? {
            let (device, file) = (it.device.display(), it.shown.display());
            let users = users::of(&it.device)?;
            if users.is_empty() {
                loopdev::detach(&it.device, || Ok(loopdev::attached(&it.device)?.as_ref() == Some(&it)))?;
                done.push(format!("detached {device}: its file {file} is gone"));
            } else {
                done.push(format!("left {device} alone, whose file {file} is gone: {}", users.join(", ")));
            }
        }
        Ok(done)
    }

    /// What this node's loop devices are labelled with. Where no id can be written down, the label names no node, and
    /// such a device is never detached by [`Host::recover`].
    pub(super) fn label(&self) -> String {
        let label = match self.known_label() {
            Ok(None) => self.make_label(),
            Ok(Some(label)) => Ok(label),
            Err(error) => Err(error),
        };
        label.unwrap_or_else(|error| {
            tracing::warn!(%error, "loop devices are attached without this node's label");
            loopdev::OURS.into()
        })
    }

    fn known_label(&self) -> Result<Option<String>> {
        let path = self.state.join("instance");
        match fs::read_to_string(&path) {
            Ok(id) if uuid::Uuid::parse_str(id.trim()).is_ok() => Ok(Some(labelled(&id))),
            Ok(id) => Err(Error::Corrupt {
                what: path.display().to_string(),
                problem: format!("{id:?} is not a UUID; remove the file"),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("reading {}", path.display()), error)),
        }
    }

    /// Writes an id down, or takes that of another process that was faster.
    fn make_label(&self) -> Result<String> {
        let (path, id) = (self.state.join("instance"), uuid::Uuid::new_v4().to_string());
        let doing = |e| Error::io(format!("writing {}", path.display()), e);
        let temporary = self.state.join(format!(".instance.{id}"));
        fs::create_dir_all(&self.state).map_err(doing)?;
        let linked = fs::write(&temporary, &id).and_then(|()| link(&temporary, &path));
        let _ = fs::remove_file(&temporary);
        linked.map_err(doing)?;
        self.known_label()?.ok_or_else(|| Error::Internal(format!("{} is not there", path.display())))
    }
}

fn labelled(id: &str) -> String {
    format!("{}{}", loopdev::OURS, id.trim())
}

/// link(2): replaces nothing.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}
