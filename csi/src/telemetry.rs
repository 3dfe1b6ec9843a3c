//! Logs: to stderr, as text or JSON, a line a call with request id, method, volume, duration and code.

use std::io::IsTerminal as _;
use std::time::Instant;

use provisioners::Error;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::LogFormat;

/// Starts logging. Fails on a filter that cannot be parsed.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    // Levels by target need no regular expressions, which are what makes the usual filter large in memory.
    let filter: Targets = filter.parse().map_err(|e| format!("--log: {filter:?}: {e}"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_ansi(false).boxed(),
    };
    let registry = tracing_subscriber::registry().with(layer.with_filter(filter));
    registry.try_init().map_err(|e| format!("logging: {e}"))
}

/// One call for the log. Dropped without an answer, it says that the caller went away.
pub struct Call {
    id: String,
    backend: String,
    method: &'static str,
    subject: String,
    started: Instant,
    answered: bool,
}

impl Call {
    /// A call about `subject`, with a new request id.
    pub fn new(backend: &str, method: &'static str, subject: &str) -> Self {
        let id = uuid::Uuid::new_v4().simple().to_string()[..12].to_owned();
        tracing::debug!(request_id = %id, %backend, method, volume = %subject, "started");
        Self {
            id,
            backend: backend.to_owned(),
            method,
            subject: subject.to_owned(),
            started: Instant::now(),
            answered: false,
        }
    }

    fn millis(&self) -> f64 {
        (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3
    }

    /// It was answered. Questions that change nothing are logged at debug: kubelet asks them all the time.
    pub fn ok(mut self) {
        self.answered = true;
        let (id, backend, method, volume) = (&self.id, &self.backend, self.method, &self.subject);
        let duration_ms = self.millis();
        if asks_only(method) {
            tracing::debug!(request_id = %id, %backend, method, %volume, duration_ms, code = "OK", "answered");
        } else {
            tracing::info!(request_id = %id, %backend, method, %volume, duration_ms, code = "OK", "answered");
        }
    }

    /// It was answered with an error.
    pub fn failed(mut self, code: &'static str, error: &Error) {
        self.answered = true;
        let (id, backend, method, volume) = (&self.id, &self.backend, self.method, &self.subject);
        let duration_ms = self.millis();
        let cause = error.label();
        tracing::warn!(request_id = %id, %backend, method, %volume, duration_ms, code, cause, %error, "failed");
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            let (id, backend, method, volume) = (&self.id, &self.backend, self.method, &self.subject);
            let duration_ms = self.millis();
            tracing::warn!(
                request_id = %id, %backend, method, %volume, duration_ms, code = "CANCELLED",
                "the caller went away; an operation that had begun goes on"
            );
        }
    }
}

fn asks_only(method: &str) -> bool {
    method == "Probe"
        || method.contains("Get")
        || method.starts_with("List")
        || method.starts_with("Validate")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_told_from_changes() {
        assert!(["Probe", "NodeGetVolumeStats", "ListVolumes", "GetCapacity"].into_iter().all(asks_only));
        assert!(!["CreateVolume", "NodeStageVolume", "ControllerModifyVolume"].into_iter().any(asks_only));
    }
}
