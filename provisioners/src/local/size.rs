//! Sizes: the smallest for each use, and whether there is room.

use std::path::Path;

use rustix::fs::statvfs;

use super::config::Reserve;
use super::layout::failed;
use super::params::VolumeType;
pub(super) use crate::size::{MIB, decide, decide_for_source, round_up};
use crate::{Error, Result, size};

/// The smallest volume for a use, in bytes, and what it is the smallest for.
pub(super) fn minimum(kind: VolumeType, block: bool, fs_type: Option<&str>) -> (u64, &'static str) {
    match (kind, block) {
        (VolumeType::Directory, _) => (MIB, "a directory"),
        (VolumeType::File, true) => size::file_system_minimum(None),
        (VolumeType::File, false) => size::file_system_minimum(fs_type.or(Some("ext4"))),
    }
}

/// The room in a file system, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) free: u64,
    pub(super) reserve: u64,
}

impl Space {
    /// The room where `path` is.
    pub(super) fn of(path: &Path, reserve: Reserve) -> Result<Self> {
        let stat = statvfs(path).map_err(|e| failed("asking for free space of", path, e.into()))?;
        Ok(Self {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            reserve: reserve.bytes(stat.f_blocks.saturating_mul(stat.f_frsize)),
        })
    }

    /// What volumes may take.
    pub(super) fn available(self) -> u64 {
        self.free.saturating_sub(self.reserve)
    }

    /// Refuses what could never be filled: [`Error::Exhausted`].
    pub(super) fn check(self, asked: u64, path: &Path) -> Result<()> {
        if asked <= self.available() {
            return Ok(());
        }
        Err(Error::Exhausted(format!(
            "{}: {asked} bytes asked, {} bytes free of which {} are kept in reserve; delete what is not needed or use another root",
            path.display(),
            self.free,
            self.reserve
        )))
    }
}
