//! Whether a backend answers: asked for real, and not more often than every few seconds.

use std::future::Future;
use std::time::{Duration, Instant};

use provisioners::{Error, Result};
use tokio::sync::Mutex;

/// How long an answer is good for. Kubelet and the liveness probe ask every ten seconds or so.
const FRESH: Duration = Duration::from_secs(5);
/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The last answer of a backend.
#[derive(Default)]
pub struct Health {
    last: Mutex<Option<(Instant, Result<()>)>>,
}

impl Health {
    /// The last answer if it is fresh, else asks again. Callers at the same time share one question.
    pub async fn check<W: Future<Output = Result<()>>>(&self, ask: impl FnOnce() -> W) -> Result<()> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            tracing::trace!(age = ?at.elapsed(), "health answered from the cache");
            return answer.clone();
        }
        let answer = tokio::time::timeout(PATIENCE, ask()).await.unwrap_or_else(|_| {
            Err(Error::Unavailable(format!("the backend did not answer in {} s", PATIENCE.as_secs())))
        });
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_probes_ask_once() {
        let (health, asked) = (Health::default(), AtomicUsize::new(0));
        for _ in 0..10 {
            let ask = || async {
                asked.fetch_add(1, Ordering::SeqCst);
                Err(Error::Unavailable("down".into()))
            };
            assert_eq!(health.check(ask).await.unwrap_err().label(), "unavailable");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_hangs_is_unavailable() {
        let answer = Health::default().check(std::future::pending).await;
        assert!(answer.unwrap_err().to_string().contains("did not answer in 3 s"));
    }
}
