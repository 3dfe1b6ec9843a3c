//! Connections: one for each cluster and user, kept open, made anew when it breaks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::config::{RbdCluster, RbdConfig};
use super::errors::{command_failed, no_libraries, not_connected};
use super::ffi::{self, Connection, Errno, Key, Pool, Settings};
use super::handle::Place;
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
    pub(super) fenced: AtomicBool,
    pools: Mutex<BTreeMap<(String, String), Arc<Pool>>>,
}

impl Session {
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
        let output =
            self.connection.command(&command).map_err(|e| command_failed(prefix, &e, &self.settings.user))?;
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

enum Slot {
    /// Somebody is connecting.
    Pending,
    Open(Arc<Session>),
}

/// All connections.
pub(super) struct Sessions {
    clusters: BTreeMap<String, RbdCluster>,
    slots: Mutex<BTreeMap<(String, Settings), Slot>>,
    changed: Condvar,
    timeout: Duration,
}

impl Sessions {
    pub(super) fn new(config: &RbdConfig) -> Self {
        Self {
            clusters: config.clusters.iter().map(|c| (c.id.clone(), c.clone())).collect(),
            slots: Mutex::default(),
            changed: Condvar::new(),
            timeout: ANSWER.min(config.call_timeout),
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
        let settings = match credentials(entry, secrets)? {
            Some((user, key)) => Settings {
                monitors: entry.monitors.join(","),
                user,
                key,
                conf: entry.conf.clone(),
                timeout: self.timeout,
            },
            None => return self.any(cluster),
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

    fn any(&self, cluster: &str) -> Result<Arc<Session>> {
        let slots = lock(&self.slots);
        let found = slots.iter().find_map(|((id, _), slot)| match slot {
            Slot::Open(session) if id == cluster => Some(session.clone()),
            _ => None,
        });
        found.ok_or_else(|| {
            Error::invalid(
                "secrets",
                format!(
                    "userID and userKey are missing, and the configuration of cluster {cluster} names no user; set the class's secret, or user and keyFile"
                ),
            )
        })
    }

    fn connect(&self, cluster: &str, settings: Settings) -> Result<Arc<Session>> {
        let key = (cluster.to_owned(), settings.clone());
        let mut slots = lock(&self.slots);
        loop {
            match slots.get(&key) {
                Some(Slot::Open(session)) if !session.fenced.load(Ordering::Relaxed) => {
                    return Ok(session.clone());
                }
                Some(Slot::Open(_)) => {
                    tracing::warn!(cluster, "the cluster fenced this client; connecting anew");
                    break;
                }
                Some(Slot::Pending) => {
                    slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        slots.insert(key.clone(), Slot::Pending);
        drop(slots);
        let opened = Connection::open(&settings);
        let mut slots = lock(&self.slots);
        slots.remove(&key);
        let result = match opened {
            Ok(connection) => {
                tracing::info!(cluster, user = %settings.user, "connected");
                let session = Arc::new(Session {
                    cluster: cluster.to_owned(),
                    settings,
                    connection,
                    fenced: AtomicBool::new(false),
                    pools: Mutex::default(),
                });
                slots.insert(key, Slot::Open(session.clone()));
                Ok(session)
            }
            Err(errno) => Err(not_connected(cluster, &settings, errno)),
        };
        drop(slots);
        self.changed.notify_all();
        result
    }
}

/// User and key: of the secrets, else of the configuration. `None`: neither has any.
pub(super) fn credentials(cluster: &RbdCluster, secrets: &Secrets) -> Result<Option<(String, Option<Key>)>> {
    match (secrets.get("userID"), secrets.get("userKey")) {
        (Some(user), Some(key)) => return Ok(Some((user_name(user), Some(Key(key.trim().to_owned()))))),
        (None, None) => {}
        (None, _) => return Err(Error::invalid("secrets[\"userID\"]", "is missing; userKey is there")),
        (_, None) => return Err(Error::invalid("secrets[\"userKey\"]", "is missing; userID is there")),
    }
    let Some(user) = &cluster.user else {
        // A ceph.conf alone says all: the administrator's own way.
        return Ok(cluster.conf.as_ref().map(|_| ("admin".into(), None)));
    };
    let key = match &cluster.key_file {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|e| Error::io(format!("reading keyFile {}", file.display()), e))?;
            Some(Key(key_in(&text)
                .ok_or_else(|| Error::invalid("keyFile", format!("{} holds no key", file.display())))?))
        }
    };
    Ok(Some((user_name(user), key)))
}

/// The user without `client.`, which some secrets have.
fn user_name(text: &str) -> String {
    text.trim().trim_start_matches("client.").to_owned()
}

/// The key in a file that has it alone, or as a keyring (`key = ...`).
pub(super) fn key_in(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("key")?.trim().strip_prefix('='));
    let key = line.unwrap_or_else(|| text.trim()).trim();
    (!key.is_empty() && !key.contains(char::is_whitespace)).then(|| key.to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_alone_and_in_a_keyring() {
        assert_eq!(key_in("AQ==\n").as_deref(), Some("AQ=="));
        assert_eq!(key_in("[client.admin]\n\tkey = AQ==\n\tcaps mon = \"x\"\n").as_deref(), Some("AQ=="));
        assert_eq!(key_in("two words"), None);
        assert_eq!(key_in(""), None);
    }
}
