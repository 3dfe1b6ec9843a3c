//! Whose a path is: a call that names a volume and a path finds that volume there, or nothing.

use std::path::{Path, PathBuf};

use provisioners::{Access, Error, Result};

use super::mountinfo::Mount;
use super::stage::same_file;
use super::{Host, device, loopdev, mounts};

impl Host {
    /// CSI `volume_path`, without symbolic links, if the volume is staged or published there. Any other path, whatever its
    /// form or whoever's volume it shows: [`Error::NotFound`].
    pub fn found_at(&self, id: &str, access: &Access, path: &Path) -> Result<PathBuf> {
        let elsewhere = |why: &str| {
            Error::NotFound(format!("volume_path: volume {id} is not at {}: {why}", path.display()))
        };
        let real = self.paths.resolve("volume_path", path).map_err(|error| match error {
            Error::Invalid { problem, .. } => elsewhere(&problem),
            other => other,
        })?;
        match mounts::on(&real)?.pop() {
            None => Err(elsewhere("nothing is mounted there")),
            Some(mount) if self.shows(access, &mount, &real)? => Ok(real),
            Some(mount) => Err(elsewhere(&format!("{} is mounted there", mount.source.to_string_lossy()))),
        }
    }

    /// Whether a mount shows a volume: its file system, its device's node or its directory.
    fn shows(&self, access: &Access, mount: &Mount<'_>, path: &Path) -> Result<bool> {
        match access {
            Access::Directory { path: dir } => return Ok(same_file(dir, path)),
            // Which directory of a share it is cannot be told without asking the server.
            Access::Nfs(_) => return self.nfs.owns(mount),
            _ => {}
        }
        if let Some(device) = self.device_of(access)?
            && device::is_of(mount, &device, mounts::device_number(&device)?)
        {
            return Ok(true);
        }
        // Its file was removed under it, or its helper has died: that is still this volume, and its condition says so.
        match (access, device::shown_by(mount)) {
            (Access::LoopFile { path: file }, Some(device)) => {
                let removed = loopdev::attached(&device)?.filter(loopdev::Loop::is_deleted);
                Ok(removed.is_some_and(|it| it.path() == *file))
            }
            (Access::Rbd(image), Some(device)) => self.rbd.is_of(image, &device),
            _ => Ok(false),
        }
    }
}
