//! Managed locks that were left behind.
//!
//! librbd and the kernel's client take a lock whose owner has no watch by fencing the owner's client first. All images
//! that a node's kernel has mapped share one client (rbd(8), `noshare`), so an unmapping that was interrupted - its driver
//! killed while the cluster took no writes - leaves a lock for which the node's other volumes would be lost, perhaps by
//! the node itself when it maps the image again. Here such a lock is told from that of a client that is gone, and broken
//! without a fence where it is proved that nobody uses it; where that cannot be proved, it is not met.

use super::alive::{BETWEEN, Verdict};
use super::ffi::{Errno, Image, Locker, Watcher};
use super::locks::node_of;
use super::record::Found;
use super::site::Site;
use super::store::Store;
use crate::{Error, Result};

/// The managed lock's name (`RBD_LOCK_NAME`).
const LOCK: &str = "rbd_lock";

impl Locker {
    /// Whether a watch is that of this lock: librbd compares the number in the cookie, too.
    fn is_watched_by(&self, watcher: &Watcher) -> bool {
        let number = self.cookie.strip_prefix("auto ").and_then(|number| number.parse().ok());
        watcher.address == self.address && number.is_none_or(|number: u64| number == watcher.cookie)
    }
}

/// The owner of an image's managed lock.
fn owner(site: &Site, image: &Image) -> Result<Option<Locker>> {
    let lockers = image.lockers().map_err(|e| site.fail("listing locks", e))?;
    Ok(lockers.into_iter().find(Locker::is_managed))
}

/// Whether nothing says that a lock's owner has the image open.
fn is_silent(site: &Site, image: &Image, owner: &Locker) -> Result<bool> {
    let watchers = image.watchers().map_err(|e| site.fail("listing watchers", e))?;
    Ok(!watchers.iter().any(|watcher| owner.is_watched_by(watcher)))
}

impl Site {
    /// Refuses where librbd, taking this image's lock, would fence a client that lives.
    pub(super) fn refuse_to_fence(&self, id: &str, image: &Image) -> Result<()> {
        let Some(held) = owner(self, image)? else { return Ok(()) };
        // A handle that closes gives its lock back before its watch: between two questions it looks as if it were gone.
        if !is_silent(self, image, &held)? || owner(self, image)?.as_ref() != Some(&held) {
            return Ok(());
        }
        match self.verdict(&held.address, None)? {
            Verdict::Lives(sign) if owner(self, image)?.as_ref() == Some(&held) => {
                Err(left(&format!("image id {id}"), &held, &sign))
            }
            _ => Ok(()),
        }
    }
}

impl Store {
    /// Breaks a volume's lock if it was left by a client that lives: one of `ours`, which are known not to have the volume
    /// mapped; or one that has shown no watch for a while though it has other images open, if by our records the volume is
    /// on no node (not asked unless `recorded`: the volume is being deleted). Not proved: [`Error::Unavailable`]. The lock
    /// of a client that is gone stays: it is fenced by who takes the lock.
    pub(super) fn clear_lock(site: &Site, found: &Found, ours: &[String], recorded: bool) -> Result<()> {
        let id = &found.header.image;
        let Some(image) = site.look(id)? else { return Ok(()) };
        let Some(held) = owner(site, &image)? else { return Ok(()) };
        if ours.contains(&held.address) {
            return break_left(site, found, &held, "this node's client, which does not have it mapped");
        }
        if !is_silent(site, &image, &held)? {
            return Ok(());
        }
        let Verdict::Lives(sign) = site.verdict(&held.address, None)? else { return Ok(()) };
        if recorded && !is_on_no_node(found, &held)? {
            return Err(left(&format!("volume {}", found.handle), &held, &sign));
        }
        std::thread::sleep(BETWEEN);
        if owner(site, &image)?.as_ref() != Some(&held) || !is_silent(site, &image, &held)? {
            return Ok(());
        }
        break_left(site, found, &held, "a client that lives and shows no watch of it")
    }
}

/// Whether our records prove that a client's node does not have the volume. Without any record nothing is proved.
fn is_on_no_node(found: &Found, owner: &Locker) -> Result<bool> {
    let (clients, published) = (found.clients()?, found.published()?);
    let node = node_of(&clients, &owner.address);
    Ok(!published.is_empty() && node.is_some_and(|(node, _)| !published.contains_key(node)))
}

fn break_left(site: &Site, found: &Found, owner: &Locker, whose: &str) -> Result<()> {
    let header = format!("rbd_header.{}", found.header.image);
    match site.pool.break_lock(&header, LOCK, &owner.client, &owner.cookie) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(site.fail(&format!("breaking the lock of {}", found.handle.spec()), e)),
    }
    tracing::warn!(volume = %found.handle, client = %owner.client, address = %owner.address, whose,
        "cleared a lock that was left behind");
    Ok(())
}

fn left(what: &str, owner: &Locker, sign: &str) -> Error {
    Error::Unavailable(format!(
        "{what} is locked by {} ({}), which has no watch of it but lives ({sign}): taking the lock would fence it, and all that it has open would be lost; \
         repeat the call, and if that does not help see `volumectl lock ls`",
        owner.client, owner.address
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(address: &str, cookie: u64) -> Watcher {
        Watcher { address: address.into(), client: 4711, cookie }
    }

    #[test]
    fn a_watch_is_that_of_the_lock_whose_number_it_has() {
        let mut locker = Locker {
            client: "client.4711".into(),
            cookie: "auto 5".into(),
            address: "10.0.0.1:0/7".into(),
            exclusive: true,
            tag: "internal".into(),
        };
        assert!(locker.is_watched_by(&watcher("10.0.0.1:0/7", 5)));
        assert!(!locker.is_watched_by(&watcher("10.0.0.1:0/8", 5)), "another client");
        assert!(!locker.is_watched_by(&watcher("10.0.0.1:0/7", 6)), "another mapping by the same client");
        locker.cookie = "something else".into();
        assert!(locker.is_watched_by(&watcher("10.0.0.1:0/7", 6)));
    }
}
