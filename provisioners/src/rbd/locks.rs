//! Who has images open and locked, and whether they live.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::claim::shown;
use super::ffi::{Image, Locker, Watcher};
use super::handle::{Handle, parse_handle};
use super::record::{ClientNote, Found, OURS};
use super::session::Session;
use super::site::Site;
use super::store::Store;
use crate::{Error, Result, Secrets};

/// Whether a lock's owner lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Alive {
    /// It gives signs of life.
    Yes,
    /// It gave none for so long that the cluster has dropped it, or it is fenced.
    No,
}

/// A lock on an image and its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LockOwner {
    /// `managed` (exclusive-lock), `exclusive` or `shared` (advisory).
    pub kind: &'static str,
    /// Such as `client.4711`.
    pub client: String,
    /// As it was given; `auto <number>` for a managed lock.
    pub cookie: String,
    /// The client's address with its nonce.
    pub address: String,
    /// The node that it is on, if that is known.
    pub node: Option<String>,
    /// Since when that node has the image mapped.
    pub since: Option<Timestamp>,
    /// Whether it lives.
    pub alive: Alive,
    /// How we know.
    pub evidence: String,
}

/// A client that has an image open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenBy {
    /// Its address with its nonce.
    pub address: String,
    /// Such as `client.4711`.
    pub client: String,
    /// The node that it is on, if that is known.
    pub node: Option<String>,
}

/// Which node alone may map an image of a single-writer volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MappingClaim {
    /// The node that claimed it.
    pub node: String,
    /// The client that has it mapped, its address with its nonce; none while it is being mapped.
    pub client: Option<String>,
    /// Since when.
    pub since: Timestamp,
    /// Whether other nodes are kept off.
    pub holds: bool,
    /// How we know.
    pub evidence: String,
}

/// An image with its locks and watchers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLocks {
    /// `<pool>[/<namespace>]/<image>`.
    pub image: String,
    /// The configured cluster.
    pub cluster: String,
    /// The volume's handle, if it is one of this driver.
    pub volume: Option<String>,
    /// The PersistentVolume's name.
    pub pv: Option<String>,
    /// The claim as `<namespace>/<name>`.
    pub claim: Option<String>,
    /// The nodes that it is published to.
    pub published: Vec<String>,
    /// Its locks.
    pub locks: Vec<LockOwner>,
    /// Who has it open.
    pub watchers: Vec<OpenBy>,
    /// The node that alone may map it.
    pub mapping: Option<MappingClaim>,
}

impl ImageLocks {
    /// Whether anybody has it open or locked, or is about to.
    fn is_used(&self) -> bool {
        let claimed = self.mapping.as_ref().is_some_and(|claim| claim.holds);
        claimed || !self.locks.is_empty() || !self.watchers.is_empty()
    }
}

/// What is known beside the image itself.
pub(super) struct Surroundings {
    /// Fenced addresses and until when.
    pub(super) fenced: BTreeMap<String, String>,
}

impl Store {
    /// What is known of a cluster beside its images.
    pub(super) fn surroundings(site: &Site) -> Result<Surroundings> {
        Ok(Surroundings { fenced: fenced(&site.session)? })
    }

