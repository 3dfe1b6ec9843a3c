//! What the local backend asks of the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use provisioners::local::{LocalHost, Quiesced};
use provisioners::{Error, Result};

use super::mountinfo::Mount;
use super::{Host, device, freeze, loopdev, mounts};

impl LocalHost for Host {
    fn release(&self, data: &Path) -> Result<Vec<String>> {
        if data.is_dir() {
            return bound_directory(data);
        }
        let Some(device) = loopdev::find(data)? else { return Ok(Vec::new()) };
        let users = device_users(&device)?;
        if users.is_empty() {
            loopdev::detach(&device)?;
        }
        Ok(users)
    }

    fn quiesce(&self, data: &[PathBuf], limit: Duration) -> Result<Box<dyn Quiesced>> {
        let mut targets = Vec::new();
        for file in data.iter().filter(|f| f.is_file()) {
            let Some(device) = loopdev::find(file)? else {
                continue;
            };
            if let Some(target) = device::binds(&device)?.first() {
                return Err(Error::Refused(format!(
                    "{} is published as a raw block device at {}, so what is written to it cannot be made to stand \
                     still; unpublish it, or keep it on a file system with reflinks (xfs, btrfs)",
                    file.display(),
                    target.display()
                )));
            }
            // One mount point freezes the whole file system; a read-only one has nothing to freeze.
            targets.extend(
                device::mounts(&device)?
                    .into_iter()
                    .find(|m| !m.is_super_read_only())
                    .map(|m| m.target.into_owned()),
            );
        }
        if targets.is_empty() {
            return Ok(Box::new(freeze::Still));
        }
        Ok(Box::new(freeze::freeze(&self.tools, &self.state, &targets, limit)?))
    }

    fn grown(&self, data: &Path) -> Result<()> {
        match loopdev::find(data)? {
            Some(device) => loopdev::grow(&device),
            None => Ok(()),
        }
    }
}

/// Where a device's file system is mounted, where its node is published, else who has it open.
fn device_users(device: &Path) -> Result<Vec<String>> {
    let name = device.display();
    let mounted =
        device::mounts(device)?.into_iter().map(|m| format!("{name} mounted on {}", m.target.display()));
    let bound = device::binds(device)?.into_iter().map(|t| format!("{name} published at {}", t.display()));
    let users: Vec<_> = mounted.chain(bound).collect();
    if !users.is_empty() {
        return Ok(users);
    }
    Ok(mounts::open_below(device, 3).iter().map(|who| format!("{name} open by {who}")).collect())
}

/// Bind mounts of a directory, or of one below it: read from mountinfo alone, so a dead server elsewhere cannot hang
/// the question.
fn bound_directory(data: &Path) -> Result<Vec<String>> {
    let data = data.canonicalize().map_err(|e| Error::io(format!("looking at {}", data.display()), e))?;
    let homes = mounts::select(|m| data.starts_with(&m.target))?;
    let home = homes.iter().max_by_key(|m| (m.target.as_os_str().len(), m.id));
    let Some(home) = home else { return Ok(Vec::new()) };
    let within = home.root.join(data.strip_prefix(&home.target).unwrap_or(Path::new("")));
    let uses =
        |m: &Mount<'_>| m.device == home.device && m.root.starts_with(&within) && m.target != home.target;
    Ok(mounts::select(uses)?.iter().map(|m| format!("mounted on {}", m.target.display())).collect())
}
