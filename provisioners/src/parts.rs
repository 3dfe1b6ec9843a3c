//! Asking the parts of a backend that can fail one by one how they are: beside each other, each by one thread at a time,
//! so that one that hangs keeps neither the others waiting nor more than a thread.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, Part, Result};

/// How long the others are waited for when one part is well. A Probe waits three seconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a good answer stands while the next is late.
const STALE: Duration = Duration::from_secs(15);

/// What is known of one part.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// It has not answered the last question.
    busy: AtomicBool,
    /// Its last answer, and when that was.
    last: Mutex<Option<(Instant, Result<()>)>>,
}

/// A question to one part.
pub(crate) struct Question {
    /// The part's name.
    pub(crate) name: String,
    pub(crate) asked: Asked,
    pub(crate) ask: Box<dyn FnOnce() -> Result<()> + Send>,
}

impl Asked {
    /// The right to ask; [`None`]: it is asked already.
    fn claim(&self) -> Option<Done> {
        (!self.0.busy.swap(true, Ordering::AcqRel)).then(|| Done(self.clone()))
    }

    /// Asks on a thread, unless it is asked already.
    fn begin(
        &self,
        ask: Box<dyn FnOnce() -> Result<()> + Send>,
        tell: impl FnOnce(Result<()>) + Send + 'static,
    ) {
        let Some(done) = self.claim() else { return };
        let work = move || {
            let answer = ask();
            done.note(&answer);
            tell(answer);
        };
        if let Err(error) = std::thread::Builder::new().name("part".into()).spawn(work) {
            tracing::warn!(%error, "no thread to look at a part");
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<(Instant, Result<()>)>> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What counts while it does not answer.
    fn known(&self) -> Result<()> {
        match &*self.last() {
            Some((_, Err(error))) => Err(error.clone()),
            Some((at, Ok(()))) if at.elapsed() < STALE => Ok(()),
            _ => Err(Error::Unavailable("it has not answered yet".into())),
        }
    }
}

/// A question under way; it ends with this, however that goes.
struct Done(Asked);

impl Done {
    /// Who is told the answer may ask the next question.
    fn note(self, answer: &Result<()>) {
        *self.0.last() = Some((Instant::now(), answer.clone()));
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        self.0.0.busy.store(false, Ordering::Release);
    }
}

/// Asks all parts; how each is, in the same order. While one is well, those that are late are not waited for: what is
/// known of them counts, or that they have not answered.
pub(crate) fn ask_all(questions: Vec<Question>) -> Vec<Part> {
    let (send, answers) = channel();
    let begun = Instant::now();
    let mut parts = Vec::new();
    for (at, Question { name, asked, ask }) in questions.into_iter().enumerate() {
        let send = send.clone();
        asked.begin(ask, move |answer| drop(send.send((at, answer))));
        parts.push((name, asked, None));
    }
    drop(send);
    while parts.iter().any(|(.., answer)| answer.is_none()) {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        let next = if is_well(&parts) { answers.recv_timeout(left).ok() } else { answers.recv().ok() };
        let Some((at, answer)) = next else { break };
        parts[at].2 = Some(answer);
    }
    parts.into_iter().map(part).collect()
}

/// [`ask_all`] for questions that are futures.
pub(crate) async fn ask_beside<F>(questions: Vec<(String, Asked, F)>) -> Vec<Part>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (send, mut answers) = tokio::sync::mpsc::unbounded_channel();
    let late = Instant::now() + PATIENCE;
    let mut parts = Vec::new();
    for (at, (name, asked, ask)) in questions.into_iter().enumerate() {
        if let Some(done) = asked.claim() {
            let send = send.clone();
            tokio::spawn(async move {
                let answer = ask.await;
                done.note(&answer);
                let _ = send.send((at, answer));
            });
        }
        parts.push((name, asked, None));
    }
    drop(send);
    while parts.iter().any(|(.., answer)| answer.is_none()) {
        let next = if is_well(&parts) {
            tokio::time::timeout_at(late.into(), answers.recv()).await.ok().flatten()
        } else {
            answers.recv().await
        };
        let Some((at, answer)) = next else { break };
        parts[at].2 = Some(answer);
    }
    parts.into_iter().map(part).collect()
}

/// A part that is asked: its name, what is known of it, and its answer.
type Waited = (String, Asked, Option<Result<()>>);

fn is_well(parts: &[Waited]) -> bool {
    parts.iter().any(|(.., answer)| matches!(answer, Some(Ok(()))))
}

fn part((name, asked, answer): Waited) -> Part {
    Part { name, state: answer.unwrap_or_else(|| asked.known()) }
}

/// Whether anything can be served: the first error if not.
pub(crate) fn any(parts: Vec<Part>) -> Result<()> {
    let (well, mut bad): (Vec<_>, Vec<_>) = parts.into_iter().map(|part| part.state).partition(Result::is_ok);
    if well.is_empty() && !bad.is_empty() { bad.swap_remove(0) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    fn question(name: &str, asked: &Asked, ask: impl FnOnce() -> Result<()> + Send + 'static) -> Question {
        Question { name: name.into(), asked: asked.clone(), ask: Box::new(ask) }
    }

    fn down() -> Result<()> {
        Err(Error::Unavailable("down".into()))
    }

    #[test]
    fn a_part_that_hangs_keeps_no_other_waiting_and_has_one_thread() {
        let (good, bad, hung) = (Asked::default(), Asked::default(), Asked::default());
        let (release, hang) = channel::<()>();
        let first =
            question("hung", &hung, move || hang.recv().map_err(|_| Error::Unavailable("late".into())));
        let begun = Instant::now();
        let parts = ask_all(vec![first, question("bad", &bad, down), question("good", &good, || Ok(()))]);
        assert!(begun.elapsed() < PATIENCE * 5, "{:?}", begun.elapsed());
        let states: Vec<_> = parts.iter().map(|part| (part.name.as_str(), part.state.is_ok())).collect();
        assert_eq!(states, [("hung", false), ("bad", false), ("good", true)]);
        assert!(any(parts).is_ok());
        // It is not asked a second time meanwhile, and is known by what it says in the end.
        let again = question("hung", &hung, || panic!("asked twice"));
        let (slow, slept) = (Asked::default(), Arc::new(AtomicBool::new(false)));
        *slow.last() = Some((begun, Ok(())));
        let sleeps = slept.clone();
        let sleep = move || {
            std::thread::sleep(PATIENCE * 2);
            sleeps.store(true, Ordering::Release);
            Ok(())
        };
        let parts = ask_all(vec![again, question("good", &good, || Ok(())), question("slow", &slow, sleep)]);
        assert!(parts[2].state.is_ok() && !slept.load(Ordering::Acquire), "{parts:?}");
        assert!(parts[0].state.as_ref().unwrap_err().to_string().contains("has not answered"));
        drop(release);
        while hung.0.busy.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let parts = ask_all(vec![question("hung", &hung, || Ok(()))]);
        assert!(parts[0].state.is_ok(), "{parts:?}");
    }

    /// The same of questions that are futures.
    #[tokio::test]
    async fn one_dead_cloud_keeps_no_other_waiting() {
        let (good, dead) = (Asked::default(), Asked::default());
        let asked = Arc::new(AtomicBool::new(false));
        for _ in 0..2 {
            let (begun, once) = (Instant::now(), asked.clone());
            let well: Pin<Box<dyn Future<Output = Result<()>> + Send>> = Box::pin(async { Ok(()) });
            let hangs = Box::pin(async move {
                assert!(!once.swap(true, Ordering::AcqRel), "asked twice");
                std::future::pending().await
            });
            let parts = ask_beside(vec![
                ("dead".into(), dead.clone(), hangs as _),
                ("good".into(), good.clone(), well),
            ])
            .await;
            assert!(begun.elapsed() < PATIENCE * 3, "{:?}", begun.elapsed());
            assert!(parts[0].state.is_err() && parts[1].state.is_ok(), "{parts:?}");
        }
        let late = async {
            tokio::time::sleep(PATIENCE + Duration::from_millis(300)).await;
            Ok(())
        };
        let parts = ask_beside(vec![("late".into(), Asked::default(), late)]).await;
        assert!(parts[0].state.is_ok(), "{parts:?}");
    }

    /// Where nothing is well, all are waited for.
    #[test]
    fn what_is_late_may_be_the_one_that_serves() {
        let late = || {
            std::thread::sleep(PATIENCE + Duration::from_millis(300));
            Ok(())
        };
        let (one, two) = (Asked::default(), Asked::default());
        let parts = ask_all(vec![question("bad", &one, down), question("late", &two, late)]);
        assert!(parts[0].state.is_err() && parts[1].state.is_ok());
        assert!(any(vec![Part { name: String::new(), state: down() }]).is_err());
        assert!(any(Vec::new()).is_ok());
    }
}
