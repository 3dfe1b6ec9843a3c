//! What earlier processes left: removed when the controller starts, and every half minute.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::client::Outcome;
use super::record::VolumeRecord;
use super::share::Share;
use super::store::Store;
use crate::record::decode;

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
    /// Goes on with removals, and throws away what was half made and is not worked on any more.
    fn sweep(&self) {
        for share in self.shares() {
            match self.sweep_drafts(&share) {
                Ok(0) => {}
                Ok(count) => {
                    tracing::info!(share = %share.place(), count, "moved what was half made to the trash");
                }
                Err(fault) => {
                    tracing::warn!(share = %share.place(), %fault, "looking for what is left to do");
                    continue;
                }
            }
            self.remove_trash(&share);
        }
    }

    /// Drafts that nobody has marked as alive for a while; but not those of intents, whose retry goes on with them.
    fn sweep_drafts(&self, share: &Share) -> Outcome<usize> {
        share.with_own(|own| {
            let drafts = share.entries(&own.tmp)?;
            if drafts.is_empty() {
                return Ok(0);
            }
            let now = share.touch(&own.tmp)?;
            let age = i64::try_from(self.config.sweep.as_secs()).unwrap_or(i64::MAX).saturating_mul(2).max(1);
            let old: Vec<_> = drafts
                .into_iter()
                .filter(|draft| {
                    draft.node.as_ref().is_some_and(|node| node.attr.mtime.seconds + age < now.seconds)
                })
                .collect();
            if old.is_empty() {
                return Ok(0);
            }
            let kept = intended(share, own)?;
            let mut count = 0;
            for draft in old.iter().filter(|draft| !kept.contains(&draft.name)) {
                share.discard(own, &own.tmp, &draft.name)?;
                count += 1;
            }
            Ok(count)
        })
    }
}

fn intended(share: &Share, own: &super::share::Own) -> Outcome<BTreeSet<Vec<u8>>> {
    let mut drafts = BTreeSet::new();
    for entry in share.entries(&own.intents)? {
        let Some((_, content)) = share.get(&own.intents, &entry.name)? else { continue };
        if let Ok(intent) = decode::<VolumeRecord>("an intent", &content) {
            drafts.insert(intent.draft.into_bytes());
        }
    }
    Ok(drafts)
}
