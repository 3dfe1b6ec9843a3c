//! The connections to one share. Nobody waits here longer than until the moment that the caller names, and no lock is
//! held while a connection is made, used or ended.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Mounted;
use super::client::{Endpoint, Fault, Fh, Outcome, Session, Version, connect, resolve};
use super::config::{NfsClient, NfsConfig, NfsShare};
use super::local::LocalSession;
use super::params::version_of;

/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(60);
/// How many connections are kept that nobody uses.
const IDLE_MAX: usize = 16;

/// What was found out when connecting, for the next connections.
#[derive(Debug, Clone)]
struct Known {
    version: Version,
    address: std::net::SocketAddr,
    shortcut: Option<(u16, Fh)>,
}

/// How many calls wait for a connection to a server that has just been found dead; more are told so at once, so that they
/// take no threads of other shares.
const WAITERS: usize = 8;
/// How long a server counts as such.
const DEAD: Duration = Duration::from_secs(10);

/// Who connects: one at a time, for a server takes only some at once and makes the others wait for seconds.
#[derive(Default)]
struct Turn {
    taken: bool,
    /// How many wait for it.
    waiting: usize,
    /// The last connection that could not be made.
    failure: Option<Failure>,
}

/// When a connection could not be made, and why.
struct Failure {
    at: Instant,
    why: String,
}

/// Connections to one share.
pub(super) struct Pool {
    spec: NfsShare,
    endpoint: Endpoint,
    idle: Mutex<Vec<(Box<dyn Session>, Instant)>>,
    known: Mutex<Option<Known>>,
    turn: Mutex<Turn>,
    changed: Condvar,
    /// Connects by a mounted directory.
    mounted: Option<Arc<dyn Mounted>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn new(spec: NfsShare, config: &NfsConfig, mounted: Option<Arc<dyn Mounted>>) -> Self {
        let endpoint = Endpoint {
            path: spec.path.clone(),
            port: spec.port,
            mount_port: spec.mount_port,
            uid: spec.uid,
            gid: spec.gid,
            privileged: !spec.any_port,
            timeout: config.call_timeout,
            until: Instant::now(),
            shortcut: None,
        };
        Self {
            spec,
            endpoint,
            idle: Mutex::default(),
            known: Mutex::default(),
            turn: Mutex::default(),
            changed: Condvar::new(),
            mounted,
        }
    }

    /// Whether calls go to a server by the network, and handles are the server's.
    pub(super) fn is_network(&self) -> bool {
        self.mounted.is_none() && self.spec.client == NfsClient::User
    }

    /// How many connections wait for work.
    pub(super) fn idle(&self) -> usize {
        lock(&self.idle).len()
    }

    /// A connection: one that waits for work, or a new one.
    pub(super) fn session(&self, until: Instant) -> Outcome<Box<dyn Session>> {
        let mut session = match self.waiting() {
            Some(session) => session,
            None => self.in_turn(until)?,
        };
        session.until(until);
        Ok(session)
    }

    fn waiting(&self) -> Option<Box<dyn Session>> {
        let now = Instant::now();
        let mut idle = lock(&self.idle);
        let fresh = |(_, since): &(_, Instant)| now.duration_since(*since) < IDLE;
        let (good, old): (Vec<_>, Vec<_>) = idle.drain(..).partition(fresh);
        *idle = good;
        let session = idle.pop();
        drop(idle);
        drop(old);
        session.map(|(session, _)| session)
    }

