//! One share: its connections, the handles of the driver's own directories, and the steps all changes are made of.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::client::{
    Attr, Cursor, Endpoint, Entry, Fault, Fh, Kind, Node, Outcome, Session, Set, Space, Special, Stamp,
    Status, Time, Version, connect, found, random, resolve,
};
use super::config::{NfsClient, NfsConfig, NfsShare};
use super::errors::failed;
use super::handle::ShareId;
use super::local::LocalSession;
use super::params::version_of;
use super::renames::Renames;
use crate::{Error, Result};

/// The driver's directory at the share's root.
pub(super) const OWN: &str = ".volumectl";
/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(60);
/// How many connections are kept that nobody uses.
const IDLE_MAX: usize = 16;
/// The first pause before another try.
const PAUSE: Duration = Duration::from_millis(20);

/// The handles of the driver's own directories.
#[derive(Debug, Clone)]
pub(super) struct Own {
    /// The share's root.
    pub(super) root: Fh,
    /// Records of volumes.
    pub(super) volumes: Fh,
    /// Records of volumes that are being made.
    pub(super) intents: Fh,
    /// Records of volumes by the hash of their directory, where that is not named like the volume.
    pub(super) paths: Fh,
    /// What is being made: published by one rename.
    pub(super) tmp: Fh,
    /// What is being removed.
    pub(super) trash: Fh,
    /// Snapshots, a directory each.
    pub(super) snapshots: Fh,
    /// Records of volumes whose directory was kept.
    pub(super) retained: Fh,
}

/// What was found out when connecting, for the next connections.
#[derive(Debug, Clone)]
struct Known {
    version: Version,
    address: std::net::SocketAddr,
    shortcut: Option<(u16, Fh)>,
}

/// A connection that could not be made: when, and why.
struct Failure {
    at: Instant,
    why: String,
}

/// One share.
pub(super) struct Share {
    pub(super) id: ShareId,
    pub(super) spec: NfsShare,
    endpoint: Endpoint,
    idle: Mutex<Vec<(Box<dyn Session>, Instant)>>,
    known: Mutex<Option<Known>>,
    /// One connects at a time: a server takes only some at once, and makes the others wait for seconds.
    connecting: Mutex<Option<Failure>>,
    own: Mutex<Option<Own>>,
    renames: Renames,
    /// Calls that were sent.
    calls: AtomicU64,
    /// For how long passing troubles are waited out.
    patience: Duration,
    /// Connects by a mounted directory.
    pub(super) mounted: Option<Arc<dyn super::Mounted>>,
    /// Ends the process, as far as a test is concerned.
    #[cfg(test)]
    pub(super) death: Option<super::tests::Death>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Share {
    pub(super) fn new(id: ShareId, spec: NfsShare, config: &NfsConfig) -> Self {
        let endpoint = Endpoint {
            path: spec.path.clone(),
            port: spec.port,
            mount_port: spec.mount_port,
            uid: spec.uid,
            gid: spec.gid,
            privileged: !spec.any_port,
            timeout: config.call_timeout,
            shortcut: None,
        };
        Self {
            id,
            spec,
            endpoint,
            idle: Mutex::default(),
            known: Mutex::default(),
            connecting: Mutex::default(),
            own: Mutex::default(),
            renames: Renames::default(),
            calls: AtomicU64::new(0),
            patience: config.call_timeout,
            mounted: None,
            #[cfg(test)]
            death: None,
        }
    }

    /// `server:/path`, for messages.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.spec.server, self.spec.path)
    }

    /// How many calls were sent.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many connections wait for work.
    pub(super) fn idle(&self) -> usize {
        lock(&self.idle).len()
    }

    /// A fault as an error that says what was being done.
    pub(super) fn fail(&self, doing: &str) -> impl FnOnce(Fault) -> Error + use<> {
        let (doing, place) = (doing.to_owned(), self.place());
        move |fault| failed(&doing, &place, &fault)
    }

