//! What the local backend asks of the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use provisioners::local::{LocalHost, Quiesced};
use provisioners::{Error, Result};

use super::mountinfo::Mount;
use super::{Host, device, freeze, loopdev, mounts, users};

impl LocalHost for Host {
    fn release(&self, data: &Path) -> Result<Vec<String>> {
        if data.is_dir() {
            return bound_directory(data);
        }
        let Some(device) = loopdev::find(data)? else { return Ok(Vec::new()) };
        let users: Vec<_> =
            users::of(&device)?.into_iter().map(|user| format!("{} {user}", device.display())).collect();
        if users.is_empty() {
            loopdev::detach(&device, || Ok(loopdev::find(data)?.as_ref() == Some(&device)))?;
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
            let mounted = device::mounts(&device)?;
            // All processes are looked at, so only where that decides.
            if mounted.is_empty()
                && let Some(user) = users::of(&device)?.first()
            {
                return Err(Error::Refused(format!(
                    "{} is attached as {} and {user}, where what is written to it cannot be made to stand still; end that and repeat the call",
                    file.display(),
                    device.display()
                )));
            }
            targets.extend(mounted.into_iter().find(|m| !m.is_super_read_only()));
        }
        if targets.is_empty() {
            return Ok(Box::new(freeze::Still));
        }
        Ok(Box::new(self.freezer().freeze(&targets, limit)?))
    }

    fn activity(&self, data: &Path) -> Result<String> {
        let Some(device) = loopdev::find(data)? else { return Ok("not attached".into()) };
        let it = loopdev::attached(&device)?;
        let written = device::written(&device)?;
        Ok(format!("{} {:?} {written:?}", device.display(), it.map(|it| it.sequence)))
    }

    fn grown(&self, data: &Path) -> Result<()> {
        match loopdev::find(data)? {
            Some(device) => loopdev::grow(&device),
            None => Ok(()),
        }
    }
}

impl Host {
    pub(super) fn freezer(&self) -> freeze::Freezer<'_> {
        let (helper, outside, state) = (&*self.helper, &self.outside, &*self.state);
        freeze::Freezer { helper, outside, state, patience: freeze::FREEZES }
    }
}

/// Bind mounts of a directory, or of one below it: read from mountinfo alone, so a dead server elsewhere cannot hang
/// the question.
fn bound_directory(data: &Path) -> Result<Vec<String>> {
    let data = data.canonicalize().map_err(|e| Error::io(format!("looking at {}", data.display()), e))?;
    let homes = mounts::select(|m| data.starts_with(&m.target))?;
    let home = homes.iter().max_by_key(|m| (m.target.as_os_str().len(), m.id));
    let Some(home) = home else { return Ok(Vec::new()) };
    let within = home.root.join(data.strip_prefix(&home.target).unwrap_or(Path::new("")));
    let below = |m: &Mount<'_>| m.device == home.device && m.root.starts_with(&within);
    let here = mounts::select(|m| below(m) && m.target != home.target)?;
    if here.is_empty() {
        // Other name spaces have mounts of the root, too.
        return users::mounted_elsewhere(|m| below(m) && m.root != home.root);
    }
    Ok(here.iter().map(|m| format!("mounted on {}", m.target.display())).collect())
}
