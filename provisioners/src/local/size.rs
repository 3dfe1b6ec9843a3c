//! Sizes: what a volume gets for what was asked, and whether there is room for it.

use std::path::Path;

use rustix::fs::statvfs;

use super::config::Reserve;
use super::layout::failed;
use super::params::VolumeType;
use crate::{CapacityRange, Error, Result};

/// Volumes are whole multiples of this: 1 MiB.
pub(super) const MIB: u64 = 1 << 20;

/// The smallest volume for a use, in bytes, and what it is the smallest for.
///
/// mkfs.xfs refuses less than 300 MB and mkfs.btrfs less than about 109 MiB; ext4 has no journal below 8 MiB.
pub(super) fn minimum(kind: VolumeType, block: bool, fs_type: Option<&str>) -> (u64, &'static str) {
    match (kind, block, fs_type) {
        (VolumeType::Directory, ..) => (MIB, "a directory"),
        (VolumeType::File, true, _) => (MIB, "a block device"),
        (VolumeType::File, false, Some("xfs")) => (300 * MIB, "xfs"),
        (VolumeType::File, false, Some("btrfs")) => (128 * MIB, "btrfs"),
        (VolumeType::File, false, _) => (16 * MIB, "ext4"),
    }
}

/// The size for a range: what is required, or else `default` (or the limit, if that is smaller), but not less than
/// the minimum, in whole MiB. What the limit forbids: [`Error::OutOfRange`].
pub(super) fn decide(range: CapacityRange, default: u64, minimum: (u64, &str)) -> Result<u64> {
    if range.limit != 0 && range.limit < minimum.0 {
        return Err(Error::OutOfRange(format!(
            "capacity_range.limit_bytes: {} is less than {} bytes, the minimum for {}; ask for more",
            range.limit, minimum.0, minimum.1
        )));
    }
    let wish = match (range.required, range.limit) {
        (0, 0) => default,
        (0, limit) => default.min(limit - limit % MIB),
        (required, _) => required,
    };
    let size = round_up(wish.max(minimum.0))?;
    if range.limit != 0 && size > range.limit {
        return Err(Error::OutOfRange(format!(
            "capacity_range: sizes are multiples of 1 MiB, so the next is {size} bytes, over the limit of {}; raise the limit",
            range.limit
        )));
    }
    Ok(size)
}

/// The next multiple of 1 MiB. More than CSI can say (`i64`): [`Error::OutOfRange`].
pub(super) fn round_up(bytes: u64) -> Result<u64> {
    let rounded = bytes.checked_next_multiple_of(MIB).filter(|size| i64::try_from(*size).is_ok());
    rounded.ok_or_else(|| {
        Error::OutOfRange(format!(
            "capacity_range: {bytes} bytes is more than any volume can have; ask for less"
        ))
    })
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
