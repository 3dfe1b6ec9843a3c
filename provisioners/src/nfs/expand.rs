//! ControllerExpandVolume: the size is noted. NFS enforces none.

use super::store::Store;
use crate::size::round_up;
use crate::{CapacityRange, Ctx, Error, ExpandOutcome, Result, VolumeId};

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        ctx.stage("noting the size");
        let mut found = self.volume(id)?;
        let has = found.record.capacity;
        if range.limit != 0 && has > range.limit {
            return Err(Error::OutOfRange(format!(
                "capacity_range.limit_bytes: volume {id} has {has} bytes already, more than {}; it is never shrunk",
                range.limit
            )));
        }
        let wanted = round_up(range.required)?;
        if range.limit != 0 && wanted > range.limit {
            return Err(Error::OutOfRange(format!(
                "capacity_range: sizes are multiples of 1 MiB, so the next is {wanted} bytes, over the limit of {}; raise the limit",
                range.limit
            )));
        }
        if wanted > has {
            found.record.capacity = wanted;
            found.save(&found.record)?;
            self.usages.forget(&id.0);
            tracing::info!(volume = %id, from = has, to = wanted, "grown");
        }
        Ok(ExpandOutcome { capacity: wanted.max(has), node_expansion_required: false })
    }
}
