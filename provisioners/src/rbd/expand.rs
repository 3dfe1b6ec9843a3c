//! Growing an image, also while it is in use: its clients learn of it by their watch.
//!
//! librbd grows the object map first, then the image. When it is killed between the two, the kernel's client does not take
//! the image's lock again ("object map size mismatch"), and the pod's writes fail. So who grows is noted before, and who
//! finds such a note of another does not wait until that one's watch times out, when the kernel would take the lock, too:
//! it fences that client of librbd, which is dead or makes a new connection, and finishes the growth.

use super::fence::blocklist;
use super::record::{Found, GROWING};
use super::site::Site;
use super::store::Store;
use crate::size::grown;
use crate::{CapacityRange, Ctx, Error, ExpandOutcome, Result, VolumeId};

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) fn expand(&self, ctx: &Ctx, id: &VolumeId, range: CapacityRange) -> Result<ExpandOutcome> {
        let (site, found) = self.volume(id, ctx.secrets())?;
        let has = found.header.size;
        let wanted = grown(id, range, has)?;
        if wanted > has {
            ctx.stage("growing");
            grow(&site, &found, wanted)?;
            tracing::info!(volume = %id, from = has, to = wanted, "grown");
        }
        Ok(ExpandOutcome { capacity: wanted, node_expansion_required: true })
    }
}

fn grow(site: &Site, found: &Found, wanted: u64) -> Result<()> {
    let (id, spec) = (&found.header.image, found.handle.spec());
    let own = site.session.connection.address().map_err(|e| site.fail("asking the connection", e))?;
    if let Some(before) = found.header.meta.get(GROWING).filter(|before| **before != own) {
        tracing::warn!(image = %spec, client = %before, "a growth was cut short; its client is fenced");
        match blocklist(site, before, None) {
            // Then its watch times out.
            Err(Error::Denied(why)) => tracing::warn!(%why, "not fenced"),
            other => other?,
        }
    }
    site.update(id, &[(GROWING, own.as_bytes())], &[])?;
    let image = site.open(id)?;
    image.grow(wanted).map_err(|e| site.fail(&format!("growing {spec}"), e))?;
    drop(image);
    site.update(id, &[], &[GROWING])
}
