//! Taking an image from an owner that is dead: fenced first, then its lock broken, every step journalled.
//!
//! The owner is read twice; a live one is refused. The fence is the exact client, address and nonce, so that nothing
//! else on its host is hit unless that is asked for.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::alive::{BETWEEN, Verdict};
use super::ffi::Errno;
use super::handle::Handle;
use super::journal::Journal;
use super::locks::{Alive, ImageLocks, LockOwner, host_of, open_elsewhere};
use super::params::EXCLUSIVE_LOCK;
use super::record::Found;
use super::site::Site;
use super::store::Store;
use crate::{Error, NodeState, Result};

/// How long a fence lasts where nothing else is said, in seconds: as Ceph's own (`rbd_blocklist_expire_seconds`).
const EXPIRE: u64 = 3600;

/// What may be done.
#[derive(Debug, Clone, Copy)]
pub struct FenceOptions {
    /// Also an owner that lives.
    pub force: bool,
    /// Every client on the owner's host, not only the one.
    pub host: bool,
    /// For how long, in seconds.
    pub expire: u64,
}

impl Default for FenceOptions {
    fn default() -> Self {
        Self { force: false, host: false, expire: EXPIRE }
    }
}

/// What is to be done, to be shown before it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FencePlan {
    /// The image with its locks as they were read.
    pub image: ImageLocks,
    /// The owner to be fenced.
    pub owner: LockOwner,
    /// What goes on the blocklist: one client, or a host.
    pub fence: String,
    /// For how long, in seconds.
    pub expire: u64,
    /// The other images that it has open: they are hit, too.
    pub others: Vec<String>,
    /// The steps in words.
    pub steps: Vec<String>,
    /// Why it is not done whatever is asked: it would hit this program or its host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// One step that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When.
    #[serde(with = "crate::record::timestamp")]
    pub time: Timestamp,
    /// What.
    pub what: String,
    /// How it ended: `done`, or why not.
    pub result: String,
}

/// A journal entry: what was done, and how it is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceReport {
    /// For `volumectl lock undo`.
    pub id: String,
    /// `<pool>[/<namespace>]/<image>`.
    pub image: String,
    /// What was put on the blocklist; empty: nothing.
    pub fence: String,
    /// The steps so far.
    pub steps: Vec<Step>,
    /// Whether the fence was taken back.
    pub undone: bool,
}

crate::record::kind!(FenceReport, "Fence");

/// What the driver knows of a dead holder.
pub(super) struct Recovery {
    node: String,
    address: Option<String>,
}

impl Recovery {
    pub(super) fn of_node(node: &str, address: Option<String>) -> Self {
        Self { node: node.to_owned(), address }
    }
}

impl Store {
    /// Reads the owner twice and plans. Nobody holds a lock: `None`. It lives (or its node is Ready, by `nodes`):
    /// [`Error::Refused`] with the evidence, unless forced.
    pub(super) fn plan_fence(
        &self,
        site: &Site,
        handle: &Handle,
        options: FenceOptions,
        state: &dyn Fn(&str) -> Option<NodeState>,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Option<FencePlan>> {
        let first = Self::read_locks(site, handle)?;
        let Some(owner) = first.locks.first().cloned() else { return Ok(None) };
        std::thread::sleep(BETWEEN);
        let image = Self::read_locks(site, handle)?;
        let same = |lock: &LockOwner| (&lock.client, &lock.cookie) == (&owner.client, &owner.cookie);
        let Some(owner) = image.locks.iter().find(|lock| same(lock)).cloned() else {
            return Err(Error::Refused(format!(
                "{}: the lock changed hands between two readings: somebody is using it",
                handle.spec()
            )));
        };
        if !options.force {
            refuse_live(site, &image, &owner, state)?;
        }
        let fence = if options.host { host_of(&owner.address).to_owned() } else { owner.address.clone() };
        let hit = |address: &str| {
            if options.host { host_of(address) == fence } else { address == fence }
        };
        let mut others = open_elsewhere(site, &handle.name, hit, progress)?;
        // A fence is of one cluster.
        for place in self.sites_in(&site.place.cluster)?.into_iter().filter(|other| other.place != site.place)
        {
            others.extend(open_elsewhere(&place, "", hit, progress)?);
        }
        let steps = vec![
            format!(
                "fence {fence} for {} s: ceph osd blocklist add {fence} {}",
                options.expire, options.expire
            ),
            format!("break the {} lock {:?} of {}", owner.kind, owner.cookie, owner.client),
            "open the image afresh and take its lock".into(),
        ];
        let refused = hits_us(&fence);
        Ok(Some(FencePlan { image, owner, fence, expire: options.expire, others, steps, refused }))
    }

    fn read_locks(site: &Site, handle: &Handle) -> Result<ImageLocks> {
        let none = || Error::NotFound(format!("there is no image {}", handle.spec()));
        let id = site.image_id(&handle.name)?.ok_or_else(none)?;
        let around = Self::surroundings(site)?;
        Self::image_locks(site, &around, &handle.name, &id)?.ok_or_else(none)
    }

    /// Does what was planned, if the owner is still the same. Each step is journalled before the next.
    pub(super) fn fence(site: &Site, handle: &Handle, plan: &FencePlan) -> Result<FenceReport> {
        if let Some(why) = &plan.refused {
            return Err(Error::Refused(why.clone()));
        }
        let now = Self::read_locks(site, handle)?;
        let owner = &plan.owner;
        if !now.locks.iter().any(|lock| (&lock.client, &lock.cookie) == (&owner.client, &owner.cookie)) {
            return Err(Error::Refused(format!(
                "{}: the owner of the lock is another one than was planned for; plan again",
                handle.spec()
            )));
        }
        let mut journal = Journal::start(site, handle, &plan.fence)?;
        journal.step(&plan.steps[0], || blocklist(site, &plan.fence, Some(plan.expire)))?;
        let id = site.image_id(&handle.name)?.unwrap_or_default();
        journal.step(&plan.steps[1], || {
            match site.open_fenced(&id)?.break_lock(&owner.client, &owner.cookie) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(e) => Err(site.fail(&format!("breaking the lock of {}", handle.spec()), e)),
            }
        })?;
        journal.step(&plan.steps[2], || verify(site, handle, &id))?;
        tracing::warn!(image = %handle.spec(), fence = %plan.fence, id = %journal.report.id, "recovered");
        Ok(journal.report)
    }

