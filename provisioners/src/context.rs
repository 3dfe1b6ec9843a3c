//! What one running operation carries along: its stage, which others can read, and the wish to end it.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, Result, Secrets};

/// The context of one operation; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ctx {
    shared: Arc<Shared>,
    secrets: Secrets,
}

/// Told of every point where an operation may end safely, with the stage; an error ends the operation there.
pub type Observer = Arc<dyn Fn(&str) -> Result<()> + Send + Sync>;

struct Shared {
    stage: Mutex<Cow<'static, str>>,
    stopped: AtomicBool,
    started: Instant,
    limit: Option<Duration>,
    observer: Option<Observer>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("stage", &self.stage)
            .field("started", &self.started)
            .finish_non_exhaustive()
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            stage: Mutex::new(Cow::Borrowed("starting")),
            stopped: AtomicBool::new(false),
            started: Instant::now(),
            limit: None,
            observer: None,
        }
    }
}

impl Ctx {
    /// A context without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// A context whose [`Ctx::check`] fails once `limit` has passed.
    pub fn with_limit(limit: Duration) -> Self {
        Self { shared: Arc::new(Shared { limit: Some(limit), ..Shared::default() }), ..Self::default() }
    }

    /// The same with somebody watching, such as a test that ends operations at chosen points.
    pub fn observed(limit: Duration, observer: Observer) -> Self {
        let observer = Some(observer);
        Self {
            shared: Arc::new(Shared { limit: Some(limit), observer, ..Shared::default() }),
            ..Self::default()
        }
    }

    /// The same operation with the CSI secrets of its call.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Secrets) -> Self {
        self.secrets = secrets;
        self
    }

    /// The CSI secrets of the call.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Says what is being done now, such as `copying 10 of 20 MiB`.
    pub fn stage(&self, stage: impl Into<Cow<'static, str>>) {
        *self.shared.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage.into();
    }

    /// What was said last.
    pub fn current_stage(&self) -> String {
        self.shared.stage.lock().unwrap_or_else(PoisonError::into_inner).to_string()
    }

    /// How long the operation has been running.
    pub fn age(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Asks the operation to end at the next safe point.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }

    /// Called by long work at points where ending is safe: fails when the operation was stopped or is over its
    /// limit, naming the stage.
    pub fn check(&self) -> Result<()> {
        if self.shared.stopped.load(Ordering::Relaxed) {
            return Err(Error::Unavailable(format!(
                "the driver is stopping; ended safely at stage: {}; repeat the call",
                self.current_stage()
            )));
        }
        match self.shared.limit {
            Some(limit) if self.age() > limit => Err(Error::Deadline(format!(
                "not done in {} s, ended safely at stage: {}",
                limit.as_secs(),
                self.current_stage()
            ))),
            _ => self.shared.observer.as_ref().map_or(Ok(()), |observe| observe(&self.current_stage())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_context_names_its_stage() {
        let ctx = Ctx::new();
        ctx.stage("copying");
        assert!(ctx.check().is_ok());
        ctx.clone().stop();
        assert!(ctx.check().unwrap_err().to_string().contains("stage: copying"));
    }

    #[test]
    fn the_limit_is_a_deadline_error() {
        let ctx = Ctx::with_limit(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(ctx.check().unwrap_err().label(), "deadline");
    }
}
