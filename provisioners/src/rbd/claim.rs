//! One node alone maps a volume of a single node: which one is decided by a claim in the image's metadata, written in one
//! step with the question whether anybody else has changed it. A look at who has the image open is not enough: two nodes
//! that look at the same moment see nobody.
//!
//! A claim needs no server when a volume is taken away: it is void when its client has the image neither open nor locked.
//! Two looks are taken where the image has no lock that would tell.

use std::time::Duration;

use jiff::Timestamp;

use super::alive::{BETWEEN, Users};
use super::attach::TURNS;
use super::locks::MappingClaim;
use super::params::EXCLUSIVE_LOCK;
use super::record::{CLAIM, CLIENT, Claim, ClientNote, Found, seal};
use super::site::Site;
use super::store::Store;
use super::sweep::age;
use crate::{Error, Result, Secrets, VolumeId};

/// A node that has claimed an image has mapped it after this time, or has failed.
const MAPS: Duration = Duration::from_secs(90);

impl Store {
    /// Prepares a volume for being mapped on this node, where it is not: claims it for this node if that is to be `alone`,
    /// and clears what an interrupted unmapping has left of a lock if it is `locked`. `clients` are those that this node
    /// has for other volumes.
    pub(super) fn before_mapping(
        &self,
        id: &VolumeId,
        locked: bool,
        clients: &[String],
        alone: bool,
    ) -> Result<()> {
        for _ in 0..TURNS {
            let (site, found) = self.usable(id, &Secrets::default())?;
            let prepared = if alone { self.claim(&site, &found)? } else { self.unclaim(&site, &found)? };
            if prepared {
                return if locked { Self::clear_lock(&site, &found, clients, true) } else { Ok(()) };
            }
        }
        Err(Error::Unavailable(format!(
            "volume {id} is claimed by several nodes at this moment; repeat the call"
        )))
    }

    /// A node that maps a volume beside others does not keep them off by what it claimed before. `false`: somebody changed
    /// it meanwhile.
    fn unclaim(&self, site: &Site, found: &Found) -> Result<bool> {
        match found.claim()? {
            Some(claim) if claim.node == self.config.node => site.update_in_turn(found, &[], &[CLAIM]),
            _ => Ok(true),
        }
    }

    /// Whether this node has the claim now; `false`: somebody changed it meanwhile.
    fn claim(&self, site: &Site, found: &Found) -> Result<bool> {
        let node = &self.config.node;
        if let Some(claim) = found.claim()?.filter(|claim| claim.node != *node)
            && let Some(sign) = holds(site, found, &claim)?
        {
            return Err(Error::Unavailable(format!(
                "volume {} is staged on node {}, {sign}; it is for one node at a time: unstage it there first, or see `volumectl lock ls --image {}`",
                found.handle,
                claim.node,
                found.handle.spec()
            )));
        }
        let claim = Claim { node: node.clone(), client: None, since: Timestamp::now() };
        site.update_in_turn(found, &[(CLAIM, &seal(&claim)?)], &[])
    }

    /// Notes as which client this node has an image open. `before` are those that had it open already; `address` is
    /// ours, if that is known: else it is the one that was not there before. Another node's claim: [`Error::Unavailable`].
    pub(super) fn mapped(&self, id: &VolumeId, before: &[String], address: Option<&str>) -> Result<()> {
        for _ in 0..TURNS {
            let (site, found) = self.usable(id, &Secrets::default())?;
            let claim = found.claim()?;
            if let Some(other) = claim.as_ref().filter(|claim| claim.node != self.config.node)
                && holds(&site, &found, other)?.is_some()
            {
                return Err(Error::Unavailable(format!(
                    "volume {id} was claimed by node {} while it was mapped here; repeat the call",
                    other.node
                )));
            }
            let client = match address {
                Some(address) => Some(address.to_owned()),
                None => new_client(&site.users(&found.header.image)?, before),
            };
            let Some(client) = client else { return Ok(()) };
            let now = Timestamp::now();
            let note = seal(&ClientNote { address: client.clone(), since: now })?;
            let own = claim.filter(|claim| claim.node == self.config.node);
            let own = own.map(|claim| seal(&Claim { client: Some(client), ..claim })).transpose()?;
            let key = format!("{CLIENT}{}", self.config.node);
            let mut set = vec![(key.as_str(), note.as_slice())];
            set.extend(own.as_ref().map(|own| (CLAIM, own.as_slice())));
            if site.update_in_turn(&found, &set, &[])? {
                return Ok(());
            }
        }
        Err(Error::Unavailable(format!("who has volume {id} changes all the time; repeat the call")))
    }
}

