//! What was done, what was done to it, and how long it took at worst.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

/// The calls of one name to one backend.
#[derive(Debug, Default)]
struct Calls {
    done: u64,
    repeated: u64,
    worst: Duration,
}

#[derive(Default)]
struct State {
    calls: BTreeMap<(String, String), Calls>,
    faults: BTreeMap<String, u64>,
    /// When each fault began, in seconds from the start.
    history: Vec<(u64, String)>,
    checksums: u64,
    pods: u64,
    /// The driver's largest resident size in each of its lives, in KiB.
    memory: Vec<u64>,
}

pub struct Report {
    seed: u64,
    seconds: u64,
    begun: Instant,
    state: Mutex<State>,
}

impl Report {
    pub fn new(seed: u64, seconds: u64) -> Self {
        Self { seed, seconds, begun: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn call(&self, backend: &str, name: &str, took: Duration, ok: bool) {
        let mut state = self.state();
        let calls = state.calls.entry((backend.to_owned(), name.to_owned())).or_default();
        if ok {
            calls.done += 1;
        } else {
            calls.repeated += 1;
        }
        calls.worst = calls.worst.max(took);
    }

    pub fn fault(&self, name: &str) {
        let mut state = self.state();
        *state.faults.entry(name.to_owned()).or_default() += 1;
        state.history.push((self.begun.elapsed().as_secs(), name.to_owned()));
    }

    /// The last faults, and when.
    pub fn recent(&self) -> String {
        let (state, now) = (self.state(), self.begun.elapsed().as_secs());
        let last = state.history.iter().rev().take(20).rev();
        let last: Vec<_> = last.map(|(second, name)| format!("{second} {name}")).collect();
        format!("after {now} s; faults before it, by seconds: {}", last.join(", "))
    }

    pub fn checksum(&self) {
        self.state().checksums += 1;
    }

    pub fn pod(&self) {
        self.state().pods += 1;
    }

    /// A life of the driver has ended; KiB.
    pub fn life(&self, peak: u64) {
        self.state().memory.push(peak);
    }

    /// The lives of the second half need no more memory than those of the first: nothing that is kept outside grows into
    /// the driver. A quarter and 8 MiB are left for what pods happened to do.
    pub fn memory_is_flat(&self) -> Result<()> {
        let state = self.state();
        let middle = |half: &[u64]| {
            let mut half = half.to_vec();
            half.sort_unstable();
            half.get(half.len() / 2).copied().unwrap_or(0)
        };
        let (first, second) = state.memory.split_at(state.memory.len() / 2);
        let (first, second) = (middle(first), middle(second));
        ensure!(
            first == 0 || second <= first + first / 4 + 8192,
            "the driver's memory grows: {first} KiB, then {second} KiB"
        );
        Ok(())
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let state = self.state();
        let calls: Vec<_> = state
            .calls
            .iter()
            .map(|((backend, name), calls)| {
                json!({"backend": backend, "call": name, "done": calls.done, "repeated": calls.repeated,
                       "worstMilliseconds": calls.worst.as_millis()})
            })
            .collect();
        let all = json!({"seed": self.seed, "seconds": self.seconds, "pods": state.pods, "checksums": state.checksums,
                         "calls": calls, "faults": state.faults, "history": state.history,
                         "driverPeakKiB": state.memory});
        Ok(std::fs::write(path, serde_json::to_vec_pretty(&all)?)?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        writeln!(f, "{:<8} {:<28} {:>6} {:>9} {:>8}", "BACKEND", "CALL", "DONE", "REPEATED", "WORST")?;
        for ((backend, name), calls) in &state.calls {
            let worst = format!("{:.1} s", calls.worst.as_secs_f64());
            writeln!(f, "{backend:<8} {name:<28} {:>6} {:>9} {worst:>8}", calls.done, calls.repeated)?;
        }
        let faults: Vec<_> = state.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "faults: {}", faults.join(", "))?;
        let (least, most) = (state.memory.iter().min(), state.memory.iter().max());
        write!(
            f,
            "{} pods, {} checksums, {} lives of the driver, of {} to {} MiB at most",
            state.pods,
            state.checksums,
            state.memory.len(),
            least.map_or(0, |kib| kib / 1024),
            most.map_or(0, |kib| kib / 1024)
        )
    }
}
