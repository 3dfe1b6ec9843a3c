//! Connections: one for each cluster and user, kept open, made anew when it breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::config::{RbdCluster, RbdConfig};
use super::errors::{command_failed, no_libraries, not_connected};
use super::ffi::{self, Connection, Errno, Pool, Settings};
use super::handle::Place;
use super::key::credentials;
use super::monitors::{resolves, usable};
use super::site::Site;
use crate::{Error, Result, Secrets};

/// How long a monitor or a storage daemon may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

/// One cluster, connected as one user.
pub(super) struct Session {
    pub(super) cluster: String,
    pub(super) settings: Settings,
    pub(super) connection: Arc<Connection>,
    /// The cluster has fenced this client.
    fenced: AtomicBool,
    /// It was refused something, by rights that it was given so long ago that they may be others now.
    outdated: AtomicBool,
    opened: Instant,
    /// This client's address with its nonce, as others see it.
    pub(super) address: String,
    /// When it was last asked for.
    used: Mutex<Instant>,
    behind: Mutex<Option<Arc<Self>>>,
    pools: Mutex<BTreeMap<(String, String), Arc<Pool>>>,
}

/// A connection has the rights that its user had when it was made (until the tickets are renewed, an hour later). One that
/// is refused something after this time is made anew.
const RIGHTS: Duration = Duration::from_secs(20);

/// The addresses of all of this process's clients.
static OURS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether an address is that of a client of this process.
pub(super) fn is_ours(address: &str) -> bool {
    lock(&OURS).contains(address)
}

/// The addresses of all of this process's clients.
pub(super) fn ours() -> Vec<String> {
    lock(&OURS).iter().cloned().collect()
}

impl Drop for Session {
    fn drop(&mut self) {
        lock(&OURS).remove(&self.address);
    }
}

impl Session {
    /// Connects.
    fn open(cluster: &str, settings: Settings) -> Result<Arc<Self>> {
        let failed = |errno| not_connected(cluster, &settings, errno);
        let monitors = usable(&settings.monitors, resolves)?;
        let connection = Connection::open(&Settings { monitors, ..settings.clone() }).map_err(failed)?;
        let address = connection.address().map_err(failed)?;
        lock(&OURS).insert(address.clone());
        Ok(Arc::new(Self {
            cluster: cluster.to_owned(),
            settings,
            connection,
            fenced: AtomicBool::new(false),
            outdated: AtomicBool::new(false),
            opened: Instant::now(),
            address,
            used: Mutex::new(Instant::now()),
            behind: Mutex::default(),
            pools: Mutex::default(),
        }))
    }

