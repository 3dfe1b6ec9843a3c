//! One poller for all that wait: a request a round tells every waiter how its volume (or snapshot) is. It is quick while
//! something is young, slow when not, and asks nothing when nobody waits.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use super::answer::{CinderBackup, CinderSnapshot, CinderVolume, Thing};
use super::cloud::{Ask, Cloud, Service};
use super::errors::Fault;
use super::listed::Listed;
use super::session::LISTS_BY_TIME;
use super::status::advice;
use crate::{Ctx, Error, Result};

/// Before the first round: nothing is done at once.
const FIRST: Duration = Duration::from_millis(100);
/// Between two rounds while something is young.
const QUICK: Duration = Duration::from_millis(200);
/// The same when the rounds themselves take long: a server that is busy is spared.
const BUSY: Duration = Duration::from_millis(250);
/// So long something is young.
const YOUNG: Duration = Duration::from_secs(10);
/// The longest pause between two rounds.
const SLOW: Duration = Duration::from_secs(5);
/// What no list has shown for so long is asked for by itself.
const UNSEEN: Duration = Duration::from_secs(3);
/// What changed so long before a waiter came is listed, too: clocks of two machines of one cloud differ.
const BEFORE: SignedDuration = SignedDuration::from_secs(5);
/// Who waits for so long is told what an administrator can do.
const SOON: Duration = Duration::from_secs(5);
/// Entries of a page.
const PAGE: usize = 500;
/// So many are asked for by themselves in a round.
const SINGLY: usize = 16;
/// How long a round waits for one of them: the others are not kept waiting.
const ONE: Duration = Duration::from_secs(5);

/// Something that is waited for.
pub(super) trait Watched: Thing {
    /// Its poller.
    fn watch(cloud: &Cloud) -> &Watch<Self>;
}

impl Watched for CinderVolume {
    fn watch(cloud: &Cloud) -> &Watch<Self> {
        &cloud.volumes
    }
}

impl Watched for CinderSnapshot {
    fn watch(cloud: &Cloud) -> &Watch<Self> {
        &cloud.snapshots
    }
}

impl Watched for CinderBackup {
    fn watch(cloud: &Cloud) -> &Watch<Self> {
        &cloud.backups
    }
}

/// What one round has found.
pub(super) struct Round<T> {
    begun: Instant,
    /// By id.
    pub(super) seen: HashMap<String, T>,
    gone: HashSet<String>,
    /// By id: what is wrong with one harms no other.
    failed: HashMap<String, Error>,
    /// The list itself failed.
    all: Option<Error>,
}

impl<T> Round<T> {
    fn new(begun: Instant) -> Self {
        Self { begun, seen: HashMap::new(), gone: HashSet::new(), failed: HashMap::new(), all: None }
    }
}

/// The poller of one kind of thing.
pub(super) struct Watch<T> {
    waiting: Mutex<Waiting>,
    rounds: watch::Sender<Arc<Round<T>>>,
    came: Notify,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    by: HashMap<u64, Waiter>,
    running: bool,
}

#[derive(Clone)]
struct Waiter {
    id: String,
    since: Timestamp,
    begun: Instant,
    all: bool,
}

/// What is waited for.
pub(super) struct For<'a> {
    pub(super) id: &'a str,
    /// The cloud's time from which on changes matter.
    pub(super) since: Timestamp,
    /// Whether the round has to show others that changed as well.
    pub(super) all: bool,
}

impl<T> Default for Watch<T> {
    fn default() -> Self {
        let rounds = watch::Sender::new(Arc::new(Round::new(Instant::now())));
        Self { waiting: Mutex::default(), rounds, came: Notify::new() }
    }
}

impl<T> Watch<T> {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many wait.
    pub(super) fn waiters(&self) -> usize {
        self.lock().by.len()
    }
}

/// Strikes a waiter off when it goes, however it goes.
struct Place<'a, T> {
    watch: &'a Watch<T>,
    number: u64,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.watch.lock().by.remove(&self.number);
    }
}

