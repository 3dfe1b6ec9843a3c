//! One share: its connections, the handles of the driver's own directories, and the steps all changes are made of.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::client::{
    Attr, Cursor, Entry, Fault, Fh, Kind, Node, Outcome, Session, Set, Space, Special, Stamp, Status, Time,
    found, random,
};
use super::config::{NfsConfig, NfsShare};
use super::errors::failed;
use super::handle::ShareId;
use super::identity::hex;
use super::pool::{Pool, lock};
use super::renames::Renames;
use super::state::State;
use crate::{Error, Result};

/// The driver's directory at the share's root.
pub(super) const OWN: &str = ".volumectl";
/// The first pause before another try.
const PAUSE: Duration = Duration::from_millis(20);
/// How often a call is made anew that the server could not carry out for a reason of its own. Ganesha answers so also
/// where two clients rename and remove one name at the same moment.
const FAULTS: u32 = 4;
/// How often a directory is listed anew because it was changed meanwhile.
const LISTINGS: usize = 16;

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
    /// Who may change a record.
    pub(super) changes: Fh,
    /// What is being removed.
    pub(super) trash: Fh,
    /// Snapshots, a directory each.
    pub(super) snapshots: Fh,
    /// Records of volumes whose directory was kept.
    pub(super) retained: Fh,
}

/// One share.
pub(super) struct Share {
    pub(super) id: ShareId,
    pub(super) spec: NfsShare,
    /// It is one of the configuration's; else callers have named it.
    pub(super) configured: bool,
    pool: Pool,
    pub(super) state: State,
    own: Mutex<Option<Own>>,
    renames: Renames,
    /// Calls that were sent.
    calls: AtomicU64,
    /// For how long passing troubles are waited out.
    patience: Duration,
    /// Whether the server gives a directory another handle when it is moved.
    moving: Mutex<Option<bool>>,
    /// Ends the process, as far as a test is concerned.
    #[cfg(test)]
    pub(super) death: Option<super::tests::Death>,
}

