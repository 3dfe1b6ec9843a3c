//! ControllerExpandVolume: the size is noted. NFS enforces none.

use super::store::Store;
use crate::size::grown;
use crate::{CapacityRange, Ctx, ExpandOutcome, Result, VolumeId};

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        ctx.stage("noting the size");
        let mut found = self.volume(id)?;
        let before = found.record.capacity;
        found.change(|record| {
            let wanted = grown(id, range, record.capacity)?;
            let grows = wanted > record.capacity;
            record.capacity = wanted;
            Ok(grows)
        })?;
        let capacity = found.record.capacity;
        if capacity > before {
            self.usages.forget(&id.0);
            tracing::info!(volume = %id, from = before, to = capacity, "grown");
        }
        Ok(ExpandOutcome { capacity, node_expansion_required: false })
    }
}