impl Cloud {
    /// Waits until `judge` has an answer about a thing; it is shown the thing as of a round that began after this call
    /// (`None`: it is gone), and the round. The operation's limit is [`Ctx::check`]'s.
    pub(super) async fn until<T: Watched, R>(
        self: &Arc<Self>,
        ctx: &Ctx,
        what: &For<'_>,
        judge: impl Fn(Option<&T>, &Round<T>) -> Option<Result<R>>,
    ) -> Result<R> {
        let (begun, stage) = (Instant::now(), ctx.current_stage());
        let watch = T::watch(self);
        let mut rounds = watch.rounds.subscribe();
        let _place = self.enter::<T>(what, begun);
        loop {
            ctx.check()?;
            // Woken now and then also when no round ends, for the limit.
            let _ = tokio::time::timeout(Duration::from_secs(1), rounds.changed()).await;
            let round = rounds.borrow_and_update().clone();
            if round.begun < begun {
                continue;
            }
            if let Some(error) = round.failed.get(what.id).or(round.all.as_ref()) {
                if matches!(error, Error::Denied(_) | Error::Invalid { .. }) {
                    return Err(error.clone());
                }
                // The limit's error says it then.
                ctx.stage(format!("waiting for Cinder; the last look failed: {error}"));
                continue;
            }
            let verdict = match round.seen.get(what.id) {
                Some(thing) => judge(Some(thing), &round),
                None if round.gone.contains(what.id) => judge(None, &round),
                None => None,
            };
            if let Some(verdict) = verdict {
                return verdict;
            }
            // Who gives up now is told what it is stuck in.
            let stuck = round.seen.get(what.id).filter(|_| begun.elapsed() > SOON);
            if let Some(advice) = stuck.and_then(advice).filter(|_| !stage.contains("--state")) {
                ctx.stage(format!("{stage} ({advice})"));
            }
        }
    }

    fn enter<'a, T: Watched>(self: &'a Arc<Self>, what: &For<'_>, begun: Instant) -> Place<'a, T> {
        let watch = T::watch(self);
        let mut waiting = watch.lock();
        let number = waiting.next;
        waiting.next += 1;
        let waiter = Waiter { id: what.id.to_owned(), since: what.since, begun, all: what.all };
        waiting.by.insert(number, waiter);
        if waiting.running {
            watch.came.notify_one();
        } else {
            waiting.running = true;
            tokio::spawn(poll::<T>(self.clone()));
        }
        Place { watch, number }
    }

    /// One round: a single thing is asked for by its id, several by a list of what has changed.
    async fn look<T: Watched>(self: &Arc<Self>, waiters: &[Waiter]) -> Round<T> {
        let mut round = Round::new(Instant::now());
        let ids: HashSet<&str> = waiters.iter().map(|waiter| waiter.id.as_str()).collect();
        let alone = ids.len() == 1 && !waiters.iter().any(|waiter| waiter.all);
        if !alone && let Some(since) = waiters.iter().map(|waiter| waiter.since).min() {
            let since = since.saturating_sub(BEFORE).unwrap_or(since);
            match self.changed::<T>(since).await {
                Ok(listed) => {
                    round.seen =
                        listed.good.into_iter().map(|thing| (thing.id().to_owned(), thing)).collect();
                    round.failed = listed.damaged.into_iter().collect();
                }
                Err(fault) => {
                    round.all = Some(fault.doing(&format!("listing {}", T::MANY)));
                    return round;
                }
            }
        }
        let unseen = waiters.iter().filter(|w| !round.seen.contains_key(&w.id));
        let late: HashSet<String> =
            unseen.filter(|w| alone || w.begun.elapsed() > UNSEEN).map(|w| w.id.clone()).collect();
        self.look_singly(late, &mut round).await;
        round
    }

    /// Asks for some by themselves, all at once. One whose answer is an error or late is noted as that.
    async fn look_singly<T: Watched>(self: &Arc<Self>, ids: HashSet<String>, round: &mut Round<T>) {
        let mut asked = tokio::task::JoinSet::new();
        for id in ids.into_iter().take(SINGLY) {
            let cloud = self.clone();
            asked.spawn(async move {
                let looked = tokio::time::timeout(ONE, cloud.one::<T>(&id)).await;
                let late = || Fault::Lost(format!("not in {} s", ONE.as_secs()));
                let looked = looked.unwrap_or_else(|_| Err(late()));
                (looked.map_err(|fault| fault.doing(&format!("asking for {} {id}", T::ONE))), id)
            });
        }
        while let Some(Ok((looked, id))) = asked.join_next().await {
            match looked {
                Ok(Some(thing)) => drop(round.seen.insert(id, thing)),
                Ok(None) => drop(round.gone.insert(id)),
                Err(error) => drop(round.failed.insert(id, error)),
            }
        }
    }