    /// A connection: one that waits for work, or a new one.
    pub(super) fn session(&self) -> Outcome<Box<dyn Session>> {
        let now = Instant::now();
        {
            let mut idle = lock(&self.idle);
            idle.retain(|(_, since)| now.duration_since(*since) < IDLE);
            if let Some((session, _)) = idle.pop() {
                return Ok(session);
            }
        }
        self.in_turn()
    }

    /// A connection that can be used again.
    pub(super) fn give_back(&self, session: Box<dyn Session>) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_MAX {
            idle.push((session, Instant::now()));
        }
    }

    /// A new connection, or one that was given back while this call waited for its turn. What has failed meanwhile has
    /// failed for this call, too.
    fn in_turn(&self) -> Outcome<Box<dyn Session>> {
        let asked = Instant::now();
        let mut turn = lock(&self.connecting);
        if let Some((session, _)) = lock(&self.idle).pop() {
            return Ok(session);
        }
        if let Some(failure) = turn.as_ref().filter(|failure| failure.at > asked) {
            return Err(Fault::Lost(std::io::Error::other(failure.why.clone())));
        }
        let connected = self.connect();
        tracing::debug!(share = %self.place(), waited = ?asked.elapsed(), ok = connected.is_ok(), "connecting");
        *turn = connected.as_ref().err().map(|fault| Failure { at: Instant::now(), why: fault.to_string() });
        connected
    }

    fn connect(&self) -> Outcome<Box<dyn Session>> {
        if let (Some(dir), NfsClient::Local) = (&self.spec.local, self.spec.client) {
            return Ok(Box::new(LocalSession::new(dir.clone())));
        }
        if let Some(mounted) = &self.mounted {
            return super::remote::connect(mounted.as_ref(), &self.spec, self.patience);
        }
        let known = lock(&self.known).clone();
        if let Some(known) = known {
            let endpoint = Endpoint { shortcut: known.shortcut, ..self.endpoint.clone() };
            match connect(known.version, known.address, &endpoint) {
                Err(Fault::Lost(_) | Fault::NoVersion(_)) => *lock(&self.known) = None,
                other => return other,
            }
        }
        let (session, known) = self.find_server()?;
        tracing::info!(share = %self.place(), version = session.version(), address = %known.address.ip(), "connected");
        *lock(&self.known) = Some(known);
        Ok(session)
    }

    /// Tries all addresses of the server, and the versions of the protocol from the newest.
    fn find_server(&self) -> Outcome<(Box<dyn Session>, Known)> {
        let addresses = resolve(&self.spec.server, 0).map_err(Fault::Lost)?;
        let versions = match self.spec.version.or_else(|| version_of(&self.spec.mount_options)) {
            Some(version) => vec![version],
            None => vec![Version::V42, Version::V41, Version::V3],
        };
        let mut last = Fault::Lost(std::io::Error::other("the server's name has no address"));
        for address in addresses {
            for version in &versions {
                match connect(*version, address, &self.endpoint) {
                    Ok(session) => {
                        let shortcut = session.shortcut();
                        return Ok((session, Known { version: *version, address, shortcut }));
                    }
                    // Where nobody listens for version 4, somebody may for version 3, at the port mapper.
                    Err(fault @ (Fault::NoVersion(_) | Fault::Lost(_) | Fault::Denied(_))) => last = fault,
                    Err(fault) => return Err(fault),
                }
            }
        }
        Err(last)
    }

    /// Makes a call, again after passing troubles for as long as one call may take. All calls here can be repeated:
    /// what they make has names that nobody else uses.
    pub(super) fn ask<T>(&self, mut call: impl FnMut(&mut dyn Session) -> Outcome<T>) -> Outcome<T> {
        let (begun, mut pause) = (Instant::now(), PAUSE);
        loop {
            let outcome = self.session().and_then(|mut session| {
                self.calls.fetch_add(1, Ordering::Relaxed);
                #[cfg(test)]
                super::tests::Death::before(self.death.as_ref())?;
                let outcome = self.renames.beside(|| call(&mut *session));
                #[cfg(test)]
                super::tests::Death::after(self.death.as_ref())?;
                match &outcome {
                    Err(fault) if fault.is_broken() => self.forget(),
                    _ => self.give_back(session),
                }
                outcome
            });
            match outcome {
                Err(fault) if fault.is_passing() && begun.elapsed() + pause < self.patience => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
                other => return other,
            }
        }
    }

    /// A connection broke: those that wait are of the same server.
    fn forget(&self) {
        lock(&self.idle).clear();
    }

    /// The driver's own directories; made where they are missing.
    pub(super) fn own(&self) -> Outcome<Own> {
        if let Some(own) = lock(&self.own).clone() {
            return Ok(own);
        }
        let root = self.ask(|s| Ok(s.root()))?;
        let dir = self.ensure(&root, OWN.as_bytes())?;
        let own = Own {
            volumes: self.ensure(&dir, b"volumes")?,
            intents: self.ensure(&dir, b"intents")?,
            paths: self.ensure(&dir, b"paths")?,
            tmp: self.ensure(&dir, b"tmp")?,
            trash: self.ensure(&dir, b"trash")?,
            snapshots: self.ensure(&dir, b"snapshots")?,
            retained: self.ensure(&dir, b"retained")?,
            root,
        };
        *lock(&self.own) = Some(own.clone());
        Ok(own)
    }

    /// Runs work that uses the own directories, again if their handles turn out to be old.
    pub(super) fn with_own<T>(&self, work: impl Fn(&Own) -> Outcome<T>) -> Outcome<T> {
        match work(&self.own()?) {
            Err(fault) if fault.is(Status::STALE) || fault.is(Status::BAD_HANDLE) => {
                *lock(&self.own) = None;
                *lock(&self.known) = None;
                self.forget();
                work(&self.own()?)
            }
            other => other,
        }
    }

    /// One of the driver's own directories, made when missing.
    pub(super) fn ensure(&self, dir: &Fh, name: &[u8]) -> Outcome<Fh> {
        if let Some(node) = self.look(dir, name)? {
            return match node.attr.kind {
                Kind::Directory => Ok(node.fh),
                _ => Err(Fault::Status(Status::NOT_DIRECTORY)),
            };
        }
        let set = Set { mode: Some(0o700), ..Set::default() };
        Ok(self.make(dir, name, &Special::Directory, &set)?.fh)
    }

    /// Makes something under a name that only we use, or finds what a call whose answer was lost has made.
    pub(super) fn make(&self, dir: &Fh, name: &[u8], what: &Special<'_>, set: &Set) -> Outcome<Node> {
        match self.ask(|s| s.make(dir, name, what, set)) {
            Err(fault) if fault.is(Status::EXISTS) => self.ask(|s| s.lookup(dir, name)),
            other => other,
        }
    }

    /// What has a name in a directory.
    pub(super) fn look(&self, dir: &Fh, name: &[u8]) -> Outcome<Option<Node>> {
        found(self.ask(|s| s.lookup(dir, name)))
    }

    /// A record's bytes.
    pub(super) fn get(&self, dir: &Fh, name: &[u8]) -> Outcome<Option<(Node, Vec<u8>)>> {
        found(self.ask(|s| s.get(dir, name)))
    }

    /// Writes a small file under a name that only we use; what an attempt before may have left is replaced.
    pub(super) fn put(&self, dir: &Fh, name: &[u8], content: &[u8]) -> Outcome<Node> {
        let set = Set { mode: Some(0o600), ..Set::default() };
        match self.ask(|s| s.put(dir, name, content, &set, None)) {
            Err(fault) if fault.is(Status::EXISTS) => {
                self.remove(dir, name)?;
                self.ask(|s| s.put(dir, name, content, &set, None))
            }
            other => other,
        }
    }

    /// Replaces a small file: afterwards it has the old content or the new one.
    pub(super) fn replace(&self, own: &Own, dir: &Fh, name: &[u8], content: &[u8]) -> Outcome<()> {
        let draft = draft_name();
        self.put(&own.tmp, draft.as_bytes(), content)?;
        self.rename(&own.tmp, draft.as_bytes(), dir, name)
    }

    /// Removes a file; one that does not exist is fine.
    pub(super) fn remove(&self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        found(self.ask(|s| s.remove(dir, name))).map(drop)
    }

    /// Renames; a repeat after a lost answer finds the old name gone, so that is not told from success here.
    pub(super) fn rename(&self, from: &Fh, name: &[u8], to: &Fh, new: &[u8]) -> Outcome<()> {
        self.renames.alone(|| self.ask(|s| s.rename(from, name, to, new)))
    }

    /// Gives a file a second name. `false`: that name is taken.
    pub(super) fn link(&self, fh: &Fh, dir: &Fh, name: &[u8]) -> Outcome<bool> {
        match self.ask(|s| s.link(fh, dir, name)) {
            Ok(()) => Ok(true),
            Err(fault) if fault.is(Status::EXISTS) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// All entries of one of the driver's own directories.
    pub(super) fn entries(&self, dir: &Fh) -> Outcome<Vec<Entry>> {
        let mut all = Vec::new();
        let mut from = Some(Cursor::default());
        while let Some(cursor) = from {
            match self.ask(|s| s.list(dir, cursor)) {
                Ok(page) => {
                    all.extend(page.entries);
                    from = page.next;
                }
                // It was changed so much that the server cannot go on.
                Err(fault) if fault.is(Status::BAD_COOKIE) => {
                    all.clear();
                    from = Some(Cursor::default());
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(all)
    }

    /// Walks a path from the root, through directories only. `None`: there is nothing there. A symbolic link or file on
    /// the way: [`Status::NOT_DIRECTORY`].
    pub(super) fn walk(&self, root: &Fh, path: &str) -> Outcome<Option<Node>> {
        let mut at = root.clone();
        let mut node = None;
        for part in path.split('/') {
            let Some(next) = self.look(&at, part.as_bytes())? else { return Ok(None) };
            if next.attr.kind != Kind::Directory {
                return Err(Fault::Status(Status::NOT_DIRECTORY));
            }
            at.clone_from(&next.fh);
            node = Some(next);
        }
        Ok(node)
    }

    pub(super) fn space(&self) -> Outcome<Space> {
        self.ask(|s| {
            let root = s.root();
            s.space(&root)
        })
    }

    /// Marks something of ours as alive, and the server's time.
    pub(super) fn touch(&self, fh: &Fh) -> Outcome<Time> {
        let set = Set { mtime: Some(Stamp::Now), ..Set::default() };
        self.ask(|s| s.set(fh, &set))?;
        self.attr(fh).map(|attr| attr.mtime)
    }

    pub(super) fn attr(&self, fh: &Fh) -> Outcome<Attr> {
        self.ask(|s| s.attr(fh))
    }

    /// Moves something to the trash under a name of its own; not there is fine.
    pub(super) fn discard(&self, own: &Own, dir: &Fh, name: &[u8]) -> Outcome<()> {
        found(self.rename(dir, name, &own.trash, draft_name().as_bytes())).map(drop)
    }
}

/// A name that nobody else uses.
pub(super) fn draft_name() -> String {
    random::<12>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Splits a path into the directory that something is in, and its name.
pub(super) fn split(path: &str) -> (Option<&str>, &str) {
    path.rsplit_once('/').map_or((None, path), |(dir, name)| (Some(dir), name))
}

/// Turns an outcome into a result by a share's own words.
pub(super) trait Told<T> {
    fn told(self, share: &Share, doing: &str) -> Result<T>;
}

impl<T> Told<T> for Outcome<T> {
    fn told(self, share: &Share, doing: &str) -> Result<T> {
        self.map_err(share.fail(doing))
    }
}
