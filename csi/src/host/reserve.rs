//! Descriptors that are kept back for giving volumes up: a process that has opened all it may must still be able to
//! unmount and detach, which frees some.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More than an unpublish or unstage has open at once, several times over.
const MOST: usize = 24;

struct Kept {
    files: Vec<File>,
    spending: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { files: Vec::new(), spending: 0 });

/// While it lives, the descriptors can be had.
pub struct Spending;

/// Keeps them back from now on.
pub fn keep() {
    lock().fill();
}

/// Gives them up until all who spend have ended.
pub fn spend() -> Spending {
    let mut kept = lock();
    kept.spending += 1;
    kept.files.clear();
    Spending
}

impl Drop for Spending {
    fn drop(&mut self) {
        let mut kept = lock();
        kept.spending -= 1;
        kept.fill();
    }
}

impl Kept {
    fn fill(&mut self) {
        while self.spending == 0 && self.files.len() < MOST {
            let Ok(file) = File::open("/dev/null") else { return };
            self.files.push(file);
        }
    }
}

fn lock() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}