    /// One thing by its id; `None`: there is none.
    pub(super) async fn one<T: Thing>(&self, id: &str) -> Result<Option<T>, Fault> {
        match self.send(Ask::get(Service::Volume, format!("{}/{id}", T::MANY))).await {
            Ok(mut value) => match parsed::<T>(value[T::ONE].take())? {
                thing if thing.id() == id => Ok(Some(thing)),
                other => Err(Fault::Lost(format!("the answer is about {:?}", other.id()))),
            },
            Err(fault) if fault.is_gone(id) => Ok(None),
            Err(fault) => Err(fault.unless_gone(id)),
        }
    }

    /// Asks Cinder to delete a thing that is not being deleted already; whether it is gone now.
    pub(super) async fn ask_delete<T: Thing>(&self, id: &str) -> Result<bool, Fault> {
        match self.send(Ask::delete(Service::Volume, format!("{}/{id}", T::MANY))).await {
            Ok(_) => Ok(false),
            Err(fault) if fault.is_gone(id) => Ok(true),
            // An earlier call, or the first sending of this request, has begun it.
            Err(fault) if fault.is(400) => match self.one::<T>(id).await? {
                None => Ok(true),
                Some(thing) if thing.status() == "deleting" => Ok(false),
                Some(_) => Err(fault),
            },
            Err(fault) => Err(fault),
        }
    }

    /// What has changed since a time, as far as Cinder can tell; else all.
    async fn changed<T: Thing>(&self, since: Timestamp) -> Result<Listed<T>, Fault> {
        let by_time =
            self.connected().await?.minor(Service::Volume) >= LISTS_BY_TIME && T::MANY == CinderVolume::MANY;
        let filter = if by_time {
            format!("updated_at=gte:{}", since.strftime("%Y-%m-%dT%H:%M:%S"))
        } else {
            String::new()
        };
        self.list(&filter).await
    }

    /// All things that a filter (a query without its first sign) lets through, page by page.
    pub(super) async fn list<T: Thing>(&self, filter: &str) -> Result<Listed<T>, Fault> {
        let mut all = Listed::default();
        let mut marker = String::new();
        loop {
            let path = format!("{}/detail?limit={PAGE}&{filter}{marker}", T::MANY);
            let mut value = match self.send(Ask::get(Service::Volume, path)).await {
                // The marker was deleted meanwhile: begin again.
                Err(fault) if !marker.is_empty() && (fault.is(404) || fault.is(400)) => {
                    (all, marker) = (Listed::default(), String::new());
                    continue;
                }
                other => other?,
            };
            let page: Vec<Value> = parsed(value[T::MANY].take())?;
            let last = page.last().and_then(|last| last["id"].as_str()).map(|id| format!("&marker={id}"));
            let more = value[format!("{}_links", T::MANY)].is_array();
            page.into_iter().for_each(|entry| all.add(entry));
            match last.filter(|_| more) {
                Some(last) => marker = last,
                None => return Ok(all),
            }
        }
    }
}

/// A part of an answer in its type.
pub(super) fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Fault> {
    serde_json::from_value(value).map_err(|e| Fault::Lost(format!("the answer has another form: {e}")))
}

async fn poll<T: Watched>(cloud: Arc<Cloud>) {
    let watch = T::watch(&cloud);
    tokio::time::sleep(FIRST).await;
    loop {
        let waiters: Vec<Waiter> = {
            let mut waiting = watch.lock();
            if waiting.by.is_empty() {
                waiting.running = false;
                return;
            }
            waiting.by.values().cloned().collect()
        };
        let begun = Instant::now();
        cloud.counts.polls.fetch_add(1, Ordering::Relaxed);
        let round = cloud.look::<T>(&waiters).await;
        watch.rounds.send_replace(Arc::new(round));
        let youngest = waiters.iter().map(|waiter| waiter.begun.elapsed()).min().unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(pace(youngest, begun.elapsed())) => {}
            () = watch.came.notified() => tokio::time::sleep(QUICK).await,
        }
    }
}

/// The pause before the next round, after one that took so long.
fn pace(youngest: Duration, took: Duration) -> Duration {
    if youngest < YOUNG { (took * 2).clamp(QUICK, BUSY) } else { (youngest / 20).clamp(QUICK, SLOW) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_quick_while_something_is_young() {
        let soon = Duration::from_millis(50);
        assert_eq!(pace(Duration::ZERO, soon), QUICK);
        assert_eq!(pace(Duration::from_secs(9), soon), QUICK);
        assert_eq!(pace(Duration::from_secs(9), Duration::from_secs(2)), BUSY);
        assert_eq!(pace(Duration::from_secs(60), soon), Duration::from_secs(3));
        assert_eq!(pace(Duration::from_secs(3600), soon), SLOW);
    }
}