impl Share {
    pub(super) fn new(
        id: ShareId,
        spec: NfsShare,
        config: &NfsConfig,
        mounted: Option<Arc<dyn super::Mounted>>,
    ) -> Self {
        Self {
            configured: matches!(id, ShareId::Named(_)),
            id,
            state: State::default(),
            pool: Pool::new(spec.clone(), config, mounted),
            spec,
            own: Mutex::default(),
            renames: Renames::default(),
            calls: AtomicU64::new(0),
            patience: config.call_timeout,
            moving: Mutex::default(),
            #[cfg(test)]
            death: config.death.clone(),
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
        self.pool.idle()
    }

    /// A fault as an error that says what was being done.
    pub(super) fn fail(&self, doing: &str) -> impl FnOnce(Fault) -> Error + use<> {
        let (doing, place) = (doing.to_owned(), self.place());
        move |fault| failed(&doing, &place, &fault)
    }

    /// Makes a call, again after passing troubles; it is over when the time of one call is. All calls here can be
    /// repeated: what they make has names that nobody else uses.
    pub(super) fn ask<T>(&self, mut call: impl FnMut(&mut dyn Session) -> Outcome<T>) -> Outcome<T> {
        let (until, mut pause, mut faults) = (Instant::now() + self.patience, PAUSE, FAULTS);
        loop {
            let outcome = self.pool.session(until).and_then(|mut session| {
                self.calls.fetch_add(1, Ordering::Relaxed);
                #[cfg(test)]
                super::tests::Death::before(self.death.as_ref())?;
                let sent = self.renames.beside(until, || call(&mut *session));
                let outcome = sent.unwrap_or(Err(Fault::Slow(self.patience)));
                #[cfg(test)]
                super::tests::Death::after(self.death.as_ref())?;
                match &outcome {
                    Err(fault) if fault.is_broken() => self.pool.forget(),
                    _ => self.pool.give_back(session),
                }
                outcome
            });
            let again = |fault: &Fault| fault.is_passing() || (fault.is(Status::SERVER_FAULT) && faults > 0);
            match outcome {
                Err(fault) if again(&fault) && Instant::now() + pause < until => {
                    faults -= u32::from(fault.is(Status::SERVER_FAULT));
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
                other => {
                    self.note(&other);
                    return other;
                }
            }
        }
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
            changes: self.ensure(&dir, b"changes")?,
            trash: self.ensure(&dir, b"trash")?,
            snapshots: self.ensure(&dir, b"snapshots")?,
            retained: self.ensure(&dir, b"retained")?,
            root,
        };
        // Where nodes have the share's content on their own disks, there is no protocol to agree on.
        if self.spec.local.is_none() {
            super::readback::ensure(self, &dir, &own);
        }
        *lock(&self.own) = Some(own.clone());
        self.take_for_known();
        Ok(own)
    }

    /// Runs work that uses the own directories, again if their handles turn out to be old.
    pub(super) fn with_own<T>(&self, work: impl Fn(&Own) -> Outcome<T>) -> Outcome<T> {
        match work(&self.own()?) {
            Err(fault) if fault.is(Status::STALE) || fault.is(Status::BAD_HANDLE) => {
                *lock(&self.own) = None;
                self.pool.forget_server();
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
        let remove = || found(self.ask(|s| s.remove(dir, name))).map(drop);
        match remove() {
            // It was replaced or removed between the server's own look and its removal.
            Err(fault) if fault.is(Status::STALE) => remove(),
            other => other,
        }
    }

    /// Renames; a repeat after a lost answer finds the old name gone, so that is not told from success here.
    pub(super) fn rename(&self, from: &Fh, name: &[u8], to: &Fh, new: &[u8]) -> Outcome<()> {
        let until = Instant::now() + self.patience;
        let renamed = self.renames.alone(until, || self.ask(|s| s.rename(from, name, to, new)));
        renamed.unwrap_or(Err(Fault::Slow(self.patience)))
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
        let (mut all, mut from, mut anew) = (Vec::new(), Some(Cursor::default()), LISTINGS);
        while let Some(cursor) = from {
            match self.ask(|s| s.list(dir, cursor)) {
                Ok(page) => {
                    all.extend(page.entries);
                    from = page.next;
                }
                // It was changed so much that the server cannot go on, or an entry has gone meanwhile.
                Err(fault)
                    if [Status::BAD_COOKIE, Status::NO_ENTRY].iter().any(|s| fault.is(*s)) && anew > 0 =>
                {
                    all.clear();
                    anew -= 1;
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

    /// What a file is known by.
    pub(super) fn identity(&self, fh: &Fh) -> Outcome<Vec<u8>> {
        if self.pool.is_network() { Ok(fh.clone()) } else { self.ask(|s| s.identity(fh)) }
    }

    /// By what files are known: `3` or `4` for the handles of that version, `stat`. Two kinds cannot be compared.
    pub(super) fn kind_of_handles(&self) -> Outcome<String> {
        if !self.pool.is_network() {
            return Ok("stat".into());
        }
        let session = self.pool.session(Instant::now() + self.patience)?;
        let kind = session.version().chars().take(1).collect();
        self.pool.give_back(session);
        Ok(kind)
    }

    /// Whether the server gives a directory another handle when it is moved, which would say nothing then. Tried once.
    pub(super) fn handles_move(&self, own: &Own) -> Outcome<bool> {
        if let Some(known) = *lock(&self.moving) {
            return Ok(known);
        }
        if !self.pool.is_network() {
            return Ok(false);
        }
        let (one, two) = (draft_name(), draft_name());
        let set = Set { mode: Some(0o700), ..Set::default() };
        let made = self.make(&own.tmp, one.as_bytes(), &Special::Directory, &set)?;
        let before = self.identity(&made.fh)?;
        self.rename(&own.tmp, one.as_bytes(), &own.trash, two.as_bytes())?;
        // Another driver may have swept it away already: then the next call tries again.
        let Some(moved) = self.look(&own.trash, two.as_bytes())? else { return Ok(false) };
        let after = self.identity(&moved.fh)?;
        found(self.ask(|s| s.remove_dir(&own.trash, two.as_bytes())))?;
        if before != after {
            tracing::warn!(share = %self.place(), "the server's file handles change with a file's place: directories are known by their numbers only");
        }
        *lock(&self.moving) = Some(before != after);
        Ok(before != after)
    }

    /// Moves something to the trash under a name of its own; not there is fine.
    pub(super) fn discard(&self, own: &Own, dir: &Fh, name: &[u8]) -> Outcome<()> {
        found(self.rename(dir, name, &own.trash, draft_name().as_bytes())).map(drop)
    }
}

/// A name that nobody else uses.
pub(super) fn draft_name() -> String {
    hex(&random::<12>())
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