    /// Draws the conclusion from a call that failed.
    pub(super) fn note(&self, errno: Errno) {
        match errno {
            Errno::SHUTDOWN | Errno::NOTCONN => self.fenced.store(true, Ordering::Relaxed),
            Errno::PERM | Errno::ACCESS if self.opened.elapsed() > RIGHTS => {
                self.outdated.store(true, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// Whether the next call can use it.
    fn is_good(&self) -> bool {
        !self.fenced.load(Ordering::Relaxed) && !self.outdated.load(Ordering::Relaxed)
    }

    /// The client for background work, so that it holds up no caller: made at the first use, and anew when it was fenced.
    pub(super) fn behind(&self) -> Result<Arc<Self>> {
        let mut behind = lock(&self.behind);
        match &*behind {
            Some(session) if session.is_good() => Ok(session.clone()),
            _ => Ok(behind.insert(self.another()?).clone()),
        }
    }

    /// Another client of the same cluster and user, for work that must not be hit with this one, nor hold it up.
    pub(super) fn another(&self) -> Result<Arc<Self>> {
        Self::open(&self.cluster, self.settings.clone())
    }

    /// A monitor's answer in JSON to a command, such as `df`; `more` are further arguments.
    pub(super) fn command(
        &self,
        prefix: &str,
        more: &[(&str, serde_json::Value)],
    ) -> Result<serde_json::Value> {
        let mut command = serde_json::Map::new();
        command.insert("prefix".into(), prefix.into());
        command.insert("format".into(), "json".into());
        command.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let command = serde_json::Value::Object(command).to_string();
        let output = self.connection.command(&command).map_err(|e| {
            self.note(e.errno);
            command_failed(prefix, &e, &self.settings.user)
        })?;
        // Some commands answer several values one after the other (`osd blocklist ls`: single addresses, then ranges);
        // what is asked for is the first. Others answer nothing.
        let mut values = serde_json::Deserializer::from_slice(&output).into_iter();
        let first = values.next().unwrap_or(Ok(serde_json::Value::Null));
        first.map_err(|e| Error::Internal(format!("`ceph {prefix}` answered something else than JSON: {e}")))
    }

    /// The pools that are used for images: those with the application `rbd`.
    pub(super) fn rbd_pools(&self) -> Result<Vec<String>> {
        let dump = self.command("osd dump", &[])?;
        let pools = super::capacity::list(&dump, "pools");
        let rbd = pools.filter(|pool| pool["application_metadata"].get("rbd").is_some());
        let names = rbd.filter_map(|pool| pool["pool_name"].as_str().map(str::to_owned));
        Ok(names.filter(|name| super::handle::check_part(name).is_ok()).collect())
    }

    /// A place in this cluster. No such pool: [`Error::NotFound`].
    pub(super) fn site(self: &Arc<Self>, place: &Place) -> Result<Site> {
        let key = (place.pool.clone(), place.namespace.clone());
        let known = lock(&self.pools).get(&key).cloned();
        let pool = match known {
            Some(pool) => pool,
            None => {
                let opened = Pool::open(&self.connection, &place.pool, &place.namespace);
                let pool = opened.map_err(|errno| match errno {
                    Errno::NOENT => Error::NotFound(format!(
                        "parameters[\"pool\"]: cluster {} has no pool {}; see `ceph osd pool ls`",
                        place.cluster, place.pool
                    )),
                    other => super::errors::failed(
                        &format!("opening pool {}", place.pool),
                        other,
                        &self.settings.user,
                        &place.pool,
                    ),
                })?;
                lock(&self.pools).entry(key).or_insert(pool).clone()
            }
        };
        Ok(Site { place: place.clone(), pool, session: self.clone() })
    }

    /// [`Session::sites`] of those pools that the user may see, and of one that has only the namespace `own`. If it may see
    /// none, why not.
    pub(super) fn visible_sites(
        self: &Arc<Self>,
        pools: Vec<String>,
        own: &str,
    ) -> Result<BTreeMap<String, Site>> {
        let (mut sites, mut denied) = (BTreeMap::new(), None);
        for pool in pools {
            match self.sites(vec![pool.clone()]) {
                Ok(some) => sites.extend(some),
                Err(Error::Denied(why)) if own.is_empty() => denied = Some(Error::Denied(why)),
                Err(Error::Denied(_)) => {
                    let place = Place { cluster: self.cluster.clone(), pool, namespace: own.to_owned() };
                    sites.insert(place.to_string(), self.site(&place)?);
                }
                Err(error) => return Err(error),
            }
        }
        match denied {
            Some(error) if sites.is_empty() => Err(error),
            _ => Ok(sites),
        }
    }

    /// The places in these pools: each pool's own and its namespaces.
    pub(super) fn sites(self: &Arc<Self>, pools: Vec<String>) -> Result<BTreeMap<String, Site>> {
        let mut sites = BTreeMap::new();
        for pool in pools {
            let place = Place { cluster: self.cluster.clone(), pool, namespace: String::new() };
            let site = self.site(&place)?;
            let namespaces = site.pool.namespaces();
            for namespace in namespaces.map_err(|e| site.fail("listing namespaces", e))? {
                let place = Place { namespace, ..place.clone() };
                sites.insert(place.to_string(), self.site(&place)?);
            }
            sites.insert(place.to_string(), site);
        }
        Ok(sites)
    }
}

/// A connection of the same user with another key is closed when it was not asked for in this time.
const ROTATED: Duration = Duration::from_secs(60);
/// One of another user.
const UNUSED: Duration = Duration::from_secs(3600);

/// The cluster, and as whom.
type SlotKey = (String, Settings);

enum Slot {
    /// Somebody is connecting; those who wait for it get its error, too.
    Pending(Arc<OnceLock<Error>>),
    Open(Arc<Session>),
}

impl Slot {
    fn used(&self) -> Option<Instant> {
        match self {
            Self::Pending(_) => None,
            Self::Open(session) => Some(*lock(&session.used)),
        }
    }
}

/// All connections.
pub(super) struct Sessions {
    clusters: BTreeMap<String, RbdCluster>,
    slots: Mutex<BTreeMap<SlotKey, Slot>>,
    changed: Condvar,
    timeout: Duration,
}

impl Sessions {
    pub(super) fn new(config: &RbdConfig) -> Self {
        Self {
            clusters: config.clusters.iter().map(|c| (c.id.clone(), c.clone())).collect(),
            slots: Mutex::default(),
            changed: Condvar::new(),
            // What a cluster does not answer must be known while the call can still answer for the others.
            timeout: ANSWER.min(config.call_timeout * 2 / 3),
        }
    }

    /// The configured clusters.
    pub(super) fn clusters(&self) -> impl Iterator<Item = &RbdCluster> {
        self.clusters.values()
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        lock(&self.slots).values().filter(|slot| matches!(slot, Slot::Open(_))).count()
    }

    /// The connection to a cluster, as the user of the secrets, else of the configuration, else of a call before.
    pub(super) fn get(&self, cluster: &str, secrets: &Secrets) -> Result<Arc<Session>> {
        ffi::available().map_err(no_libraries)?;
        let entry = self.cluster(cluster)?;
        self.close_unused();
        let settings = match credentials(entry, secrets)? {
            Some((user, key)) => Settings {
                monitors: entry.monitors.join(","),
                user,
                key,
                conf: entry.conf.clone(),
                timeout: self.timeout,
            },
            None => match self.any(cluster)? {
                session if session.is_good() => return Ok(session),
                session => session.settings.clone(),
            },
        };
        self.connect(cluster, settings)
    }

    /// Whether calls without secrets can be made to a cluster.
    pub(super) fn is_known(&self, cluster: &RbdCluster) -> bool {
        matches!(credentials(cluster, &Secrets::default()), Ok(Some(_))) || self.any(&cluster.id).is_ok()
    }

    /// A configured cluster.
    pub(super) fn cluster(&self, id: &str) -> Result<&RbdCluster> {
        self.clusters.get(id).ok_or_else(|| {
            let known: Vec<_> = self.clusters.keys().map(String::as_str).collect();
            Error::NotFound(format!("cluster {id:?} is not configured; known: {}", known.join(", ")))
        })
    }

    /// The connection of the call before that was the last: its key is the one that is good now.
    fn any(&self, cluster: &str) -> Result<Arc<Session>> {
        let slots = lock(&self.slots);
        let open = slots.iter().filter_map(|((id, _), slot)| match slot {
            Slot::Open(session) if id == cluster => Some(session.clone()),
            _ => None,
        });
        let found = open.max_by_key(|session| *lock(&session.used));
        found.ok_or_else(|| {
            Error::invalid(
                "secrets",
                format!(
                    "userID and userKey are missing, and the configuration of cluster {cluster} names no user; set the class's secret, or user and keyFile"
                ),
            )
        })
    }

    /// Closes connections that nobody has asked for in a while, where the cluster has one that was used later: of keys that
    /// were rotated (sooner), and of users that are no more. Work that still goes on by one keeps it until it is done.
    pub(super) fn close_unused(&self) {
        let mut slots = lock(&self.slots);
        let used: Vec<_> = slots.iter().filter_map(|(key, slot)| Some((key.clone(), slot.used()?))).collect();
        let closed: Vec<_> = unused(&used, Instant::now())
            .into_iter()
            .filter_map(|(key, rotated)| {
                tracing::info!(cluster = %key.0, user = %key.1.user, rotated, "closing a connection that nobody uses");
                slots.remove(key)
            })
            .collect();
        drop(slots);
        if !closed.is_empty() {
            // It waits for the cluster.
            std::thread::spawn(move || drop(closed));
        }
    }

    fn connect(&self, cluster: &str, settings: Settings) -> Result<Arc<Session>> {
        let key = (cluster.to_owned(), settings.clone());
        let mut slots = lock(&self.slots);
        loop {
            match slots.get(&key) {
                Some(Slot::Open(session)) if session.is_good() => {
                    *lock(&session.used) = Instant::now();
                    return Ok(session.clone());
                }
                Some(Slot::Open(session)) => {
                    let fenced = session.fenced.load(Ordering::Relaxed);
                    let why =
                        if fenced { "the cluster fenced this client" } else { "the rights may have changed" };
                    tracing::warn!(cluster, user = %session.settings.user, "{why}; connecting anew");
                    break;
                }
                Some(Slot::Pending(failure)) => {
                    let failure = failure.clone();
                    slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
                    if let Some(error) = failure.get() {
                        return Err(error.clone());
                    }
                }
                None => break,
            }
        }
        let failure = Arc::new(OnceLock::new());
        let old = slots.insert(key.clone(), Slot::Pending(failure.clone()));
        drop(slots);
        // It waits for the cluster.
        old.map(|old| std::thread::spawn(move || drop(old)));
        let opened = Session::open(cluster, settings);
        let mut slots = lock(&self.slots);
        slots.remove(&key);
        match &opened {
            Ok(session) => {
                tracing::info!(cluster, user = %session.settings.user, "connected");
                slots.insert(key, Slot::Open(session.clone()));
            }
            Err(error) => drop(failure.set(error.clone())),
        }
        drop(slots);
        self.changed.notify_all();
        opened
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those of some connections, with the time of their last use, that are to be closed, and whether another key of the same
/// user is why.
fn unused(used: &[(SlotKey, Instant)], now: Instant) -> Vec<(&SlotKey, bool)> {
    let judged = |(key, time): &'_ (SlotKey, Instant)| {
        let later = |(other, at): &&(SlotKey, Instant)| other.0 == key.0 && at > time;
        let rotated = used.iter().filter(later).any(|(other, _)| other.1.user == key.1.user);
        let limit = if rotated { ROTATED } else { UNUSED };
        let over = now.saturating_duration_since(*time) > limit;
        (over && used.iter().any(|it| later(&it))).then_some(rotated)
    };
    used.iter().filter_map(|it| Some((&it.0, judged(it)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ffi::Key;
    use super::*;

    fn of(cluster: &str, user: &str, key: &str) -> SlotKey {
        let settings = Settings {
            monitors: String::new(),
            user: user.into(),
            key: Some(Key(key.to_owned())),
            conf: None,
            timeout: Duration::from_secs(1),
        };
        (cluster.to_owned(), settings)
    }

    /// The key of a user was rotated: the connection of the old one goes soon, that of another user stays, and so does the
    /// only one of a cluster, whatever its age.
    #[test]
    fn connections_of_rotated_keys_are_closed() {
        let begun = Instant::now();
        let second = Duration::from_secs(1);
        let (old, new) = (of("a", "csi", "old"), of("a", "csi", "new"));
        let (other, alone) = (of("a", "other", "key"), of("b", "csi", "key"));
        let used: Vec<_> = [&old, &other, &alone]
            .map(|key| (key.clone(), begun))
            .into_iter()
            .chain([(new, begun + second)])
            .collect();
        assert!(unused(&used, begun + second).is_empty(), "calls that began with the old key may still ask");
        assert_eq!(unused(&used, begun + ROTATED + second), [(&old, true)]);
        assert_eq!(unused(&used, begun + UNUSED + second), [(&old, true), (&other, false)]);
    }
}
