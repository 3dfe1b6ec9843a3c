//! Growing an image, also while it is in use: its clients learn of it by their watch.

use super::store::Store;
use crate::size::grown;
use crate::{CapacityRange, Ctx, ExpandOutcome, Result, VolumeId};

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let (site, found) = self.volume(id, ctx.secrets())?;
        let has = found.header.size;
        let wanted = grown(id, range, has)?;
        if wanted > has {
            ctx.stage("growing");
            let image = site.open(&found.header.image)?;
            image.grow(wanted).map_err(|e| site.fail(&format!("growing {}", found.handle.spec()), e))?;
            tracing::info!(volume = %id, from = has, to = wanted, "grown");
        }
        Ok(ExpandOutcome { capacity: wanted, node_expansion_required: true })
    }
}
