//! Logs: to stderr, as text or JSON, a line a call with request id, method, volume, duration and code.

use std::io::IsTerminal as _;
use std::time::Instant;

use provisioners::Error;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::LogFormat;

/// Libraries that tell much of each request, by the beginnings of their modules' names: of these warnings only, where no
/// directive names them.
const CHATTY: [&str; 8] = ["openstack", "hyper", "h2", "reqwest", "rustls", "tower", "tonic", "kube_"];

/// What is logged: levels by target. They need no regular expressions, which are what makes the usual filter large in
/// memory. A level without a target is of this driver's own crates; it may be less than that of the libraries, not more.
fn targets(filter: &str) -> Result<Targets, String> {
    let asked: Targets = filter.parse().map_err(|e| format!("--log: {filter:?}: {e}"))?;
    let level = asked.default_level().unwrap_or(LevelFilter::OFF).min(LevelFilter::WARN);
    let named = |library: &str| asked.iter().any(|(target, _)| library.starts_with(target));
    let quiet: Vec<_> = CHATTY.into_iter().filter(|library| !named(library)).collect();
    Ok(asked.with_targets(quiet.into_iter().map(|library| (library, level))))
}

/// Starts logging. Fails on a filter that cannot be parsed.
pub fn init(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = targets(filter)?;
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
        let error = provisioners::plain(&error.to_string());
        tracing::warn!(request_id = %id, %backend, method, %volume, duration_ms, code, cause, error, "failed");
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
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_are_quiet_unless_the_filter_names_them() {
        let enabled =
            |filter: &str, target: &str, level| targets(filter).unwrap().would_enable(target, &level);
        let libraries = [
            "openstack_sdk::api",
            "openstack_sdk_core::session",
            "hyper_util::client",
            "h2::codec",
            "reqwest::connect",
            "kube_client",
        ];
        for library in libraries {
            for filter in ["info", "debug", "trace", "warn", "info,csi_driver=debug"] {
                assert!(enabled(filter, library, Level::WARN), "{filter} {library}");
                assert!(!enabled(filter, library, Level::INFO), "{filter} {library}");
            }
            assert!(!enabled("error", library, Level::WARN) && enabled("error", library, Level::ERROR));
            assert!(
                !enabled("off", library, Level::ERROR) && !enabled("csi_driver=info", library, Level::ERROR)
            );
        }
        assert!(enabled("info,openstack_sdk=debug", "openstack_sdk::api", Level::DEBUG));
        assert!(enabled("info,hyper=trace", "hyper_util::client", Level::TRACE));
        assert!(!enabled("info,hyper=trace", "h2::codec", Level::INFO));
        for own in ["csi_driver::driver", "provisioners::cinder", "kubernetes"] {
            assert!(enabled("info", own, Level::INFO) && !enabled("info", own, Level::DEBUG), "{own}");
            assert!(enabled("debug", own, Level::DEBUG), "{own}");
        }
        assert!(targets("info,csi_driver=loud").is_err());
    }

    #[test]
    fn questions_are_told_from_changes() {
        assert!(["Probe", "NodeGetVolumeStats", "ListVolumes", "GetCapacity"].into_iter().all(asks_only));
        assert!(!["CreateVolume", "NodeStageVolume", "ControllerModifyVolume"].into_iter().any(asks_only));
    }
}
