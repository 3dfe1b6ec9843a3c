//! Renames on servers that cannot do them beside other calls.
//!
//! nfs-ganesha tries to lock both directories of a rename, and sleeps a whole second when somebody works in one of them
//! (`mdcache_src_dest_lock`). Where that is seen, renames are sent while no other call of ours is under way.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::pool::lock;

/// How long such a rename takes.
const SLEEP: std::ops::Range<Duration> = Duration::from_millis(980)..Duration::from_millis(1200);
/// After how many it is no chance.
const SURE: u32 = 3;

thread_local! {
    /// This thread is inside of [`Renames::alone`].
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// What is known of one server.
#[derive(Debug, Default)]
pub(super) struct Renames {
    slept: AtomicU32,
    under_way: Mutex<UnderWay>,
    changed: Condvar,
}

/// Calls that were sent and not answered.
#[derive(Debug, Default)]
struct UnderWay {
    renames: usize,
    others: usize,
    /// Renames that wait for the others: no more of these begin.
    waiting: usize,
}

/// A call under way.
struct Sent<'a> {
    of: &'a Renames,
    rename: bool,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let mut under_way = lock(&self.of.under_way);
        if self.rename {
            under_way.renames -= 1;
        } else {
            under_way.others -= 1;
        }
        drop(under_way);
        self.of.changed.notify_all();
    }
}

impl Renames {
    fn is_needed(&self) -> bool {
        self.slept.load(Ordering::Relaxed) >= SURE
    }

    /// Waits until a call may be sent; `None`: not by then.
    fn turn(&self, rename: bool, until: Instant) -> Option<Sent<'_>> {
        let left = until.saturating_duration_since(Instant::now());
        let busy = |it: &mut UnderWay| it.renames > 0 || if rename { it.others > 0 } else { it.waiting > 0 };
        let mut under_way = lock(&self.under_way);
        under_way.waiting += usize::from(rename);
        let waited = self.changed.wait_timeout_while(under_way, left, busy);
        let (mut under_way, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        under_way.waiting -= usize::from(rename);
        if waited.timed_out() {
            drop(under_way);
            self.changed.notify_all();
            return None;
        }
        if rename {
            under_way.renames += 1;
        } else {
            under_way.others += 1;
        }
        Some(Sent { of: self, rename })
    }

    /// Runs a rename: alone, where the server needs that. `None`: its turn has not come by then.
    pub(super) fn alone<T>(&self, until: Instant, rename: impl FnOnce() -> T) -> Option<T> {
        if !self.is_needed() {
            let begun = Instant::now();
            let done = rename();
            if SLEEP.contains(&begun.elapsed()) && self.slept.fetch_add(1, Ordering::Relaxed) + 1 == SURE {
                tracing::info!(
                    "the server sleeps when a rename meets another call; renames are sent alone from now on"
                );
            }
            return Some(done);
        }
        let _turn = self.turn(true, until)?;
        ALONE.set(true);
        let done = rename();
        ALONE.set(false);
        Some(done)
    }

    /// Runs any other call. `None`: its turn has not come by then.
    pub(super) fn beside<T>(&self, until: Instant, call: impl FnOnce() -> T) -> Option<T> {
        if ALONE.get() || !self.is_needed() {
            return Some(call());
        }
        let _turn = self.turn(false, until)?;
        Some(call())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_are_alone_once_the_server_has_slept() {
        let (renames, later) = (Renames::default(), Instant::now() + Duration::from_secs(60));
        for _ in 0..SURE {
            assert!(!renames.is_needed());
            renames.alone(later, || std::thread::sleep(Duration::from_millis(1010)));
        }
        assert!(renames.is_needed());
        // The call within a rename does not wait for the rename.
        assert_eq!(renames.alone(later, || renames.beside(later, || 7)), Some(Some(7)));
        assert_eq!(renames.beside(later, || 8), Some(8));
        // Nobody waits for longer than he may.
        let (held, now) = (renames.turn(false, later).unwrap(), Instant::now());
        assert_eq!(renames.alone(now + Duration::from_millis(50), || 9), None);
        assert_eq!(renames.beside(later, || 10), Some(10));
        drop(held);
        assert_eq!(renames.alone(later, || 11), Some(11));
    }
}
