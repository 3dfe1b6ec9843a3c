//! Sizes: what a volume gets for what was asked.

use crate::{CapacityRange, Error, Result, VolumeId};

/// 1 MiB in bytes.
pub(crate) const MIB: u64 = Unit::MIB.bytes;
/// 1 GiB in bytes.
pub(crate) const GIB: u64 = Unit::GIB.bytes;

/// Volumes are whole multiples of this.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    bytes: u64,
    name: &'static str,
}

impl Unit {
    /// 1 MiB.
    pub(crate) const MIB: Self = Self { bytes: 1 << 20, name: "1 MiB" };
    /// 1 GiB.
    pub(crate) const GIB: Self = Self { bytes: 1 << 30, name: "1 GiB" };
}

/// The smallest volume for a file system (`None`: a raw block device), in bytes, and what it is the smallest for.
///
/// mkfs.xfs refuses less than 300 MB and mkfs.btrfs less than about 109 MiB; ext4 has no journal below 8 MiB.
pub(crate) fn file_system_minimum(fs_type: Option<&str>) -> (u64, &'static str) {
    match fs_type {
        None => (MIB, "a block device"),
        Some("xfs") => (300 * MIB, "xfs"),
        Some("btrfs") => (128 * MIB, "btrfs"),
        Some(_) => (16 * MIB, "ext4"),
    }
}

/// The size for a range: what is required, or else `default` (or the limit, if that is smaller), but not less than
/// the minimum, in whole MiB. What the limit forbids: [`Error::OutOfRange`].
pub(crate) fn decide(range: CapacityRange, default: u64, minimum: (u64, &str)) -> Result<u64> {
    decide_in(Unit::MIB, range, default, minimum)
}

/// [`decide`] in whole multiples of a unit.
pub(crate) fn decide_in(unit: Unit, range: CapacityRange, default: u64, minimum: (u64, &str)) -> Result<u64> {
    if range.limit != 0 && range.limit < minimum.0 {
        return Err(Error::OutOfRange(format!(
            "capacity_range.limit_bytes: {} is less than {} bytes, the minimum for {}; ask for more",
            range.limit, minimum.0, minimum.1
        )));
    }
    let wish = match (range.required, range.limit) {
        (0, 0) => default,
        (0, limit) => default.min(limit - limit % unit.bytes),
        (required, _) => required,
    };
    fit(unit, range, wish.max(minimum.0))
}

/// The next size, if the limit admits it.
fn fit(unit: Unit, range: CapacityRange, bytes: u64) -> Result<u64> {
    let size = round_up_to(unit, bytes)?;
    if range.limit != 0 && size > range.limit {
        return Err(Error::OutOfRange(format!(
            "capacity_range: sizes are multiples of {}, so the next is {size} bytes, over the limit of {}; raise the limit",
            unit.name, range.limit
        )));
    }
    Ok(size)
}

/// The next multiple of 1 MiB. More than CSI can say (`i64`): [`Error::OutOfRange`].
pub(crate) fn round_up(bytes: u64) -> Result<u64> {
    round_up_to(Unit::MIB, bytes)
}

fn round_up_to(unit: Unit, bytes: u64) -> Result<u64> {
    let rounded = bytes.checked_next_multiple_of(unit.bytes).filter(|size| i64::try_from(*size).is_ok());
    rounded.ok_or_else(|| {
        Error::OutOfRange(format!(
            "capacity_range: {bytes} bytes is more than any volume can have; ask for less"
        ))
    })
}

/// The size for a volume that is filled from a source of `source` bytes: at least that. Asked for less:
/// [`Error::OutOfRange`].
pub(crate) fn decide_for_source(range: CapacityRange, source: u64, minimum: (u64, &str)) -> Result<u64> {
    decide_for_source_in(Unit::MIB, range, source, minimum)
}

/// [`decide_for_source`] in whole multiples of a unit.
pub(crate) fn decide_for_source_in(
    unit: Unit,
    range: CapacityRange,
    source: u64,
    minimum: (u64, &str),
) -> Result<u64> {
    let CapacityRange { required, limit } = range;
    let short = |what: &str, bytes: u64| {
        Error::OutOfRange(format!(
            "capacity_range.{what}: {bytes} bytes, but the source has {source}; ask for at least that"
        ))
    };
    if required != 0 && required < source {
        return Err(short("required_bytes", required));
    }
    if limit != 0 && limit < source {
        return Err(short("limit_bytes", limit));
    }
    decide_in(unit, CapacityRange { required: required.max(source), limit }, source, minimum)
}

/// The size that a volume of `has` bytes grows to for a range; never less than it has. What the limit forbids:
/// [`Error::OutOfRange`].
pub(crate) fn grown(id: &VolumeId, range: CapacityRange, has: u64) -> Result<u64> {
    grown_in(Unit::MIB, id, range, has)
}

/// [`grown`] in whole multiples of a unit.
pub(crate) fn grown_in(unit: Unit, id: &VolumeId, range: CapacityRange, has: u64) -> Result<u64> {
    if range.limit != 0 && has > range.limit {
        return Err(Error::OutOfRange(format!(
            "capacity_range.limit_bytes: volume {id} has {has} bytes already, more than {}; it is never shrunk",
            range.limit
        )));
    }
    Ok(fit(unit, range, range.required)?.max(has))
}