/// The client that was not there before. The only one is ours: an interrupted mapping that was found again.
fn new_client(users: &Users, before: &[String]) -> Option<String> {
    let new = users.watching.iter().find(|address| !before.contains(address));
    let only = users.watching.first().filter(|_| users.watching.len() == 1);
    new.or(only).cloned()
}

/// For how long yet a claim whose client is not known keeps others off; `None`: it does no more.
fn maps_for(claim: &Claim) -> Option<Duration> {
    MAPS.checked_sub(age(claim.since)).filter(|left| !left.is_zero())
}

/// A claim as people see it; `is_open`: whether a client has the image open.
pub(super) fn shown(claim: Claim, is_open: impl Fn(&str) -> bool) -> MappingClaim {
    let (holds, evidence) = match (&claim.client, maps_for(&claim)) {
        (Some(client), _) if is_open(client) => (true, format!("its client {client} has the image open")),
        (Some(client), _) => (false, format!("its client {client} does not have the image open")),
        (None, Some(left)) => (
            true,
            format!("the node began to map it; the claim is void in {} s if it does not", left.as_secs() + 1),
        ),
        (None, None) => (false, "the node began to map it, and did not finish".to_owned()),
    };
    MappingClaim { node: claim.node, client: claim.client, since: claim.since, holds, evidence }
}

/// By what a claim of another node holds; `None`: it is void.
fn holds(site: &Site, found: &Found, claim: &Claim) -> Result<Option<String>> {
    let Some(client) = &claim.client else {
        let began = || format!("which began to map it {} s ago", age(claim.since).as_secs());
        return Ok(maps_for(claim).map(|_| began()));
    };
    let open = || format!("whose client {client} has it open");
    let users = site.users(&found.header.image)?;
    if users.is_watching(client) {
        return Ok(Some(open()));
    }
    // A client that has ended in order has given its lock back.
    if !users.has_lock(client) && has_managed_locks(site, found)? {
        return Ok(None);
    }
    std::thread::sleep(BETWEEN);
    Ok(site.users(&found.header.image)?.is_watching(client).then(open))
}

fn has_managed_locks(site: &Site, found: &Found) -> Result<bool> {
    let Some(image) = site.look(&found.header.image)? else { return Ok(false) };
    let features = image.features().map_err(|e| site.fail("reading an image's features", e))?;
    Ok(features & EXCLUSIVE_LOCK != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(client: Option<&str>, ago: i64) -> Claim {
        let since = Timestamp::from_second(Timestamp::now().as_second() - ago).unwrap_or_default();
        Claim { node: "node-1".into(), client: client.map(str::to_owned), since }
    }

    #[test]
    fn what_a_claim_keeps_off_is_shown_with_its_reason() {
        let open = |address: &str| address == "10.0.0.1:0/7";
        for (claim, holds, word) in [
            (of(None, 2), true, "void in 8"),
            (of(None, 91), false, "did not finish"),
            (of(Some("10.0.0.1:0/7"), 500), true, "has the image open"),
            (of(Some("10.0.0.1:0/8"), 2), false, "does not have"),
        ] {
            let shown = shown(claim, open);
            assert_eq!(shown.holds, holds, "{shown:?}");
            assert!(shown.evidence.contains(word), "{shown:?}");
        }
    }
}
