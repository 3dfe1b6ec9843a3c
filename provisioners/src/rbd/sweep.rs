//! What earlier processes left to do: found when the controller starts, and every minute. Each cluster has a thread of its
//! own, and each thing an attempt of its own: one that fails is named, counted, and tried again later and later.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::clones::CLONE;
use super::delete::{SET_ASIDE, marked_by};
use super::making::MAKING;
use super::record::{Found, Intent, OURS};
use super::site::{INTENTS, Site};
use super::store::Store;
use super::torn::{Holds, holds_nothing};
use crate::{Error, Result};

/// The time between two sweeps.
const SWEEP: Duration = Duration::from_secs(60);
/// An intent that is younger may be of a creation that runs now, here or in another process.
const YOUNG: Duration = Duration::from_secs(300);
/// What was begun so long ago and is half made is no longer left to its retry.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Every image is looked at in each of so many sweeps, and in the first.
const ALL_IMAGES: u32 = 60;
/// What fails is not tried again for longer than this.
const LONGEST: Duration = Duration::from_secs(3600);

/// Sweeps now and every minute until the store is gone.
pub(super) fn sweep_in_background(store: &Arc<Store>) {
    for cluster in store.sessions.clusters() {
        let (store, id) = (Arc::downgrade(store), cluster.id.clone());
        let spawned =
            std::thread::Builder::new().name("rbd-sweep".into()).spawn(move || sweep_cluster(&store, &id));
        if let Err(error) = spawned {
            tracing::error!(%error, cluster = %cluster.id, "no thread for the sweep");
        }
    }
}

fn sweep_cluster(store: &Weak<Store>, cluster: &str) {
    let mut failures = Failures::default();
    let mut round = 0;
    while let Some(store) = store.upgrade() {
        store.sweep_one(cluster, round, &mut failures);
        drop(store);
        round += 1;
        std::thread::sleep(SWEEP);
    }
}

/// What failed, by name: how often, and when it is tried again.
#[derive(Debug, Default)]
pub(super) struct Failures(BTreeMap<String, (u32, Instant)>);

impl Failures {
    /// Tries something unless it has failed a short time ago; whether it is in order. `all` counts what is not.
    pub(super) fn attempt(&mut self, what: &str, work: impl FnOnce() -> Result<()>) -> bool {
        if self.0.get(what).is_some_and(|(_, next)| *next > Instant::now()) {
            return false;
        }
        let Err(error) = work() else {
            self.0.remove(what);
            return true;
        };
        let times = self.0.get(what).map_or(0, |(times, _)| *times) + 1;
        let pause = SWEEP.saturating_mul(1 << times.min(6)).min(LONGEST);
        tracing::warn!(what, %error, times, pause_seconds = pause.as_secs(), "left for a later sweep");
        self.0.insert(what.to_owned(), (times, Instant::now() + pause));
        false
    }

    /// What is no longer there does not fail any more.
    fn keep(&mut self, prefix: &str, seen: &BTreeSet<String>) {
        self.0.retain(|what, _| !what.starts_with(prefix) || seen.contains(what));
    }
}

impl Store {
    /// Queues what earlier processes left to do in a cluster, if its user is known.
    fn sweep_one(&self, cluster: &str, round: u32, failures: &mut Failures) {
        let known = self.sessions.cluster(cluster).is_ok_and(|cluster| self.sessions.is_known(cluster));
        if !known {
            return;
        }
        let mut sites = Vec::new();
        failures.attempt(&format!("cluster {cluster}"), || {
            sites = self.visible_in(cluster)?;
            Ok(())
        });
        for site in &sites {
            self.sweep_place(site, round, failures);
        }
        self.failing(cluster, failures.0.len());
    }

    pub(super) fn sweep_place(&self, site: &Site, round: u32, failures: &mut Failures) {
        let place = &site.place;
        failures.attempt(&format!("{place}: the trash"), || self.sweep_trash(site));
        failures.attempt(&format!("{place}: the images"), || self.queue_images(site, round));
        let mut seen = BTreeSet::new();
        let mut work = Vec::new();
        failures.attempt(&format!("{place}: the intents"), || {
            let entries = site.entries::<Intent>(INTENTS, "", "", 10_000)?;
            work = entries.into_iter().collect();
            Ok(())
        });
        for (key, intent) in work {
            let what = format!("{place}: intent {key}");
            failures.attempt(&what, || self.sweep_intent(site, &key, intent));
            seen.insert(what);
        }
        failures.keep(&format!("{place}: intent "), &seen);
    }

