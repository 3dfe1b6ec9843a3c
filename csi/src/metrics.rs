//! Prometheus metrics, one family a question. docs/metrics.md lists them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use provisioners::{Gauge, Measures};

use crate::flight::Flights;
use crate::health::Seen;

/// Upper bounds of the latency histogram, in seconds: from a cached Probe to a long copy.
const BUCKETS: [f64; 13] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    backend: String,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    backend: String,
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct InFlightLabels {
    backend: String,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBackend {
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPart {
    backend: String,
    part: String,
}

/// All metrics of the process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Outcome, Counter>,
    latency: Family<Rpc, Histogram, fn() -> Histogram>,
    live: Arc<Live>,
}

impl Metrics {
    /// Registers the families; nothing is global, so several can live in one test process.
    pub fn new() -> Self {
        let requests = Family::default();
        let latency = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        let live = Arc::new(Live::default());
        let mut registry = Registry::with_prefix("volumectl_csi");
        registry.register("requests", "Calls answered, by backend, RPC and gRPC code", requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time to answer a call",
            Unit::Seconds,
            latency.clone(),
        );
        registry.register_collector(Box::new(live.clone()));
        Self { registry: Arc::new(registry), requests, latency, live }
    }

    /// Has the operations of a driver counted in the age of the oldest: they go on when their callers have gone.
    pub fn watch(&self, backend: &str, flights: Flights) {
        self.live.flights().push((backend.to_owned(), flights));
    }

    /// Has what a backend measures of itself shown.
    pub fn measure(&self, backend: &str, measures: Arc<dyn Measures>) {
        let mut own = self.live.measures.lock().unwrap_or_else(PoisonError::into_inner);
        own.push((backend.to_owned(), measures));
    }

    /// Has shown which parts of a backend could be used at the last look.
    pub fn show_parts(&self, backend: &str, seen: Seen) {
        let mut own = self.live.parts.lock().unwrap_or_else(PoisonError::into_inner);
        own.push((backend.to_owned(), seen));
    }

    /// Counts a call from now until [`Timer::done`].
    pub fn start(&self, backend: &str, method: &'static str) -> Timer {
        let id = self.live.next.fetch_add(1, Ordering::Relaxed);
        let call = (InFlightLabels { backend: backend.to_owned(), method }, Instant::now());
        self.live.calls().insert(id, call);
        Timer {
            metrics: self.clone(),
            id,
            backend: backend.to_owned(),
            method,
            started: Instant::now(),
            code: None,
        }
    }

    /// The text that `/metrics` answers (OpenMetrics).
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// One call being timed. Dropped without an answer (the caller went away), it counts as `CANCELLED`.
pub struct Timer {
    metrics: Metrics,
    id: u64,
    backend: String,
    method: &'static str,
    started: Instant,
    code: Option<&'static str>,
}

impl Timer {
    /// The call was answered with a code.
    pub fn done(mut self, code: &'static str) {
        self.code = Some(code);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.metrics.live.calls().remove(&self.id);
        let (backend, method) = (std::mem::take(&mut self.backend), self.method);
        let code = self.code.unwrap_or("CANCELLED");
        self.metrics.requests.get_or_create(&Outcome { backend: backend.clone(), method, code }).inc();
        let seconds = self.started.elapsed().as_secs_f64();
        self.metrics.latency.get_or_create(&Rpc { backend, method }).observe(seconds);
    }
}

/// A gauge with its value by backend.
type Measured = (Gauge, Vec<(String, f64)>);

/// Calls and operations that are running now, read at each scrape.
#[derive(Default)]
struct Live {
    next: AtomicU64,
    calls: Mutex<BTreeMap<u64, (InFlightLabels, Instant)>>,
    flights: Mutex<Vec<(String, Flights)>>,
    measures: Mutex<Vec<(String, Arc<dyn Measures>)>>,
    parts: Mutex<Vec<(String, Seen)>>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("calls", &self.calls().len()).finish_non_exhaustive()
    }
}

impl Live {
    fn calls(&self) -> MutexGuard<'_, BTreeMap<u64, (InFlightLabels, Instant)>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> MutexGuard<'_, Vec<(String, Flights)>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the oldest call or operation of each backend began; 0 when none is running.
    fn oldest(&self) -> BTreeMap<String, f64> {
        let mut oldest: BTreeMap<String, f64> = BTreeMap::new();
        for (backend, flights) in self.flights().iter() {
            oldest.insert(backend.clone(), flights.oldest().map_or(0.0, |age| age.as_secs_f64()));
        }
        for (labels, started) in self.calls().values() {
            let age = oldest.entry(labels.backend.clone()).or_default();
            *age = age.max(started.elapsed().as_secs_f64());
        }
        oldest
    }

    /// What the backends measure of themselves: each gauge with its value by backend.
    fn measured(&self) -> Vec<Measured> {
        let mut families: BTreeMap<&str, Measured> = BTreeMap::new();
        for (backend, measures) in self.measures.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for gauge in measures.gauges() {
                let family = families.entry(gauge.name).or_insert((gauge, Vec::new()));
                family.1.push((backend.clone(), gauge.value));
            }
        }
        families.into_values().collect()
    }

    /// The parts of all backends, and whether each could be used at the last look.
    fn parts(&self) -> Vec<(OfPart, bool)> {
        let own = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(backend, seen): &(String, Seen)| {
            let label = |part| OfPart { backend: backend.clone(), part };
            seen.parts().into_iter().map(|(part, well)| (label(part), well)).collect::<Vec<_>>()
        };
        own.iter().flat_map(of).collect()
    }

    fn in_flight(&self) -> BTreeMap<InFlightLabels, i64> {
        let mut count = BTreeMap::new();
        for (labels, _) in self.calls().values() {
            *count.entry(labels.clone()).or_default() += 1;
        }
        count
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = encoder.encode_descriptor("in_flight", "Calls being answered now", None, kind)?;
        for (labels, count) in self.in_flight() {
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Age of the oldest call or operation that is running; 0: none";
        let mut family =
            encoder.encode_descriptor("oldest_in_flight_age", help, Some(&Unit::Seconds), kind)?;
        for (backend, age) in self.oldest() {
            ConstGauge::new(age).encode(family.encode_family(&OfBackend { backend })?)?;
        }
        let help =
            "Whether a part of the backend (cluster, cloud, share, root) could be used at the last look";
        let mut family = encoder.encode_descriptor("part_ready", help, None, kind)?;
        for (labels, well) in self.parts() {
            ConstGauge::new(i64::from(well)).encode(family.encode_family(&labels)?)?;
        }
        for (gauge, values) in self.measured() {
            let mut family = encoder.encode_descriptor(gauge.name, gauge.help, None, kind)?;
            for (backend, value) in values {
                ConstGauge::new(value).encode(family.encode_family(&OfBackend { backend })?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_call_is_in_flight_until_it_is_done() {
        let metrics = Metrics::new();
        metrics.watch("local", Flights::new(1, Duration::from_secs(1)));
        let timer = metrics.start("local", "CreateVolume");
        let text = metrics.encode().unwrap();
        assert!(
            text.contains(r#"volumectl_csi_in_flight{backend="local",method="CreateVolume"} 1"#),
            "{text}"
        );
        timer.done("OK");
        let text = metrics.encode().unwrap();
        assert!(!text.contains("in_flight{"), "{text}");
        let counted = r#"volumectl_csi_requests_total{backend="local",method="CreateVolume",code="OK"} 1"#;
        assert!(text.contains(counted), "{text}");
        assert!(text.contains(r#"volumectl_csi_oldest_in_flight_age_seconds{backend="local"} 0"#), "{text}");
        assert!(text.contains("volumectl_csi_request_duration_seconds_bucket"), "{text}");
    }

    #[tokio::test]
    async fn each_part_of_a_backend_is_shown() {
        let (metrics, health) = (Metrics::new(), crate::health::Health::default());
        metrics.show_parts("nfs", health.seen());
        let state = |well| if well { Ok(()) } else { Err(provisioners::Error::Unavailable("dead".into())) };
        let part = |name: &str, well| provisioners::Part { name: name.into(), state: state(well) };
        let parts = vec![part("share main", true), part("share second", false)];
        health.check(|| async { parts }).await;
        let text = metrics.encode().unwrap();
        for line in [r#"part="share main"} 1"#, r#"part="share second"} 0"#] {
            let line = format!(r#"volumectl_csi_part_ready{{backend="nfs",{line}"#);
            assert!(text.contains(&line), "{text}");
        }
        assert!(!text.contains("dead"), "{text}");
    }

    #[test]
    fn a_caller_that_goes_away_is_counted() {
        let metrics = Metrics::new();
        drop(metrics.start("local", "CreateVolume"));
        assert!(metrics.encode().unwrap().contains(r#"code="CANCELLED"} 1"#));
    }
}
