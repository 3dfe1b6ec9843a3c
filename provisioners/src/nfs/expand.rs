//! ControllerExpandVolume: the size is noted. NFS enforces none.

use super::store::Store;
use crate::size::grown;
use crate::{CapacityRange, Ctx, ExpandOutcome, Result, VolumeId};

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        ctx.stage("noting the size");
        let mut found = self.volume(id)?;
        let has = found.record.capacity;
        let wanted = grown(id, range, has)?;
        if wanted > has {
            found.record.capacity = wanted;
            found.save(&found.record)?;
            self.usages.forget(&id.0);
            tracing::info!(volume = %id, from = has, to = wanted, "grown");
        }
        Ok(ExpandOutcome { capacity: wanted, node_expansion_required: false })
    }
}
