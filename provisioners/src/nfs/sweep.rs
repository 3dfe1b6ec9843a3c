//! What earlier processes left: removed when the controller starts, and every half minute.
//!
//! What is in `tmp` may be somebody's work: of this process, of an older driver that drains, or of its successor. Whoever
//! works there changes a draft's change time every few seconds ([`super::draft::Draft`]), which only the server sets. A
//! draft is abandoned when this process has looked at it all the time of a lease and nothing has changed. Somebody who
//! slept for longer finds the draft gone when it is to be published, and begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::change;
use super::client::{Entry, Outcome, Time};
use super::handle::ShareId;
use super::list::is_of_record;
use super::pool::lock;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told};
use super::store::{Index, Store, key_of, load};
use crate::Result;

/// Drafts that were seen.
#[derive(Default)]
pub(super) struct Watch(Mutex<BTreeMap<(ShareId, Vec<u8>), Seen>>);

/// A draft, as it was seen without interruption.
#[derive(Debug, Clone, Copy)]
struct Seen {
    changed: Time,
    since: Instant,
    last: Instant,
}

impl Watch {
    /// Looks at the drafts of a share: the names of those that nobody has touched for a lease.
    fn look(&self, share: &ShareId, drafts: &[Entry], lease: Duration, now: Instant) -> Vec<Vec<u8>> {
        let mut seen = lock(&self.0);
        let names: BTreeSet<_> = drafts.iter().map(|draft| draft.name.as_slice()).collect();
        seen.retain(|(of, name), _| of != share || names.contains(name.as_slice()));
        let mut abandoned = Vec::new();
        for draft in drafts {
            let Some(node) = &draft.node else { continue };
            let changed = node.attr.ctime;
            let fresh = Seen { changed, since: now, last: now };
            let was = seen.entry((share.clone(), draft.name.clone())).or_insert(fresh);
            // While the server was away nobody could touch anything.
            if was.changed != changed || now.duration_since(was.last) > lease / 2 {
                *was = fresh;
            }
            was.last = now;
            if now.duration_since(was.since) >= lease {
                abandoned.push(draft.name.clone());
            }
        }
        abandoned
    }
}

/// Sweeps now and again until the store is gone.
pub(super) fn sweep_in_background(store: &Arc<Store>) {
    let pause = store.config.sweep;
    let store = Arc::downgrade(store);
    let work = move || {
        while let Some(store) = store.upgrade() {
            store.sweep();
            drop(store);
            std::thread::sleep(pause);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("nfs-sweep".into()).spawn(work) {
        tracing::error!(%error, "no thread for the sweep");
    }
}

impl Store {
    /// Goes on with removals, and throws away what was half made and is not worked on any more; on each share, whatever
    /// the others do.
    fn sweep(&self) {
        for (share, swept) in self.each(|share| self.sweep_share(share)) {
            if let Err(error) = swept {
                tracing::warn!(share = %share.place(), %error, "looking for what is left to do");
            }
        }
    }

    fn sweep_share(&self, share: &Arc<Share>) -> Result<()> {
        let count = self.sweep_drafts(share)?;
        if count > 0 {
            tracing::info!(share = %share.place(), count, "moved what was half made to the trash");
        }
        let settled = share.with_own(|own| change::settle(share, own));
        settled.told(share, "going on with changes of records")?;
        self.remove_trash(share);
        self.learn(share);
        self.recall_from(share)
    }

    /// Drafts that nobody has touched for a lease; but not those of intents, whose retry goes on with them.
    fn sweep_drafts(&self, share: &Arc<Share>) -> Result<usize> {
        let doing = "looking for what is left to do";
        let (own, drafts) =
            share.with_own(|own| Ok((own.clone(), drafts(share, own)?))).told(share, doing)?;
        let old = self.watch.look(&share.id, &drafts, self.config.lease(), Instant::now());
        if old.is_empty() {
            return Ok(0);
        }
        let intended = intended(share, &own)?;
        let mut count = 0;
        for draft in old.iter().filter(|draft| !intended.has(draft)) {
            share.discard(&own, &own.tmp, draft).told(share, doing)?;
            count += 1;
        }
        Ok(count)
    }
}

/// What is in `tmp`, with attributes.
fn drafts(share: &Share, own: &Own) -> Outcome<Vec<Entry>> {
    let mut drafts = share.entries(&own.tmp)?;
    for draft in drafts.iter_mut().filter(|draft| draft.node.is_none()) {
        draft.node = share.look(&own.tmp, &draft.name)?;
    }
    Ok(drafts)
}

/// Drafts that intents have.
#[derive(Default)]
struct Intended {
    drafts: BTreeSet<Vec<u8>>,
    /// Volumes whose intents cannot be read: what has their keys is kept.
    unreadable: Vec<String>,
}

impl Intended {
    fn has(&self, draft: &[u8]) -> bool {
        let of = |key: &String| super::draft::is_of(draft, key);
        self.drafts.contains(draft) || self.unreadable.iter().any(of)
    }
}

fn intended(share: &Share, own: &Own) -> Result<Intended> {
    let mut intended = Intended::default();
    for entry in share.entries(&own.intents).told(share, "reading intents")? {
        let Some(key) = key_of(&entry.name) else { continue };
        match load::<VolumeRecord>(share, Index::Intents, &key) {
            Ok((_, intent)) => intended.drafts.extend(intent.map(|intent| intent.draft.into_bytes())),
            Err(error) if is_of_record(&error) => {
                tracing::warn!(share = %share.place(), volume = key, %error, "an intent cannot be read; what it may have is kept");
                intended.unreadable.push(key);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(intended)
}

#[cfg(test)]
mod tests {
    use super::super::client::{Attr, Kind, Node, Who};
    use super::*;

    fn draft(name: &str, seconds: i64) -> Entry {
        let time = Time { seconds, nanos: 0 };
        let attr = Attr {
            kind: Kind::Directory,
            mode: 0o700,
            links: 2,
            owner: Who::Id(0),
            group: Who::Id(0),
            size: 0,
            used: 0,
            device: (0, 0),
            id: 1,
            fsid: (1, 0),
            atime: time,
            mtime: Time::default(),
            ctime: time,
        };
        Entry { name: name.into(), node: Some(Node { fh: name.into(), attr }) }
    }

    /// Only what was looked at for a whole lease and never changed is abandoned: not what is touched now and then, and not
    /// what could not be touched because its server was away.
    #[test]
    fn a_draft_is_abandoned_when_nothing_has_changed_for_a_lease() {
        let (watch, share) = (Watch::default(), ShareId::Named("main".into()));
        let (lease, begin) = (Duration::from_secs(60), Instant::now());
        let at = |seconds, drafts: &[Entry]| {
            watch.look(&share, drafts, lease, begin + Duration::from_secs(seconds))
        };
        for (second, changed) in [(0, 5), (20, 25), (40, 45)] {
            assert!(at(second, &[draft("dead", 5), draft("alive", changed)]).is_empty());
        }
        assert_eq!(at(60, &[draft("dead", 5), draft("alive", 65)]), [b"dead"]);
        // The server was away from 60 to 200.
        assert!(at(200, &[draft("dead", 5), draft("alive", 65)]).is_empty());
    }
}
