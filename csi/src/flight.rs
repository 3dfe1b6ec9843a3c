//! Single flight: one operation at a time on a volume.
//!
//! An [`Operation`] names what it holds, exclusively or shared. A call that is the same as a running one (same RPC,
//! same request without its secrets) joins it and gets its result. One that wants what another holds gets
//! [`Error::Busy`], which says who, at which stage, for how long; one that frees something ([`Class::Freeing`]) waits in
//! line instead, and who comes later and is in its way is refused. The work runs in its own task: it goes on to its end
//! when the caller has gone, so that nothing is left half done, and a retry joins it. A hold ends with the work, never
//! with the patience of a caller.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use provisioners::{Ctx, Error, Observer, Result};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

pub use crate::holds::{Class, Hold, Mode};

/// What a caller waits for beyond an operation's limit: the words with which it ends at a safe point.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often an operation that waits in line looks whether it is to end.
const LOOK: Duration = Duration::from_secs(1);

/// One operation: the RPC, its request (what makes two calls the same) and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The RPC's name.
    pub name: &'static str,
    /// The request's bytes without its secrets.
    pub request: Vec<u8>,
    /// What it holds.
    pub holds: Vec<Hold>,
}

type Answer = Result<Arc<dyn Any + Send + Sync>>;

struct Running {
    operation: Operation,
    /// What it does, or what it waits for.
    ctx: Ctx,
    answer: watch::Receiver<Option<Answer>>,
}

/// The operations of one driver. Clones share them.
#[derive(Clone)]
pub struct Flights {
    shared: Arc<Shared>,
}

struct Shared {
    running: Mutex<BTreeMap<u64, Running>>,
    next: std::sync::atomic::AtomicU64,
    ended: Notify,
    workers: [Semaphore; Class::ALL.len()],
    limit: Duration,
    observer: Option<Observer>,
}

impl Flights {
    /// At most `workers` operations of a class work at once, the others wait; each is asked to end after `limit`, and no
    /// caller waits much longer.
    pub fn new(workers: usize, limit: Duration) -> Self {
        Self::build(workers, limit, None)
    }

    /// The same with somebody watching every operation at the points where it may end.
    pub fn observed(workers: usize, limit: Duration, observer: Observer) -> Self {
        Self::build(workers, limit, Some(observer))
    }

    fn build(workers: usize, limit: Duration, observer: Option<Observer>) -> Self {
        let (running, workers) = (Mutex::default(), Class::ALL.map(|_| Semaphore::new(workers)));
        Self {
            shared: Arc::new(Shared {
                running,
                next: 0.into(),
                ended: Notify::new(),
                workers,
                limit,
                observer,
            }),
        }
    }