    /// A connection that can be used again.
    pub(super) fn give_back(&self, session: Box<dyn Session>) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push((session, Instant::now()));
        }
    }

    /// A connection broke: those that wait are of the same server.
    pub(super) fn forget(&self) {
        let broken = std::mem::take(&mut *lock(&self.idle));
        drop(broken);
    }

    /// What was found out when connecting is not true any more.
    pub(super) fn forget_server(&self) {
        *lock(&self.known) = None;
        self.forget();
    }

    /// A new connection, or one that was given back while this call waited for its turn. What has failed meanwhile has
    /// failed for this call, too.
    fn in_turn(&self, until: Instant) -> Outcome<Box<dyn Session>> {
        let asked = Instant::now();
        let mut turn = lock(&self.turn);
        let dead = turn.failure.as_ref().filter(|failure| failure.at.elapsed() < DEAD);
        if let Some(failure) = dead.filter(|_| turn.taken && turn.waiting >= WAITERS) {
            return Err(Fault::Lost(std::io::Error::other(failure.why.clone())));
        }
        turn.waiting += 1;
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(turn, left, |turn| turn.taken);
        turn = waited.unwrap_or_else(PoisonError::into_inner).0;
        turn.waiting -= 1;
        if turn.taken {
            return Err(Fault::Slow(self.endpoint.timeout));
        }
        if let Some(failure) = turn.failure.as_ref().filter(|failure| failure.at > asked) {
            return Err(Fault::Lost(std::io::Error::other(failure.why.clone())));
        }
        turn.taken = true;
        drop(turn);
        let connected = match self.waiting() {
            Some(session) => Ok(session),
            None => self.connect(until),
        };
        tracing::debug!(server = %self.spec.server, share = %self.spec.path, waited = ?asked.elapsed(), ok = connected.is_ok(), "connecting");
        let mut turn = lock(&self.turn);
        turn.taken = false;
        turn.failure =
            connected.as_ref().err().map(|fault| Failure { at: Instant::now(), why: fault.to_string() });
        drop(turn);
        self.changed.notify_all();
        connected
    }

    fn connect(&self, until: Instant) -> Outcome<Box<dyn Session>> {
        if let (Some(dir), NfsClient::Local) = (&self.spec.local, self.spec.client) {
            return Ok(Box::new(LocalSession::new(dir.clone())));
        }
        if let Some(mounted) = &self.mounted {
            return super::remote::connect(mounted.as_ref(), &self.spec, self.endpoint.timeout, until);
        }
        let known = lock(&self.known).clone();
        if let Some(known) = known {
            let endpoint = Endpoint { shortcut: known.shortcut, until, ..self.endpoint.clone() };
            match connect(known.version, known.address, &endpoint) {
                Err(Fault::Lost(_) | Fault::NoVersion(_)) => *lock(&self.known) = None,
                other => return other,
            }
        }
        let (session, known) = self.find_server(until)?;
        tracing::info!(server = %self.spec.server, share = %self.spec.path, version = session.version(), address = %known.address.ip(), "connected");
        *lock(&self.known) = Some(known);
        Ok(session)
    }

    /// Tries all addresses of the server, and the versions of the protocol from the newest.
    fn find_server(&self, until: Instant) -> Outcome<(Box<dyn Session>, Known)> {
        let addresses = resolve(&self.spec.server, until).map_err(Fault::Lost)?;
        let versions = match self.spec.version.or_else(|| version_of(&self.spec.mount_options)) {
            Some(version) => vec![version],
            None => vec![Version::V42, Version::V41, Version::V3],
        };
        let mut last = Fault::Lost(std::io::Error::other("the server's name has no address"));
        let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        for address in addresses {
            // None takes the time of those that come after it.
            let now = Instant::now();
            let share = until.saturating_duration_since(now) / left.max(1);
            let endpoint = Endpoint { until: now + share, ..self.endpoint.clone() };
            left -= 1;
            for version in &versions {
                match connect(*version, address, &endpoint) {
                    Ok(session) => {
                        let shortcut = session.shortcut();
                        return Ok((session, Known { version: *version, address, shortcut }));
                    }
                    // Who does not answer will not do so in another version.
                    Err(fault) if fault.is_silence() => {
                        last = fault;
                        break;
                    }
                    // Where nobody listens for version 4, somebody may for version 3, at the port mapper.
                    Err(fault @ (Fault::NoVersion(_) | Fault::Lost(_) | Fault::Denied(_))) => last = fault,
                    Err(fault) => return Err(fault),
                }
            }
        }
        Err(last)
    }
}
