//! One connection: a cluster as one user sees it. [`super::sessions`] keeps them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::errors::{command_failed, not_connected};
use super::ffi::{Connection, Errno, Pool, Settings};
use super::handle::Place;
use super::monitors::{resolves, usable};
use super::site::Site;
use crate::{Error, Result};

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
    pub(super) fn open(cluster: &str, settings: Settings) -> Result<Arc<Self>> {
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

    /// When it was last asked for.
    pub(super) fn used(&self) -> Instant {
        *lock(&self.used)
    }

    /// It is asked for now.
    pub(super) fn use_now(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// The cluster has fenced this client.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    /// Whether the next call can use it.
    pub(super) fn is_good(&self) -> bool {
        !self.is_fenced() && !self.outdated.load(Ordering::Relaxed)
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

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