    /// The locks of one image by its id. `None`: the image is gone.
    pub(super) fn image_locks(
        site: &Site,
        around: &Surroundings,
        name: &str,
        id: &str,
    ) -> Result<Option<ImageLocks>> {
        let Some(image) = site.look(id)? else { return Ok(None) };
        let failed = |errno| site.fail(&format!("reading the locks of {name}"), errno);
        let (lockers, watchers) = (image.lockers().map_err(failed)?, image.watchers().map_err(failed)?);
        drop(image);
        let handle = site.handle(name);
        let found = match site.header(id)? {
            Some(header) => known(Found::read(&handle, header)).flatten(),
            None => None,
        };
        let clients = found.as_ref().and_then(|found| known(found.clients())).unwrap_or_default();
        let pvc = found.as_ref().map(|found| found.record.pvc.clone()).unwrap_or_default();
        Ok(Some(ImageLocks {
            image: handle.spec(),
            cluster: site.place.cluster.clone(),
            volume: found.as_ref().map(|found| found.handle.to_string()),
            pv: pvc.pv_name.clone(),
            claim: pvc
                .name
                .as_ref()
                .map(|name| format!("{}/{name}", pvc.namespace.clone().unwrap_or_default())),
            mapping: found
                .as_ref()
                .and_then(|found| known(found.claim()).flatten())
                .map(|claim| shown(claim, |client| watchers.iter().any(|watcher| watcher.address == client))),
            published: found.map(|found| found.nodes()).unwrap_or_default(),
            locks: lockers.iter().map(|locker| owner(locker, &watchers, &clients, around)).collect(),
            watchers: watchers.iter().map(|watcher| open_by(watcher, &clients)).collect(),
        }))
    }

    /// The locks and watchers of every image of some places; images that nobody has open, locked or claimed are left out.
    /// `progress` is told how many of how many were looked at.
    pub(super) fn all_locks(
        sites: &[Site],
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Vec<ImageLocks>> {
        let mut found = Vec::new();
        for site in sites {
            let around = Self::surroundings(site)?;
            let images = site.pool.images().map_err(|e| site.fail("listing images", e))?;
            let one = |(id, name): &(String, String)| Self::image_locks(site, &around, name, id);
            let all = in_parallel(&images, one, progress)?;
            found.extend(all.into_iter().flatten().filter(ImageLocks::is_used));
        }
        found.sort_by(|a, b| a.image.cmp(&b.image));
        Ok(found)
    }

    /// An image by what people write: a handle, `pool/image`, `pool/namespace/image`, or the image's name in the only
    /// pool. None such: [`Error::NotFound`].
    pub(super) fn named(&self, text: &str) -> Result<(Site, Handle)> {
        let handle = self.handle_of(text)?;
        let site = self.site(&handle.place, &Secrets::default())?;
        Ok((site, handle))
    }

    pub(super) fn handle_of(&self, text: &str) -> Result<Handle> {
        if let Ok(handle) = parse_handle(text) {
            return Ok(handle);
        }
        let clusters: Vec<_> = self.sessions.clusters().collect();
        let [cluster] = clusters.as_slice() else {
            return Err(Error::invalid(
                "image",
                format!("{text:?}: several clusters are configured; write <clusterID>:<pool>/<image>"),
            ));
        };
        let path = match (text.contains('/'), cluster.pools.as_slice()) {
            (true, _) => text.to_owned(),
            (false, [only]) => format!("{only}/{text}"),
            (false, _) => {
                return Err(Error::invalid(
                    "image",
                    format!("{text:?} names no pool; write <pool>/<image>, or give --pool"),
                ));
            }
        };
        parse_handle(&format!("{}:{path}", cluster.id)).map_err(|_| {
            Error::invalid("image", format!("{text:?} is no image; write <pool>/[<namespace>/]<image>"))
        })
    }
}

/// The clients that a cluster has fenced, and until when: `ceph osd blocklist ls`.
pub(super) fn fenced(session: &Session) -> Result<BTreeMap<String, String>> {
    let answer = session.command("osd blocklist ls", &[])?;
    let entries = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let read = |entry: &serde_json::Value| {
        let until = entry["until"].as_str().unwrap_or_default();
        Some((entry["addr"].as_str()?.to_owned(), until.to_owned()))
    };
    Ok(entries.iter().filter_map(read).collect())
}

/// What is stored of an image, for showing its locks: that is what people need when it is damaged.
pub(super) fn known<T>(read: Result<T>) -> Option<T> {
    read.inspect_err(|error| tracing::warn!(%error, "shown without it")).ok()
}

/// Calls `one` for every item from several threads: each waits for the network most of the time.
pub(super) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    one: impl Fn(&T) -> Result<R> + Sync,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Vec<R>> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let mut results = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            results.push(one(item)?);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, items.len());
        }
        Ok(results)
    };
    let results: Result<Vec<Vec<R>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..items.len().min(8)).map(|_| scope.spawn(work)).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<R>>>| {
            thread.join().unwrap_or_else(|_| Err(Error::Internal("a thread of the listing panicked".into())))
        };
        threads.into_iter().map(join).collect()
    });
    Ok(results?.into_iter().flatten().collect())
}

