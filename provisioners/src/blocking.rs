//! Work that blocks, on a thread for it: of each backend and kind of call only so many at once, so that a server that
//! hangs takes no thread of another backend, and changes that hang none of the questions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::{Error, Result};

/// How many changes of one backend are at work at once. The driver's own bound is lower; what its calls have left behind
/// counts here.
const CHANGES: usize = 128;
/// How many questions.
const QUESTIONS: usize = 32;
/// How long a call waits for a thread.
const PATIENCE: Duration = Duration::from_secs(20);

/// The most threads that the calls of one backend take.
pub const THREADS: usize = CHANGES + QUESTIONS;

/// A backend's threads, and what they work with. Clones share them.
pub(crate) struct Workers<S> {
    /// The backend's kind.
    kind: &'static str,
    store: Arc<S>,
    changes: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    patience: Duration,
}

impl<S> Clone for Workers<S> {
    fn clone(&self) -> Self {
        let (store, changes, questions) = (self.store.clone(), self.changes.clone(), self.questions.clone());
        Self { kind: self.kind, store, changes, questions, patience: self.patience }
    }
}

impl<S: Send + Sync + 'static> Workers<S> {
    /// Starts no thread.
    pub(crate) fn new(kind: &'static str, store: Arc<S>) -> Self {
        let (changes, questions) = (Arc::new(Semaphore::new(CHANGES)), Arc::new(Semaphore::new(QUESTIONS)));
        Self { kind, store, changes, questions, patience: PATIENCE }
    }

    /// Runs work that may change something. It goes on to its end when the caller goes away, and keeps its place.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(&self.changes, "changes", work).await
    }

    /// Runs work that only looks.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(&self.questions, "questions", work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        places: &Arc<Semaphore>,
        what: &str,
        work: impl FnOnce(&S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let place = tokio::time::timeout(self.patience, places.clone().acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Error::Unavailable(format!(
                "as many {what} as the {} backend may have at once are at work, and none ended in {} s: what they wait \
                 for does not answer; repeat the call",
                self.kind,
                self.patience.as_secs()
            )));
        };
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work(&store)
        });
        let ended = |e| Error::Internal(format!("the {} backend's work ended early: {e}", self.kind));
        done.await.unwrap_or_else(|e| Err(ended(e)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn f22_questions_that_hang_take_no_place_of_changes_or_of_another_backend() {
        let (mut one, other) = (Workers::new("nfs", Arc::new(())), Workers::new("local", Arc::new(())));
        one.patience = Duration::from_millis(200);
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(std::sync::Mutex::new(hang));
        let mut hung = tokio::task::JoinSet::new();
        for _ in 0..160 {
            let (one, hang) = (one.clone(), hang.clone());
            hung.spawn(async move {
                let work = move |(): &()| {
                    let _ = hang.lock().map(|hang| hang.recv());
                    Ok(())
                };
                one.ask(work).await
            });
        }
        tokio::task::yield_now().await;
        one.change(|()| Ok(())).await.unwrap();
        other.ask(|()| Ok(())).await.unwrap();
        // Those without a place are refused in time, and say why.
        let mut refused = 0;
        while refused < 160 - QUESTIONS {
            let ended = hung.join_next().await.unwrap().unwrap().unwrap_err();
            assert!(ended.to_string().contains("questions as the nfs backend"), "{ended}");
            refused += 1;
        }
        drop(release);
        while let Some(ended) = hung.join_next().await {
            ended.unwrap().unwrap();
        }
    }
}
