//! Growing an image, also while it is in use: its clients learn of it by their watch.

use super::store::Store;
use crate::size::round_up;
use crate::{CapacityRange, Ctx, Error, ExpandOutcome, Result, VolumeId};

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let (site, found) = self.volume(id, ctx.secrets())?;
        let has = found.header.size;
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
            ctx.stage("growing");
            let image = site.open(&found.header.image)?;
            image.grow(wanted).map_err(|e| site.fail(&format!("growing {}", found.handle.spec()), e))?;
            tracing::info!(volume = %id, from = has, to = wanted, "grown");
        }
        Ok(ExpandOutcome { capacity: wanted.max(has), node_expansion_required: true })
    }
}
