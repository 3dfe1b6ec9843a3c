//! Whether a tree was written to since a moment: nothing can be written without its change time telling.

use std::sync::{Arc, Mutex, PoisonError};

use super::client::{Fh, Kind, Node, Time};
use super::share::Share;
use super::tree::{Problem, Visit, walk};
use crate::{Ctx, Result};

/// Whether anything in a tree has changed at or after a time of the server. Says what.
pub(super) fn changed_since(ctx: &Ctx, share: &Share, top: &Fh, since: Time) -> Result<Option<String>> {
    struct Newest {
        since: Time,
        found: Arc<Mutex<Option<String>>>,
    }
    impl Visit for Newest {
        type Dir = ();
        fn entry(&mut self, (): &(), name: &[u8], node: &Node) -> Result<Option<()>, Problem> {
            if node.attr.ctime >= self.since {
                let name = String::from_utf8_lossy(name).into_owned();
                *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
                return Err(Problem::Stopped);
            }
            Ok((node.attr.kind == Kind::Directory).then_some(()))
        }
    }
    let told = |fault| share.fail("looking at a directory")(fault);
    if share.attr(top).map_err(told)?.ctime >= since {
        return Ok(Some("the directory itself".into()));
    }
    let found = Arc::default();
    let mut visit = Newest { since, found: Arc::clone(&found) };
    let walked = walk(ctx, share, top, (), &mut visit);
    if let Some(name) = found.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Ok(Some(name));
    }
    match walked {
        Ok(()) => Ok(None),
        // It was there a moment ago.
        Err(Problem::Fault(fault)) if fault.is_gone() => Ok(Some("a file that was removed".into())),
        Err(problem) => Err(problem.told(share, "looking at a directory")),
    }
}
