//! Connections: one for each cluster and user, kept open, made anew when it breaks.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::config::{RbdCluster, RbdConfig};
use super::errors::no_libraries;
use super::ffi::{self, Settings};
use super::key::credentials;
use super::session::{Session, lock};
use crate::{Error, Result, Secrets};

/// How long a monitor or a storage daemon may take for one answer.
const ANSWER: Duration = Duration::from_secs(15);

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
            Self::Open(session) => Some(session.used()),
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
        let found = open.max_by_key(|session| session.used());
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
                    session.use_now();
                    return Ok(session.clone());
                }
                Some(Slot::Open(session)) => {
                    let why = if session.is_fenced() {
                        "the cluster fenced this client"
                    } else {
                        "the rights may have changed"
                    };
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
