//! How much volumes hold: counted now and then, never for long.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::client::{Fh, Kind, Node};
use super::share::Share;
use super::tree::{Problem, Visit, walk};
use crate::{Ctx, Result};

/// For how long a count is good.
const FRESH: Duration = Duration::from_secs(300);
/// How long counting may take; what takes longer is not known.
const LIMIT: Duration = Duration::from_secs(2);
/// How many counts are kept.
const KEPT: usize = 10_000;

/// Counts that were made.
#[derive(Default)]
pub(super) struct Usages(Mutex<HashMap<String, (Instant, Option<u64>)>>);

impl Usages {
    /// Bytes of disk below a volume's directory; `None`: it takes too long to count.
    pub(super) fn of(&self, share: &Share, id: &str, dir: &Fh) -> Result<Option<u64>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        if let Some((_, used)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(used);
        }
        let mut count = Count(0);
        let used = match walk(&Ctx::with_limit(LIMIT), share, dir, (), &mut count) {
            Ok(()) => Some(count.0),
            Err(Problem::Error(_)) => None,
            Err(problem) => return Err(problem.told(share, "counting what a volume holds")),
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(id.to_owned(), (Instant::now(), used));
        Ok(used)
    }

    /// A volume has changed: it is counted anew.
    pub(super) fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

struct Count(u64);

impl Visit for Count {
    type Dir = ();

    fn entry(&mut self, (): &(), _: &[u8], node: &Node) -> Result<Option<()>, Problem> {
        self.0 += node.attr.used;
        Ok((node.attr.kind == Kind::Directory).then_some(()))
    }
}
