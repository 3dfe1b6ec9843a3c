//! Work behind the calls: images in the trash are removed, deep clones are flattened, intents are struck off.
//!
//! What is to be done is noted in the cluster (the trash itself, and the map of intents), so that it goes on after a
//! restart; the queues here are only the order of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::config::RbdConfig;
use super::ffi::Errno;
use super::purge::purge_one;
use super::record::{Found, Intent, VOLUME, encode};
use super::site::{INTENTS, Site, creation};
use crate::{Gauge, Result};

/// How long an intent may stay after its image is complete.
const STRIKE: Duration = Duration::from_millis(500);

/// A place, an image's id, and its bytes or its name.
struct Job {
    site: Site,
    image: String,
    bytes: u64,
    name: String,
}

#[derive(Default)]
struct State {
    purge: VecDeque<Job>,
    /// Image ids that are queued or being purged.
    purging: BTreeMap<String, u64>,
    /// By image id, those that cannot be purged yet: their clones live.
    blocked: BTreeMap<String, Job>,
    /// Something was purged since the blocked ones were tried.
    freed: bool,
    flatten: VecDeque<Job>,
    /// By image id.
    progress: BTreeMap<String, Flattening>,
    intents: Vec<(Site, String)>,
    /// Calls that are being worked on for somebody who waits.
    calls: usize,
    started: bool,
    stopped: bool,
}

struct Flattening {
    name: String,
    done: u64,
    total: u64,
    since: Instant,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    workers: usize,
    owner: String,
    purged: AtomicU64,
    flattened: AtomicU64,
}

/// The queues and their workers.
pub(super) struct Tasks {
    shared: Arc<Shared>,
    /// How many things sweeps could not do.
    pub(super) failing: AtomicUsize,
}