    /// Takes a volume from a holder whose node is proved dead: nobody has it open, and nothing else is open by the same
    /// client.
    pub(super) fn recover_dead(&self, site: &Site, found: &Found, holder: Recovery) -> Result<()> {
        let handle = &found.handle;
        let options = FenceOptions::default();
        if let Some(plan) = self.plan_fence(site, handle, options, &|_| None, &|_, _| {})? {
            Self::fence(site, handle, &plan)?;
            return Ok(());
        }
        // No lock: the holder never wrote. It is fenced all the same, for it may come back and begin.
        let Some(address) = holder.address else { return Ok(()) };
        if let Verdict::Lives(sign) = site.verdict(&address, None)? {
            return Err(Error::Refused(format!("{address} of node {} lives: {sign}", holder.node)));
        }
        fence_client(site, handle, &address, &holder.node)
    }
}

fn refuse_live(
    site: &Site,
    image: &ImageLocks,
    owner: &LockOwner,
    state: &dyn Fn(&str) -> Option<NodeState>,
) -> Result<()> {
    let lives = |evidence: &str| {
        Err(Error::Refused(format!(
            "{}: the owner {} ({}) lives: {evidence}; stop its user first, or use --force",
            image.image, owner.address, owner.client
        )))
    };
    if owner.alive == Alive::Yes {
        return lives(&owner.evidence);
    }
    if let Some(watcher) = image.watchers.first() {
        return Err(Error::Refused(format!(
            "{}: {} has the image open, though {} holds the lock; stop its user first, or use --force",
            image.image, watcher.address, owner.address
        )));
    }
    match site.verdict(&owner.address, owner.node.as_deref().and_then(state).as_ref())? {
        Verdict::Lives(evidence) => lives(&evidence),
        Verdict::Dead(_) => Ok(()),
    }
}

/// Why a client or host must not be fenced from here: it is this program's own, or this host.
pub(super) fn hits_us(fence: &str) -> Option<String> {
    let ours = |own: &String| own == fence || host_of(own) == fence;
    let here = || {
        let host = fence.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        // An address of another machine cannot be bound to.
        host.is_ok_and(|host| std::net::UdpSocket::bind((host, 0)).is_ok())
    };
    (super::session::ours().iter().any(ours) || here()).then(|| {
        format!(
            "{fence} is this program itself, or the host that it runs on: the fence would cut off this host's volumes and the recovery in the middle; run it on another host, or without --host"
        )
    })
}

/// Fences one client of a node, journalled.
pub(super) fn fence_client(site: &Site, handle: &Handle, address: &str, node: &str) -> Result<()> {
    let mut journal = Journal::start(site, handle, address)?;
    let what =
        format!("fence {address} of node {node} for {EXPIRE} s: ceph osd blocklist add {address} {EXPIRE}");
    journal.step(&what, || blocklist(site, address, Some(EXPIRE)))?;
    tracing::warn!(image = %handle.spec(), %address, node, id = %journal.report.id, "fenced");
    Ok(())
}

/// Fences a client for some seconds; `None`: as long as the cluster's setting says (`mon_osd_blocklist_default_expire`).
/// Nothing of this process or host is ever fenced.
pub(super) fn blocklist(site: &Site, address: &str, expire: Option<u64>) -> Result<()> {
    if let Some(why) = hits_us(address) {
        return Err(Error::Refused(why));
    }
    let mut arguments = vec![("blocklistop", "add".into()), ("addr", address.into())];
    #[allow(clippy::cast_precision_loss)]
    arguments.extend(expire.map(|seconds| ("expire", serde_json::Value::from(seconds as f64))));
    site.session.command("osd blocklist", &arguments)?;
    site.session.connection.latest_map().map_err(|e| site.fail("waiting for the cluster's new map", e))
}

/// Proves that the image can be used: opened for changes, and its lock taken and given back.
fn verify(site: &Site, handle: &Handle, id: &str) -> Result<()> {
    let image = site.open_fenced(id)?;
    let failed = |errno| site.fail(&format!("taking the lock of {}", handle.spec()), errno);
    if image.features().map_err(failed)? & EXCLUSIVE_LOCK == 0 {
        return Ok(());
    }
    image.lock().map_err(failed)?;
    image.unlock().map_err(failed)
}
