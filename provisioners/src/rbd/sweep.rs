//! What earlier processes left to do: found when the controller starts, and every minute.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::delete::{SET_ASIDE, marked_by};
use super::record::{Found, Intent};
use super::site::{INTENTS, Site};
use super::store::Store;
use crate::Result;

/// The time between two sweeps.
const SWEEP: Duration = Duration::from_secs(60);
/// An intent that is younger may be of a creation that runs now, here or in another process.
const YOUNG: Duration = Duration::from_secs(300);

/// Sweeps now and every minute until the store is gone.
pub(super) fn sweep_in_background(store: &Arc<Store>) {
    let store = Arc::downgrade(store);
    let work = move || {
        while let Some(store) = store.upgrade() {
            if let Err(error) = store.sweep_all() {
                tracing::warn!(%error, "looking for what is left to do");
            }
            drop(store);
            std::thread::sleep(SWEEP);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("rbd-sweep".into()).spawn(work) {
        tracing::error!(%error, "no thread for the sweep");
    }
}

impl Store {
    /// Queues what earlier processes left to do, at every place whose user is known.
    fn sweep_all(&self) -> Result<()> {
        for site in self.known_sites() {
            let site = site?;
            let queued = self.sweep(&site)?;
            if queued > 0 {
                tracing::info!(place = %site.place, queued, "deleted images wait for the purge");
            }
            self.sweep_intents(&site)?;
        }
        Ok(())
    }

    /// What is in the trash of a place and marked as ours, queued; also images that were set aside and have no
    /// snapshots any more. How many.
    fn sweep(&self, site: &Site) -> Result<usize> {
        let listed = site.pool.trash_list().map_err(|e| site.fail("listing the trash", e))?;
        let mut queued = 0;
        for entry in listed.into_iter().filter(|entry| entry.by_user) {
            let Some(header) = site.header(&entry.id)? else {
                // A purge was interrupted after its last object: there is no image any more.
                site.trash_forget(&entry.id).map_err(|e| site.fail("removing from the trash's list", e))?;
                continue;
            };
            if marked_by(&header, &self.config.owner) {
                self.tasks.purge(site, &entry.id, header.size);
                queued += 1;
            }
        }
        let images = site.pool.images().map_err(|e| site.fail("listing images", e))?;
        for (id, name) in images.into_iter().filter(|(_, name)| name.starts_with(SET_ASIDE)) {
            queued += usize::from(self.release(site, &id, &name)?);
        }
        Ok(queued)
    }

    /// Goes on with flattenings, and strikes off the intents of creations that were completed or never begun. One that
    /// is half made is left to its retry.
    fn sweep_intents(&self, site: &Site) -> Result<()> {
        for (key, intent) in site.entries::<Intent>(INTENTS, "", "", 1000)? {
            let intent = intent?;
            if intent.cluster != self.config.owner || is_young(&key, intent.since) {
                continue;
            }
            if let Some(image) = key.strip_prefix("flatten/") {
                self.tasks.flatten(site, image, &intent.name)?;
            } else if let Some(name) = key.strip_prefix("create/") {
                let id = site.image_id(name)?;
                let header = id.map(|id| site.header(&id)).transpose()?.flatten();
                let found = header.clone().map(|h| Found::read(&site.handle(name), h)).transpose()?.flatten();
                if header.is_none() || found.is_some() {
                    self.tasks.intent_done(site, name);
                }
            }
        }
        Ok(())
    }
}

/// Whether a creation may still be running. A flattening is done by whoever finds it.
fn is_young(key: &str, since: Timestamp) -> bool {
    let age = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
    key.starts_with("create/") && age < YOUNG
}