/// A call that somebody waits for.
pub(super) struct Call {
    shared: Arc<Shared>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.calls -= 1;
        if state.calls == 0 && !state.purge.is_empty() {
            drop(state);
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

impl Tasks {
    pub(super) fn new(config: &RbdConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                workers: config.purge_workers.max(1),
                owner: config.owner.clone(),
                purged: AtomicU64::new(0),
                flattened: AtomicU64::new(0),
            }),
            failing: AtomicUsize::new(0),
        }
    }

    /// An image is in the trash: remove it. One that is queued is not queued twice.
    pub(super) fn purge(&self, site: &Site, image: &str, bytes: u64) {
        let mut state = self.shared.lock();
        if state.purging.insert(image.to_owned(), bytes).is_none() {
            let job = Job { site: site.clone(), image: image.into(), bytes, name: String::new() };
            state.purge.push_back(job);
            self.start(state);
        }
    }

    /// An image shares too much with too many: copy what it shares. Noted in the cluster first.
    pub(super) fn flatten(&self, site: &Site, image: &str, name: &str) -> Result<()> {
        if self.shared.lock().progress.contains_key(image) {
            return Ok(());
        }
        let note = Intent {
            id: site.handle(name).to_string(),
            name: name.to_owned(),
            cluster: self.shared.owner.clone(),
            since: Timestamp::now(),
        };
        site.note(INTENTS, &format!("flatten/{image}"), &note)?;
        let mut state = self.shared.lock();
        let entry = Flattening { name: name.to_owned(), done: 0, total: 0, since: Instant::now() };
        if state.progress.insert(image.to_owned(), entry).is_none() {
            let job = Job { site: site.clone(), image: image.into(), bytes: 0, name: name.into() };
            state.flatten.push_back(job);
            self.start(state);
        }
        Ok(())
    }

    /// The image of an intent is complete: strike it off soon, many at once.
    pub(super) fn intent_done(&self, site: &Site, name: &str) {
        let mut state = self.shared.lock();
        state.intents.push((site.clone(), creation(name)));
        self.start(state);
    }

    /// How far the flattening of an image is, in words. `None`: it is not flattened.
    pub(super) fn flattening(&self, image: &str) -> Option<String> {
        let state = self.shared.lock();
        let it = state.progress.get(image)?;
        let percent = (it.done * 100).checked_div(it.total).unwrap_or(0);
        Some(format!(
            "flattening, {percent} % ({} of {} objects) after {} s",
            it.done,
            it.total,
            it.since.elapsed().as_secs()
        ))
    }

    /// Waits until an image is purged or blocked; whether it is purged.
    pub(super) fn wait_purged(&self, image: &str, limit: Duration) -> bool {
        let begun = Instant::now();
        let mut state = self.shared.lock();
        while state.purging.contains_key(image) && begun.elapsed() < limit {
            let waited = self.shared.changed.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        !state.purging.contains_key(image) && !state.blocked.contains_key(image)
    }

    /// Somebody waits for an answer while this lives: the purge holds back.
    pub(super) fn call(&self) -> Call {
        self.shared.lock().calls += 1;
        Call { shared: self.shared.clone() }
    }

    /// What is to be measured.
    pub(super) fn gauges(&self) -> Vec<Gauge> {
        let state = self.shared.lock();
        #[allow(clippy::cast_precision_loss)]
        let gauge = |name, help, value: u64| Gauge { name, help, value: value as f64 };
        let progress = state.progress.values().map(|it| it.done).sum::<u64>();
        vec![
            gauge(
                "rbd_purge_backlog",
                "Deleted images whose space is not freed yet",
                state.purging.len() as u64,
            ),
            gauge("rbd_purge_backlog_bytes", "Their provisioned bytes", state.purging.values().sum()),
            gauge(
                "rbd_purge_blocked",
                "Deleted images that wait for their clones",
                state.blocked.len() as u64,
            ),
            gauge("rbd_purged", "Images purged since the start", self.shared.purged.load(Ordering::Relaxed)),
            gauge(
                "rbd_sweep_failing",
                "Clusters, places and intents that the sweep could not look at; the log names them",
                self.failing.load(Ordering::Relaxed) as u64,
            ),
            gauge("rbd_flattening", "Clones that are or wait to be flattened", state.progress.len() as u64),
            gauge("rbd_flattening_objects_done", "Objects copied of those", progress),
            gauge(
                "rbd_flattened",
                "Clones flattened since the start",
                self.shared.flattened.load(Ordering::Relaxed),
            ),
        ]
    }

    /// Starts the workers at the first task, and wakes them.
    fn start(&self, mut state: MutexGuard<'_, State>) {
        if !state.started {
            state.started = true;
            let spawn = |name: String, work: fn(&Shared)| {
                let shared = self.shared.clone();
                let made = std::thread::Builder::new().name(name).spawn(move || work(&shared));
                if let Err(error) = made {
                    tracing::error!(%error, "no thread for background work; it is left for the next start");
                }
            };
            // One purges always, the others when nobody waits for an answer.
            spawn("rbd-purge-0".into(), |shared| purge_worker(shared, |_| true));
            for i in 1..self.shared.workers {
                spawn(format!("rbd-purge-{i}"), |shared| purge_worker(shared, |state| state.calls == 0));
            }
            spawn("rbd-flatten".into(), flatten_worker);
            spawn("rbd-intents".into(), intent_worker);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next of something; waits for it. `None`: the end.
    fn next<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(item) = take(&mut state) {
                return Some(item);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn purge_worker(shared: &Shared, may: fn(&State) -> bool) {
    while let Some(job) = shared.next(|state| may(state).then(|| state.purge.pop_front()).flatten()) {
        let removed = purge_one(&job.site, &job.image, &shared.owner);
        let mut state = shared.lock();
        state.purging.remove(&job.image);
        tracing::debug!(image = %job.image, bytes = job.bytes, ?removed, "purge");
        match removed {
            Ok(true) => {
                state.blocked.remove(&job.image);
                state.freed = true;
                shared.purged.fetch_add(1, Ordering::Relaxed);
            }
            Ok(false) => {
                state.blocked.insert(job.image.clone(), job);
            }
            Err(error) => tracing::warn!(image = %job.image, %error, "not purged; tried again later"),
        }
        state.retry_blocked();
        drop(state);
        shared.changed.notify_all();
    }
}

impl State {
    /// Once all else is purged, the parents of what was purged may be free.
    fn retry_blocked(&mut self) {
        if self.purging.is_empty() && self.freed && !self.blocked.is_empty() {
            self.freed = false;
            for (image, job) in std::mem::take(&mut self.blocked) {
                self.purging.insert(image, job.bytes);
                self.purge.push_back(job);
            }
        }
    }
}

fn flatten_worker(shared: &Shared) {
    while let Some(job) = shared.next(|state| state.flatten.pop_front()) {
        let name = job.site.handle(&job.name).spec();
        tracing::info!(image = %name, "flattening");
        match flatten_one(shared, &job) {
            Ok(()) => {
                shared.flattened.fetch_add(1, Ordering::Relaxed);
                tracing::info!(image = %name, "flattened");
            }
            Err(error) => tracing::warn!(image = %name, %error, "not flattened; tried again later"),
        }
        shared.lock().progress.remove(&job.image);
        shared.changed.notify_all();
    }
}

fn flatten_one(shared: &Shared, job: &Job) -> Result<()> {
    let mut tenth = 0;
    if job.site.header(&job.image)?.is_some() {
        let image = job.site.open(&job.image)?;
        let flattened = image.flatten(|done, total| {
            if let Some(it) = shared.lock().progress.get_mut(&job.image) {
                (it.done, it.total) = (done, total);
                let now = (done * 10).checked_div(total).unwrap_or(0);
                if now > tenth {
                    tenth = now;
                    tracing::info!(image = %it.name, percent = now * 10, "flattening");
                }
            }
        });
        match flattened {
            // Without a parent there is nothing to flatten: EINVAL.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(job.site.fail(&format!("flattening {}", job.name), errno)),
        }
        drop(image);
        note_depth(job)?;
    }
    job.site.forget(INTENTS, &[&format!("flatten/{}", job.image)])
}

/// The image stands alone now: its record says so.
fn note_depth(job: &Job) -> Result<()> {
    let Some(header) = job.site.header(&job.image)? else { return Ok(()) };
    let Some(mut found) = Found::read(&job.site.handle(&job.name), header)? else { return Ok(()) };
    found.record.depth = 0;
    job.site.update(&job.image, &[(VOLUME, &encode(&found.record)?)], &[])
}

fn intent_worker(shared: &Shared) {
    while let Some(first) = shared.next(|state| state.intents.pop()) {
        std::thread::sleep(STRIKE);
        let mut places: BTreeMap<_, (Site, Vec<String>)> = BTreeMap::new();
        let rest = std::mem::take(&mut shared.lock().intents);
        for (site, key) in std::iter::once(first).chain(rest) {
            let entry = places.entry(site.place.clone()).or_insert_with(|| (site, Vec::new()));
            entry.1.push(key);
        }
        for (site, keys) in places.into_values() {
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            if let Err(error) = site.forget(INTENTS, &keys) {
                tracing::warn!(%error, "intents stay until the next start");
            }
        }
    }
}