    /// Queues what is in the trash of a place and marked as ours. What cannot be read is named and left alone.
    fn sweep_trash(&self, site: &Site) -> Result<()> {
        let listed = site.pool.trash_list().map_err(|e| site.fail("listing the trash", e))?;
        let entries = listed.into_iter().filter(|entry| entry.by_user);
        each(
            entries,
            |entry| format!("image id {} in the trash", entry.id),
            |entry| {
                let Some(header) = site.header(&entry.id)? else {
                    // A purge was interrupted after its last object: there is no image any more.
                    let forgotten = site.trash_forget(&entry.id);
                    return forgotten.map_err(|e| site.fail("removing from the trash's list", e));
                };
                if marked_by(&site.handle(&entry.name), &header, &self.config.owner)? {
                    self.tasks.purge(site, &entry.id, header.size);
                }
                Ok(())
            },
        )
    }

    /// Queues images that were set aside and have no snapshots any more, and drafts; now and then all are looked at for what clones
    /// have left.
    fn queue_images(&self, site: &Site, round: u32) -> Result<()> {
        let images = site.pool.images().map_err(|e| site.fail("listing images", e))?;
        let all = round.is_multiple_of(ALL_IMAGES);
        let wanted = images
            .into_iter()
            .filter(|(_, name)| all || name.starts_with(SET_ASIDE) || name.starts_with(MAKING));
        each(
            wanted,
            |(_, name)| format!("image {name}"),
            |(id, name)| {
                if name.starts_with(SET_ASIDE) {
                    return self.release(site, id, name).map(drop);
                }
                if name.starts_with(MAKING) {
                    return self.sweep_draft(site, id, name);
                }
                let Some(header) = site.header(id)?.filter(|header| header.has_snapshots) else {
                    return Ok(());
                };
                let found =
                    if name.starts_with(OURS) { None } else { Found::read(&site.handle(name), header)? };
                match found.filter(|found| found.record.cluster == self.config.owner) {
                    Some(_) => Self::sweep_unnoted(site, id).map(drop),
                    None => Ok(()),
                }
            },
        )
    }

    /// Goes on with a flattening; strikes off a creation that was completed or never begun; removes what is left of one
    /// that is half made and that nobody has come back for.
    fn sweep_intent(&self, site: &Site, key: &str, intent: Result<Intent>) -> Result<()> {
        if key.starts_with(CLONE) {
            return self.sweep_clone(site, key).map(drop);
        }
        let intent = intent?;
        if intent.cluster != self.config.owner {
            return Ok(());
        }
        if let Some(image) = key.strip_prefix("flatten/") {
            return self.tasks.flatten(site, image, &intent.name);
        }
        match key.strip_prefix("create/") {
            Some(name) if age(intent.since) >= YOUNG => self.sweep_creation(site, name, &intent),
            _ => Ok(()),
        }
    }

    fn sweep_creation(&self, site: &Site, name: &str, intent: &Intent) -> Result<()> {
        let id = site.image_id(name)?;
        let header = id.as_ref().map(|id| site.header(id)).transpose()?.flatten();
        let Some((id, header)) = id.zip(header) else {
            self.tasks.intent_done(site, name);
            return Ok(());
        };
        if Found::read(&site.handle(name), header.clone())?.is_some() {
            self.tasks.intent_done(site, name);
        } else if age(intent.since) >= ABANDONED && matches!(holds_nothing(site, &id), Holds::Nothing) {
            self.remove_half_made(site, name, &id, Some(&header))?;
            self.tasks.intent_done(site, name);
        }
        Ok(())
    }

    /// Counts what a cluster's sweep could not do.
    fn failing(&self, cluster: &str, count: usize) {
        let mut failing = self.failing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        failing.insert(cluster.to_owned(), count);
        let all = failing.values().sum();
        self.tasks.failing.store(all, Ordering::Relaxed);
    }
}

/// Does something to each of several things; one that fails keeps nothing from the others. All that failed in one error.
fn each<T>(
    items: impl IntoIterator<Item = T>,
    name: impl Fn(&T) -> String,
    mut work: impl FnMut(&T) -> Result<()>,
) -> Result<()> {
    let mut failed = Vec::new();
    for item in items {
        if let Err(error) = work(&item) {
            failed.push(format!("{}: {error}", name(&item)));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Unavailable(failed.join("; "))) }
}

/// How old something is; what is of the future is new.
pub(super) fn age(since: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_fails_stops_no_other_and_is_tried_again_later() {
        let mut done = Vec::new();
        let one = each(
            ["a", "b", "c"],
            |it| (*it).to_owned(),
            |it| {
                done.push(*it);
                if *it == "b" { Err(Error::Unavailable("is away".into())) } else { Ok(()) }
            },
        );
        assert_eq!(done, ["a", "b", "c"]);
        assert_eq!(one.unwrap_err().to_string(), "b: is away");

        let mut failures = Failures::default();
        assert!(!failures.attempt("b", || Err(Error::Unavailable("is away".into()))));
        assert!(!failures.attempt("b", || panic!("not again so soon")));
        assert!(failures.attempt("a", || Ok(())));
        assert_eq!(failures.0.len(), 1);
        failures.keep("b", &BTreeSet::new());
        assert!(failures.0.is_empty());
    }
}
