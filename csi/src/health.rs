//! Whether a backend answers: asked for real, not more often than every few seconds, and never waited for longer than a
//! moment: a Probe is answered from what is known.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use provisioners::{Error, Part};
use tokio::sync::watch;
use tokio::time::Instant;

/// How long an answer is good for. Kubelet and the liveness probe ask every ten seconds or so.
const FRESH: Duration = Duration::from_secs(5);
/// How long one question waits for the backend.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an answer stands while the next is late.
const STALE: Duration = Duration::from_secs(15);
/// How long the backend may take. Whoever asks meanwhile is told that it does not answer.
const LONGEST: Duration = Duration::from_secs(60);

type Known = Option<(Instant, Vec<Part>)>;

/// The last answer of a backend.
pub struct Health {
    last: watch::Sender<Known>,
    asking: Arc<AtomicBool>,
}

impl Default for Health {
    fn default() -> Self {
        Self { last: watch::Sender::new(None), asking: Arc::default() }
    }
}

/// Somebody asks until this is dropped.
struct Asking(Arc<AtomicBool>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// What the last answer of a backend was, without asking for another.
pub struct Seen(watch::Receiver<Known>);

impl Seen {
    /// Each part by its name, and whether it could be used.
    pub fn parts(&self) -> Vec<(String, bool)> {
        let known = self.0.borrow();
        let parts = known.iter().flat_map(|(_, parts)| parts);
        parts.map(|part| (part.name.clone(), part.state.is_ok())).collect()
    }
}

impl Health {
    /// For who is shown what is known.
    pub fn seen(&self) -> Seen {
        Seen(self.last.subscribe())
    }

    /// The last answer if it is fresh; else the backend is asked again, once for all who want to know, and waited for a
    /// moment. One that is late is asked no second time, and counts as it was known to be, after a while as unavailable.
    /// [`None`]: it has not answered its first question yet.
    pub async fn check<W>(&self, ask: impl FnOnce() -> W) -> Option<Vec<Part>>
    where
        W: Future<Output = Vec<Part>> + Send + 'static,
    {
        self.within(PATIENCE, ask).await
    }

    /// [`Health::check`], waiting for as long as the backend may take.
    pub async fn wait<W>(&self, ask: impl FnOnce() -> W) -> Vec<Part>
    where
        W: Future<Output = Vec<Part>> + Send + 'static,
    {
        let limit = LONGEST + PATIENCE;
        self.within(limit, ask).await.unwrap_or_else(|| vec![late(limit)])
    }

    async fn within<W>(&self, patience: Duration, ask: impl FnOnce() -> W) -> Option<Vec<Part>>
    where
        W: Future<Output = Vec<Part>> + Send + 'static,
    {
        let mut answers = self.last.subscribe();
        let known = |age: Duration| self.last.borrow().clone().filter(|(at, _)| at.elapsed() < age);
        if let Some((_, parts)) = known(FRESH) {
            return Some(parts);
        }
        answers.mark_unchanged();
        if !self.asking.swap(true, Ordering::AcqRel) {
            self.ask(ask());
        }
        let answered = tokio::time::timeout(patience, answers.changed()).await;
        match known(if answered.is_ok() { LONGEST } else { STALE }) {
            Some((_, parts)) => Some(parts),
            None => self.last.borrow().is_some().then(|| vec![late(patience)]),
        }
    }

    fn ask(&self, answer: impl Future<Output = Vec<Part>> + Send + 'static) {
        let (last, asking) = (self.last.clone(), Asking(self.asking.clone()));
        tokio::spawn(async move {
            let parts = tokio::time::timeout(LONGEST, answer).await.unwrap_or_else(|_| vec![late(LONGEST)]);
            let before = last.borrow().clone().map(|(_, parts)| parts).unwrap_or_default();
            tell_changes(&before, &parts);
            // Who is woken by the answer may ask the next question.
            drop(asking);
            last.send_replace(Some((Instant::now(), parts)));
        });
    }
}

fn late(time: Duration) -> Part {
    let error = Error::Unavailable(format!("the backend did not answer in {} s", time.as_secs()));
    Part { name: String::new(), state: Err(error) }
}

/// Says in the log what has failed, and what is well again.
fn tell_changes(before: &[Part], now: &[Part]) {
    for part in now {
        let was = before.iter().find(|it| it.name == part.name).map(|it| it.state.is_ok());
        match &part.state {
            Err(error) if was != Some(false) => tracing::warn!(part = %part.name, %error, "not ready"),
            Ok(()) if was == Some(false) => tracing::info!(part = %part.name, "ready again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn down() -> Vec<Part> {
        vec![Part { name: "a".into(), state: Err(Error::Unavailable("down".into())) }]
    }

    #[tokio::test]
    async fn many_probes_ask_once() {
        let (health, asked) = (Health::default(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..10 {
            let asked = asked.clone();
            let ask = || async move {
                asked.fetch_add(1, Ordering::SeqCst);
                down()
            };
            assert_eq!(health.check(ask).await.unwrap()[0].name, "a");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn b11_a_backend_that_hangs_is_asked_once_and_does_not_hang_a_probe() {
        let (health, asked) = (Health::default(), Arc::new(AtomicUsize::new(0)));
        health.check(|| async { down() }).await;
        tokio::time::advance(FRESH).await;
        for _ in 0..10 {
            let (asked, begun) = (asked.clone(), tokio::time::Instant::now());
            let ask = || async move {
                asked.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            };
            let parts = health.check(ask).await.unwrap();
            assert!(begun.elapsed() <= PATIENCE + Duration::from_millis(10));
            assert!(parts[0].state.is_err());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "a late backend is asked again and again");
    }

    /// Sidecars ask again while a driver is not ready, and end when Probe is an error.
    #[tokio::test(start_paused = true)]
    async fn a_slow_first_answer_is_neither_good_nor_bad() {
        let health = Health::default();
        let slow = || async {
            tokio::time::sleep(PATIENCE * 3 / 2).await;
            down()
        };
        assert!(health.check(slow).await.is_none());
        assert!(health.check(slow).await.is_some_and(|parts| parts[0].name == "a"));
        let health = Health::default();
        assert_eq!(health.wait(slow).await[0].name, "a");
        let health = Health::default();
        assert!(health.check(std::future::pending).await.is_none());
        tokio::time::sleep(LONGEST).await;
        let parts = health.check(std::future::pending).await.unwrap();
        assert!(parts[0].state.is_err(), "{parts:?}");
    }
}
