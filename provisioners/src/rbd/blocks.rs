//! Which blocks of a snapshot hold data, and which differ from an earlier one: told by the object map where the image
//! has it, else by asking for every object.

use super::ffi::Image;
use super::handle::parse_handle;
use super::record::SnapshotRecord;
use super::site::Site;
use super::store::Store;
use crate::{Ctx, Error, Result, SnapshotId};

/// Two snapshots of one image that are compared; or one with nothing.
pub(super) struct Compared {
    site: Site,
    image: Image,
    base: Option<String>,
    /// Bytes of the later one.
    pub(super) capacity: u64,
}

impl Store {
    /// Finds the snapshots of a comparison.
    pub(super) fn compared(
        &self,
        ctx: &Ctx,
        base: Option<&SnapshotId>,
        target: &SnapshotId,
    ) -> Result<Compared> {
        let (site, record) = self.snapshot_of(ctx, target)?;
        let base = match base {
            None => None,
            Some(id) => {
                let (_, base) = self.snapshot_of(ctx, id)?;
                if base.image != record.image {
                    let problem = format!("{id} is of volume {}, {target} of {}", base.source, record.source);
                    return Err(Error::invalid("base_snapshot_id", problem));
                }
                if base.created > record.created {
                    let problem = format!("{id} was taken after {target}; give the earlier one as base");
                    return Err(Error::invalid("base_snapshot_id", problem));
                }
                Some(base.snapshot)
            }
        };
        let image = Image::look(&site.pool, &record.image, Some(&record.snapshot));
        let image = image.map_err(|e| site.fail(&format!("opening snapshot {target}"), e))?;
        Ok(Compared { site, image, base, capacity: record.size })
    }

    fn snapshot_of(&self, ctx: &Ctx, id: &SnapshotId) -> Result<(Site, SnapshotRecord)> {
        let handle =
            parse_handle(&id.0).map_err(|_| Error::NotFound(format!("there is no snapshot {id}")))?;
        let site = self.site(&handle.place, ctx.secrets())?;
        let record = Self::snapshot_at(&site, &handle)?;
        Ok((site, record))
    }
}

impl Compared {
    /// Tells every range from a byte on; neighbours are joined. `each` ends it by `false`.
    pub(super) fn stream(&self, from: u64, mut each: impl FnMut(u64, u64) -> bool) -> Result<()> {
        let mut open: Option<(u64, u64)> = None;
        let mut wanted = true;
        let range = (from, self.capacity - from);
        let told = self.image.diff(self.base.as_deref(), range, true, |offset, size, exists| {
            // What is gone since the base has changed, too; without a base it is not there.
            if !exists && self.base.is_none() {
                return true;
            }
            match &mut open {
                Some((start, length)) if *start + *length == offset => *length += size,
                _ => wanted = open.replace((offset, size)).is_none_or(|(start, length)| each(start, length)),
            }
            wanted
        });
        told.map_err(|e| self.site.fail("comparing snapshots", e))?;
        if let (Some((start, length)), true) = (open, wanted) {
            each(start, length);
        }
        Ok(())
    }
}
