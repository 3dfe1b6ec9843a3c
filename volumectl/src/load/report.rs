//! What was measured: exact percentiles of every RPC, and errors by code.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::output::{self, Column, Format, Show};

/// Latencies of the calls that were answered, and counts of those that failed.
#[derive(Debug, Default)]
pub(super) struct Samples {
    times: BTreeMap<&'static str, Vec<Duration>>,
    errors: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

impl Samples {
    pub fn success(&mut self, rpc: &'static str, time: Duration) {
        self.times.entry(rpc).or_default().push(time);
    }

    pub fn failure(&mut self, rpc: &'static str, code: &str) {
        *self.errors.entry(rpc).or_default().entry(code.to_owned()).or_default() += 1;
    }

    pub fn merge(&mut self, other: Self) {
        for (rpc, times) in other.times {
            self.times.entry(rpc).or_default().extend(times);
        }
        for (rpc, codes) in other.errors {
            let all = self.errors.entry(rpc).or_default();
            codes.into_iter().for_each(|(code, n)| *all.entry(code).or_default() += n);
        }
    }

    pub fn failed(&self) -> bool {
        !self.errors.is_empty()
    }

    fn rpcs(&self) -> impl Iterator<Item = &'static str> {
        let all: std::collections::BTreeSet<_> =
            self.times.keys().chain(self.errors.keys()).copied().collect();
        all.into_iter()
    }
}

/// The report.
pub(super) struct Report(Value);

const COLUMNS: &[Column] = &[
    Column("RPC", "/rpc", Show::Plain),
    Column("COUNT", "/count", Show::Plain),
    Column("PER SECOND", "/perSecond", Show::Plain),
    Column("P50 MS", "/p50Ms", Show::Plain),
    Column("P90 MS", "/p90Ms", Show::Plain),
    Column("P99 MS", "/p99Ms", Show::Plain),
    Column("MAX MS", "/maxMs", Show::Plain),
    Column("ERRORS", "/errors", Show::Plain),
];

impl Report {
    /// `rounds` were counted; `left` could not be taken back. Throughput is per second of one worker's measured time,
    /// times the workers.
    pub fn new(samples: &Samples, rounds: usize, workers: u16, left: &[String]) -> Self {
        let busy: Duration = samples.times.values().flatten().sum();
        let wall = busy.as_secs_f64() / f64::from(workers);
        let rpcs: Vec<_> = samples.rpcs().map(|rpc| line(samples, rpc, wall)).collect();
        let per_second = if wall > 0.0 { round2(to_f64(rounds) / wall) } else { 0.0 };
        Self(json!({
            "rounds": rounds, "concurrency": workers, "seconds": round2(wall), "roundsPerSecond": per_second,
            "rpcs": rpcs, "left": left,
        }))
    }

    pub fn value(&self) -> Value {
        self.0.clone()
    }

    pub fn print(&self, format: Format) -> Result<()> {
        if matches!(format, Format::Json | Format::Yaml) {
            return output::print(format, &self.0, &[]);
        }
        output::print(format, &self.0["rpcs"], COLUMNS)?;
        let (rounds, rate) = (&self.0["rounds"], &self.0["roundsPerSecond"]);
        let (workers, seconds) = (&self.0["concurrency"], &self.0["seconds"]);
        anstream::println!("{rounds} rounds in {seconds} s at {workers} at once: {rate} rounds per second");
        if let Some(left) = self.0["left"].as_array().filter(|left| !left.is_empty()) {
            anstream::eprintln!("left behind, delete them by hand: {left:?}");
        }
        Ok(())
    }
}

fn line(samples: &Samples, rpc: &str, wall: f64) -> Value {
    let mut times = samples.times.get(rpc).cloned().unwrap_or_default();
    times.sort_unstable();
    let at = |share: f64| round2(percentile(&times, share).as_secs_f64() * 1e3);
    let rate = if wall > 0.0 { round2(to_f64(times.len()) / wall) } else { 0.0 };
    json!({
        "rpc": rpc, "count": times.len(), "perSecond": rate,
        "p50Ms": at(0.5), "p90Ms": at(0.9), "p99Ms": at(0.99), "maxMs": at(1.0),
        "errors": samples.errors.get(rpc).cloned().unwrap_or_default(),
    })
}

/// The smallest time that a share of all did not exceed (nearest rank).
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    // A count of samples is far below 2^52, so nothing is lost on the way.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rank = (to_f64(sorted.len()) * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[allow(clippy::cast_precision_loss)]
fn to_f64(count: usize) -> f64 {
    count as f64
}

fn round2(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact() {
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        let at = |share| percentile(&times, share).as_millis();
        assert_eq!([at(0.5), at(0.9), at(0.99), at(1.0)], [50, 90, 99, 100]);
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
        assert_eq!(percentile(&times[..1], 0.01), Duration::from_millis(1));
    }

    #[test]
    fn errors_are_counted_by_code() {
        let mut samples = Samples::default();
        samples.success("CreateVolume", Duration::from_millis(2));
        let mut more = Samples::default();
        more.failure("CreateVolume", "ABORTED");
        more.failure("DeleteVolume", "ABORTED");
        samples.merge(more);
        let report = Report::new(&samples, 1, 1, &[]).value();
        assert_eq!(report["rpcs"][0]["errors"]["ABORTED"], 1);
        assert_eq!(report["rpcs"][1]["rpc"], "DeleteVolume");
        assert!(samples.failed());
    }
}
