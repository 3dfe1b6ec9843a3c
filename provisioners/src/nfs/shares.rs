//! Several shares beside each other: one that is dead or slow keeps nothing of the others waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::handle::Handle;
use super::pool::lock;
use super::share::{Share, Told};
use super::store::Store;
use crate::parts::{Question, ask_all};
use crate::{Error, Part, Result};

/// How many shares are asked at once.
const AT_ONCE: usize = 16;

impl Store {
    /// The shares that are known now, in the order of their handles: those of the configuration, and those that callers
    /// have named and a server has answered for.
    pub(super) fn shares(&self) -> Vec<Arc<Share>> {
        let mut shares: Vec<_> =
            lock(&self.shares).values().filter(|share| share.is_known()).cloned().collect();
        shares.sort_by_key(order);
        shares
    }

    /// Does work with each share, some at a time.
    pub(super) fn each<T: Send>(
        &self,
        work: impl Fn(&Arc<Share>) -> Result<T> + Sync,
    ) -> Vec<(Arc<Share>, Result<T>)> {
        let shares = self.shares();
        if shares.len() < 2 {
            return shares.into_iter().map(|share| (share.clone(), work(&share))).collect();
        }
        let (next, work) = (AtomicUsize::new(0), &work);
        let take = || {
            let mut done = Vec::new();
            while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push((share.clone(), work(share)));
            }
            done
        };
        let mut done: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..shares.len().min(AT_ONCE)).map(|_| scope.spawn(take)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        });
        done.sort_by_key(|(share, _)| order(share));
        done
    }

    /// How each share is that is known: the configured ones, and those that classes have named.
    pub(super) fn parts(&self) -> Vec<Part> {
        let question = |share: Arc<Share>| Question {
            name: format!("share {}", share.id),
            asked: share.state.asked.clone(),
            ask: Box::new(move || {
                let answer = share.try_use();
                share.note_use(&answer);
                answer
            }),
        };
        ask_all(self.shares().into_iter().map(question).collect())
    }

    /// How each share is, a line each.
    pub(super) fn describe(&self) -> Vec<String> {
        let line = |(share, part): (&Arc<Share>, Part)| {
            let how = part.state.map_or_else(|problem| problem.to_string(), |()| "answers".into());
            format!("share {} ({}): {how}", share.id, share.place())
        };
        self.shares().iter().zip(self.parts()).map(line).collect()
    }

    /// What is wrong with single shares, as far as it is known now.
    pub(super) fn troubles(&self) -> Vec<(String, Error)> {
        let of = |share: &Arc<Share>| Some((share.id.to_string(), share.problem()?));
        self.shares().iter().filter_map(of).collect()
    }
}

/// Where a share stands in a list: its handles in their order.
fn order(share: &Arc<Share>) -> String {
    Handle { share: share.id.clone(), key: String::new() }.to_string()
}

impl Share {
    /// Whether the driver's directory of the share can be used.
    fn try_use(&self) -> Result<()> {
        let own = self.with_own(|own| self.attr(&own.volumes).map(drop));
        own.told(self, "looking at the driver's directory")
    }
}
