//! ControllerModifyVolume: how a dead holder is dealt with, and whether the image still shares data with its source.

use super::params::{DOCS, Mutable};
use super::record::{Found, MODIFIED, Modified, seal};
use super::site::Site;
use super::store::Store;
use crate::parameters::canonical;
use crate::{Ctx, Error, Parameters, Result, StringMap, VolumeId};

impl Mutable {
    /// Reads a VolumeAttributesClass's parameters. One that cannot be changed: [`Error::Invalid`].
    pub(super) fn parse(given: &StringMap) -> Result<Self> {
        let reader = Parameters::mutable(given, &DOCS)?;
        reader.one_of("lockRecovery", &["manual", "auto"])?;
        Ok(Self { flatten: reader.flag("flatten")?.unwrap_or(false) })
    }
}

impl Store {
    /// Sets the mutable parameters.
    pub(super) fn modify(&self, ctx: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        let wish = Mutable::parse(parameters)?;
        let (site, found) = self.volume(id, ctx.secrets())?;
        let before = found.modified()?;
        let mut modified = before.clone();
        modified.extend(canonical(parameters, &DOCS));
        if modified != before {
            let has = found.header.meta.get(MODIFIED).map_or("", String::as_str);
            let value = seal(&Modified { parameters: modified })?;
            if !site.update_if(&found.header.image, &[(MODIFIED, has)], &[(MODIFIED, &value)], &[])? {
                return Err(Error::Unavailable(format!(
                    "volume {id} was modified at this moment; repeat the call"
                )));
            }
            tracing::info!(volume = %id, ?parameters, "modified");
        }
        if wish.flatten { self.flatten(&site, &found) } else { Ok(()) }
    }

    /// Has an image that shares data with its source copied in the background.
    pub(super) fn flatten(&self, site: &Site, found: &Found) -> Result<()> {
        let image = &found.header.image;
        let Some(looked) = site.look(image)? else { return Ok(()) };
        let parent = looked.parent().map_err(|e| site.fail("reading an image's parent", e))?;
        match parent {
            Some(_) => self.tasks.flatten(site, image, &found.handle.name),
            None => Ok(()),
        }
    }
}