/// What in-tree Kubernetes wrote into its advisory locks, before the node's name.
const KUBELET: &str = "kubelet_lock_magic_";

fn owner(
    locker: &Locker,
    watchers: &[Watcher],
    clients: &BTreeMap<String, ClientNote>,
    around: &Surroundings,
) -> LockOwner {
    let managed = locker.is_managed();
    let kind = match (managed, locker.exclusive) {
        (true, _) => "managed",
        (false, true) => "exclusive",
        (false, false) => "shared",
    };
    let note = node_of(clients, &locker.address);
    let node = note.map(|(node, _)| node.clone());
    let named = locker.cookie.strip_prefix(KUBELET).map(str::to_owned);
    let (alive, evidence) = is_alive(locker, managed, watchers, around);
    LockOwner {
        kind,
        client: locker.client.clone(),
        cookie: locker.cookie.clone(),
        address: locker.address.clone(),
        node: node.or(named),
        since: note.map(|(_, note)| note.since),
        alive,
        evidence,
    }
}

fn is_alive(locker: &Locker, managed: bool, watchers: &[Watcher], around: &Surroundings) -> (Alive, String) {
    if let Some(until) = around.fenced.get(&locker.address) {
        return (Alive::No, format!("it is fenced until {until}"));
    }
    if watchers.iter().any(|watcher| watcher.address == locker.address) {
        return (Alive::Yes, "it has the image open: its watch is answered".into());
    }
    let host = host_of(&locker.address);
    if !managed && watchers.iter().any(|watcher| host_of(&watcher.address) == host) {
        return (Alive::Yes, format!("a client on its host {host} has the image open"));
    }
    if managed {
        let text = "its watch is gone: it gave no sign of life for at least osd_client_watch_timeout (30 s)";
        return (Alive::No, text.into());
    }
    (Alive::No, format!("nobody on its host {host} has the image open"))
}

fn open_by(watcher: &Watcher, clients: &BTreeMap<String, ClientNote>) -> OpenBy {
    OpenBy {
        address: watcher.address.clone(),
        client: format!("client.{}", watcher.client),
        node: node_of(clients, &watcher.address).map(|(node, _)| node.clone()),
    }
}

/// The node that has noted a client's address as its own, and that note.
pub(super) fn node_of<'a>(
    clients: &'a BTreeMap<String, ClientNote>,
    address: &str,
) -> Option<(&'a String, &'a ClientNote)> {
    clients.iter().find(|(_, note)| note.address == address)
}

/// The host of `10.0.0.1:0/123` or `[fd00::1]:0/123`.
pub(super) fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// The other images that a client has open.
pub(super) fn open_elsewhere(
    site: &Site,
    but: &str,
    matches: impl Fn(&str) -> bool + Sync,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Vec<String>> {
    let images = site.pool.images().map_err(|e| site.fail("listing images", e))?;
    let images: Vec<_> =
        images.into_iter().filter(|(_, name)| name != but && !name.starts_with(OURS)).collect();
    let look = |(id, name): &(String, String)| {
        let Ok(image) = Image::look(&site.pool, id, None) else { return Ok(None) };
        let watchers = image.watchers().map_err(|e| site.fail("listing watchers", e))?;
        let has = watchers.iter().any(|watcher| matches(&watcher.address));
        Ok(has.then(|| site.handle(name).spec()))
    };
    Ok(in_parallel(&images, look, progress)?.into_iter().flatten().collect())
}