    /// Runs `work`, or joins the running call that is the same. Fails with [`Error::Busy`] when another operation
    /// holds what this one needs.
    pub async fn run<T, F, W>(&self, operation: Operation, work: F) -> Result<T>
    where
        T: Clone + Send + Sync + 'static,
        F: FnOnce(Ctx) -> W,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let (name, class) = (operation.name, Class::of(operation.name));
        let (mut answer, ctx) = match self.admit(operation)? {
            Admission::Join(answer, ctx) => (answer, ctx),
            Admission::Start(finish, answer) => {
                let (id, ctx) = (finish.id, finish.ctx.clone());
                let (work, shared, inner) = (work(ctx.clone()), self.shared.clone(), ctx.clone());
                tokio::spawn(async move { finish.with(shared.work(id, class, &inner, work).await) });
                (answer, ctx)
            }
        };
        let patience = self.shared.limit.saturating_sub(ctx.age()) + LAST_WORDS;
        let Ok(done) = tokio::time::timeout(patience, answer.wait_for(Option::is_some)).await else {
            return Err(Error::Deadline(format!(
                "{name}: not done in {} s, stage: {}; the work goes on, repeat the call to join it",
                ctx.age().as_secs(),
                ctx.current_stage()
            )));
        };
        match done.map(|answer| answer.clone()) {
            Ok(Some(Ok(value))) => value
                .downcast_ref::<T>()
                .cloned()
                .ok_or_else(|| Error::Internal("a joined call had another answer type".into())),
            Ok(Some(Err(error))) => Err(error),
            Ok(None) | Err(_) => Err(Error::Internal("the operation ended without an answer".into())),
        }
    }

    fn admit(&self, operation: Operation) -> Result<Admission> {
        let mut running = self.shared.lock();
        for other in running.values() {
            if other.operation.name == operation.name && other.operation.request == operation.request {
                return Ok(Admission::Join(other.answer.clone(), other.ctx.clone()));
            }
        }
        if Class::of(operation.name) != Class::Freeing
            && let Some((hold, other)) = in_the_way(running.values(), &operation)
        {
            return Err(busy(hold, other));
        }
        let (send, answer) = watch::channel(None);
        let ctx = match &self.shared.observer {
            Some(observer) => Ctx::observed(self.shared.limit, observer.clone()),
            None => Ctx::with_limit(self.shared.limit),
        };
        let id = self.shared.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        running.insert(id, Running { operation, ctx: ctx.clone(), answer: answer.clone() });
        Ok(Admission::Start(Finish { shared: self.shared.clone(), id, ctx, send, answer: None }, answer))
    }

    /// The longest that a caller waits for an operation.
    pub fn patience(&self) -> Duration {
        self.shared.limit + 2 * LAST_WORDS
    }

    /// The age of the oldest running operation.
    pub fn oldest(&self) -> Option<Duration> {
        self.shared.lock().values().map(|r| r.ctx.age()).max()
    }

    /// Waits until no operation runs. After `grace` all are asked to end at their next safe point, and the wait goes
    /// on for a tenth of it; returns how many were still running then.
    pub async fn drain(&self, grace: Duration) -> usize {
        if tokio::time::timeout(grace, self.idle()).await.is_err() {
            self.shared.lock().values().for_each(|r| r.ctx.stop());
            let _ = tokio::time::timeout(grace / 10 + Duration::from_millis(200), self.idle()).await;
        }
        self.shared.lock().len()
    }

    async fn idle(&self) {
        loop {
            let ended = self.shared.ended.notified();
            if self.shared.lock().is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work<T: Send + Sync + 'static>(
        &self,
        id: u64,
        class: Class,
        ctx: &Ctx,
        work: impl Future<Output = Result<T>>,
    ) -> Answer {
        self.turn(id, ctx).await?;
        let _permit = self.place(class, ctx).await?;
        work.await.map(|value| Arc::new(value) as Arc<dyn Any + Send + Sync>)
    }

    /// Waits until no earlier operation holds what this one needs.
    async fn turn(&self, id: u64, ctx: &Ctx) -> Result<()> {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // From here on no end is missed.
            ended.as_mut().enable();
            let waits = {
                let running = self.lock();
                let own = running.get(&id).map(|own| &own.operation);
                let other = own.and_then(|own| in_the_way(running.range(..id).map(|(_, it)| it), own));
                other.map(|(hold, other)| format!("waiting for {} of {}", other.operation.name, hold.key))
            };
            let Some(waits) = waits else { return Ok(()) };
            ctx.stage(waits);
            ctx.check()?;
            let _ = tokio::time::timeout(LOOK, ended).await;
        }
    }

    /// A place among those of a class that work at once.
    async fn place(&self, class: Class, ctx: &Ctx) -> Result<SemaphorePermit<'_>> {
        let places = &self.workers[class as usize];
        if let Ok(place) = places.try_acquire() {
            return Ok(place);
        }
        ctx.stage("waiting for a place: as many operations as may are at work");
        let patience = self.limit.saturating_sub(ctx.age());
        match tokio::time::timeout(patience, places.acquire()).await {
            Ok(place) => place.map_err(|e| Error::Internal(e.to_string())),
            Err(_) => Err(Error::Unavailable(format!(
                "as many operations as may were at work for {} s and none ended: what they wait for does not answer; see \
                 the log, and repeat the call",
                patience.as_secs()
            ))),
        }
    }
}

/// The first of some operations that holds what another needs, and what that is.
fn in_the_way<'a>(
    mut others: impl Iterator<Item = &'a Running>,
    wanted: &'a Operation,
) -> Option<(&'a Hold, &'a Running)> {
    others.find_map(|other| {
        let conflict = |hold: &&Hold| other.operation.holds.iter().any(|has| hold.conflicts(has));
        wanted.holds.iter().find(conflict).map(|hold| (hold, other))
    })
}

enum Admission {
    Join(watch::Receiver<Option<Answer>>, Ctx),
    Start(Finish, watch::Receiver<Option<Answer>>),
}

/// Ends the operation: gives the answer and lets go of what it held. Dropped without an answer (the work panicked),
/// it answers with an internal error.
struct Finish {
    shared: Arc<Shared>,
    id: u64,
    ctx: Ctx,
    send: watch::Sender<Option<Answer>>,
    answer: Option<Answer>,
}

impl Finish {
    fn with(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        // Let go first, answer second: who has the answer may start the next operation at once.
        self.shared.lock().remove(&self.id);
        let answer = self.answer.take().unwrap_or_else(|| {
            Err(Error::Internal(format!("the operation panicked at stage: {}", self.ctx.current_stage())))
        });
        self.send.send_replace(Some(answer));
        self.shared.ended.notify_waiters();
    }
}

fn busy(hold: &Hold, other: &Running) -> Error {
    Error::Busy {
        what: hold.key.clone(),
        running: other.operation.name.to_owned(),
        stage: other.ctx.current_stage(),
        age: other.ctx.age(),
    }
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
