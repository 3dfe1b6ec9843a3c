//! Where a volume is mounted besides a place: published to somebody, or staged once more.
//!
//! Kubelet's staging path has changed between its versions, and other callers choose theirs as they like, so a volume can
//! be staged at several paths. Those are counted; only what somebody uses is an obstacle.

use std::path::{Path, PathBuf};

use provisioners::Result;

use super::mountinfo::Mount;
use super::{Host, device, mounts};

/// The mounts of a volume elsewhere.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// Targets: somebody uses it there.
    pub published: Vec<PathBuf>,
    /// Targets that kubelet has forgotten.
    pub orphaned: Vec<PathBuf>,
    /// Other staging paths.
    pub staged: Vec<PathBuf>,
    /// The place itself, seen by other paths: kubelet's directory can be mounted more than once in a container.
    pub shadows: Vec<PathBuf>,
}

impl Uses {
    /// Every target, whether kubelet knows of it or not.
    pub fn targets(self) -> impl Iterator<Item = PathBuf> {
        self.published.into_iter().chain(self.orphaned)
    }
}

/// The directory that a mount is on, whatever path leads to it: its file system and the path therein.
type Place = ((u32, u32), PathBuf);

impl Host {
    /// Where a device's file system is mounted or its node is bound, other than `here`.
    pub(super) fn uses_of(&self, device: &Path, here: &[&Path]) -> Result<Uses> {
        let number = mounts::device_number(device)?;
        self.uses(here, |m| device::is_of(m, device, number))
    }

    /// Where what `of` chooses is mounted, other than `here`.
    pub(super) fn uses(&self, here: &[&Path], of: impl Fn(&Mount<'_>) -> bool) -> Result<Uses> {
        let table = mounts::select(|_| true)?;
        let at = |m: &Mount<'_>| here.iter().any(|path| m.target == *path);
        let ours: Vec<_> = table.iter().filter(|m| at(m)).filter_map(|m| place(&table, m)).collect();
        let mut uses = Uses::default();
        let mut found: Vec<(Option<Place>, Vec<PathBuf>)> = Vec::new();
        for mount in table.iter().filter(|m| of(m) && !at(m)) {
            let (place, target) = (place(&table, mount), mount.target.to_path_buf());
            if place.as_ref().is_some_and(|place| ours.contains(place)) {
                uses.shadows.push(target);
                continue;
            }
            match found.iter_mut().find(|(other, _)| place.is_some() && *other == place) {
                Some((_, targets)) => targets.push(target),
                None => found.push((place, vec![target])),
            }
        }
        for (_, mut targets) in found {
            match targets.iter().position(|target| self.is_staging(target)) {
                Some(which) => uses.staged.push(targets.swap_remove(which)),
                None if self.is_any_orphan(&targets)? => uses.orphaned.append(&mut targets),
                None => uses.published.push(targets.swap_remove(0)),
            }
        }
        Ok(uses)
    }

    fn is_any_orphan(&self, targets: &[PathBuf]) -> Result<bool> {
        for target in targets {
            if self.is_orphan(target)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn place(table: &[Mount<'_>], mount: &Mount<'_>) -> Option<Place> {
    let on = table.iter().find(|m| m.id == mount.parent)?;
    let within = mount.target.strip_prefix(&on.target).ok()?;
    Some((on.device, on.dir().join(within)))
}
