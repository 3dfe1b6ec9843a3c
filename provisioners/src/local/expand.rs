//! Growing a volume. Interrupted between two steps, it is completed by the next call.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::create::allocate;
use super::layout::failed;
use super::lease::{Lease, Sharing};
use super::params::VolumeType;
use super::size::{Space, round_up};
use super::store::{Found, Store};
use crate::{CapacityRange, Ctx, Error, ExpandOutcome, Result, VolumeId};

impl Store {
    /// Grows a volume to the range; never shrinks it.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let found = self.volume(id)?;
        let _lease = match found.record.kind {
            VolumeType::File => Some(Lease::take(ctx, &found.data(), Sharing::Alone)?),
            // Of a directory only the record changes.
            VolumeType::Directory => None,
        };
        let length = found.whole()?;
        let capacity = target(range, length.max(found.record.capacity))?;
        if found.record.kind == VolumeType::File && capacity > length {
            ctx.stage("growing the file");
            self.grow(&found, length, capacity)?;
        }
        if capacity != found.record.capacity {
            found.update(|record| {
                record.capacity = capacity;
                Ok(true)
            })?;
            tracing::info!(volume = %found.handle, capacity, "grown");
        }
        if found.record.kind == VolumeType::File {
            self.host.grown(&found.data())?;
        }
        Ok(ExpandOutcome {
            capacity,
            node_expansion_required: found.record.kind == VolumeType::File && !found.record.block,
        })
    }

    fn grow(&self, found: &Found<'_>, length: u64, capacity: u64) -> Result<()> {
        let path = found.data();
        let file = OpenOptions::new().write(true).open(&path).map_err(|e| failed("opening", &path, e))?;
        let allocated = file.metadata().map_err(|e| failed("looking at", &path, e))?.blocks() * 512;
        let space = Space::of(&found.root.path, self.config.reserve)?;
        space.check(capacity.saturating_sub(allocated), &found.root.path)?;
        if self.params_of(&found.record)?.thick {
            let allocated = allocate(&file, &path, length, capacity - length);
            take_back(&file, &path, length, allocated)?;
        } else {
            file.set_len(capacity).map_err(|e| failed("setting the length of", &path, e))?;
        }
        file.sync_all().map_err(|e| failed("syncing", &path, e))
    }
}

/// After a failed allocation, gives back what it did get: nobody knows yet that the file grew.
fn take_back(file: &File, path: &Path, length: u64, allocated: Result<()>) -> Result<()> {
    if allocated.is_err() {
        file.set_len(length).map_err(|e| failed("setting the length of", path, e))?;
    }
    allocated
}

/// The size to grow to from `current`.
fn target(range: CapacityRange, current: u64) -> Result<u64> {
    let capacity = if range.required > current { round_up(range.required)? } else { current };
    if range.limit == 0 || capacity <= range.limit {
        return Ok(capacity);
    }
    Err(Error::OutOfRange(format!(
        "capacity_range.limit_bytes: {}, but the volume has {current} bytes and would get {capacity} (sizes are multiples of 1 MiB, and volumes never shrink); raise the limit",
        range.limit
    )))
}
