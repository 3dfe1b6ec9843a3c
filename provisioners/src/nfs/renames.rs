//! Renames on servers that cannot do them beside other calls.
//!
//! nfs-ganesha tries to lock both directories of a rename, and sleeps a whole second when somebody works in one of them
//! (`mdcache_src_dest_lock`). Where that is seen, renames are sent while no other call of ours is under way.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

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
    turn: RwLock<()>,
}

impl Renames {
    fn is_needed(&self) -> bool {
        self.slept.load(Ordering::Relaxed) >= SURE
    }

    /// Runs a rename: alone, where the server needs that.
    pub(super) fn alone<T>(&self, rename: impl FnOnce() -> T) -> T {
        if !self.is_needed() {
            let begun = Instant::now();
            let done = rename();
            if SLEEP.contains(&begun.elapsed()) && self.slept.fetch_add(1, Ordering::Relaxed) + 1 == SURE {
                tracing::info!(
                    "the server sleeps when a rename meets another call; renames are sent alone from now on"
                );
            }
            return done;
        }
        let _turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
        ALONE.set(true);
        let done = rename();
        ALONE.set(false);
        done
    }

    /// Runs any other call.
    pub(super) fn beside<T>(&self, call: impl FnOnce() -> T) -> T {
        if ALONE.get() || !self.is_needed() {
            return call();
        }
        let _turn = self.turn.read().unwrap_or_else(PoisonError::into_inner);
        call()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renames_are_alone_once_the_server_has_slept() {
        let renames = Renames::default();
        for _ in 0..SURE {
            assert!(!renames.is_needed());
            renames.alone(|| std::thread::sleep(Duration::from_millis(1010)));
        }
        assert!(renames.is_needed());
        // The call within a rename does not wait for the rename.
        assert_eq!(renames.alone(|| renames.beside(|| 7)), 7);
        assert_eq!(renames.beside(|| 8), 8);
    }
}
