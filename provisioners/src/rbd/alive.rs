//! Whether a client lives: the one answer on which anybody is fenced, or a lock is broken.
//!
//! A client shows that it lives by the images that it has open: the storage daemons drop the watch of one that gave no
//! sign for `osd_client_watch_timeout` (30 s). All images of all pools are looked at, for one client has many open, and
//! twice, for a client loses its watches for a moment when a daemon restarts.

use std::time::Duration;

use super::ffi::Locker;
use super::locks::open_elsewhere;
use super::session::is_ours;
use super::site::Site;
use super::store::Store;
use crate::{Error, NodeState, Result};

/// A client that has lost its watch by a storage daemon's restart has it again after this time.
pub(super) const BETWEEN: Duration = Duration::from_secs(2);

/// Whether a client lives, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Lives(String),
    Dead(String),
}

impl Site {
    /// Whether a client of this cluster lives; `state` is how its node is, where that is known. Pools that our user may
    /// not look into are passed over.
    pub(super) fn verdict(&self, client: &str, state: Option<&NodeState>) -> Result<Verdict> {
        if is_ours(client) {
            return Ok(Verdict::Lives("it is a client of this very process".into()));
        }
        if let Some(until) = Store::surroundings(self)?.fenced.get(client) {
            return Ok(Verdict::Dead(format!("it is fenced until {until}")));
        }
        if let Some(NodeState::Ready) = state {
            return Ok(Verdict::Lives("its node is Ready in Kubernetes".into()));
        }
        for look in 0..2 {
            if look > 0 {
                std::thread::sleep(BETWEEN);
            }
            if let Some(open) = self.open_by(client)? {
                return Ok(Verdict::Lives(format!("it has {open} open")));
            }
        }
        Ok(Verdict::Dead("it has no image of any pool open, looked at twice".into()))
    }

    /// An image of this cluster that a client has open.
    fn open_by(&self, client: &str) -> Result<Option<String>> {
        for pool in self.session.rbd_pools()? {
            for site in seen(self.session.sites(vec![pool]))?.into_values() {
                let open = seen(open_elsewhere(&site, "", |it| it == client, &|_, _| {}))?;
                if let Some(first) = open.into_iter().next() {
                    return Ok(Some(first));
                }
            }
        }
        Ok(None)
    }

    /// The clients that have an image open or locked, without this process's own.
    pub(super) fn users(&self, id: &str) -> Result<Users> {
        let Some(image) = self.look(id)? else { return Ok(Users::default()) };
        let failed = |e| self.fail("listing watchers and locks", e);
        let watchers = image.watchers().map_err(failed)?.into_iter().map(|watcher| watcher.address);
        let lockers = image.lockers().map_err(failed)?;
        Ok(Users {
            watching: watchers.filter(|address| !is_ours(address)).collect(),
            locker: lockers.into_iter().find(|lock| lock.is_managed() && !is_ours(&lock.address)),
        })
    }
}

/// Who uses an image.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// Addresses.
    pub(super) watching: Vec<String>,
    /// The owner of the managed lock.
    pub(super) locker: Option<Locker>,
}

impl Users {
    pub(super) fn is_watching(&self, client: &str) -> bool {
        self.watching.iter().any(|address| address == client)
    }

    pub(super) fn has_lock(&self, client: &str) -> bool {
        self.locker.as_ref().is_some_and(|locker| locker.address == client)
    }
}

/// Nothing is seen where our user may not look, or what is gone by now.
fn seen<T: Default>(found: Result<T>) -> Result<T> {
    match found {
        Err(Error::Denied(_) | Error::NotFound(_)) => Ok(T::default()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_not_be_looked_at_is_not_seen() {
        assert_eq!(seen(Ok(3)).unwrap(), 3);
        assert_eq!(seen::<i32>(Err(Error::Denied("no".into()))).unwrap(), 0);
        assert!(seen::<i32>(Err(Error::Unavailable("later".into()))).is_err());
    }
}
