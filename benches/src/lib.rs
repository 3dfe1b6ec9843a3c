//! What the benchmarks share: exact percentiles, the bare system calls of a volume, and a table of results.

pub mod bare;
mod driver;

pub use driver::Driver;

use std::time::Duration;

use serde_json::{Value, json};

/// One result beside its baseline and what is aimed at.
pub struct Line {
    /// What was measured.
    pub what: String,
    /// In its unit.
    pub measured: f64,
    /// The same unit.
    pub baseline: Option<f64>,
    /// `ms`, `MiB`.
    pub unit: &'static str,
    /// What is aimed at, in words.
    pub target: &'static str,
}

/// Prints the results and writes them as JSON.
pub fn report(lines: &[Line], file: &str) -> anyhow::Result<()> {
    println!("{:<46} {:>10} {:>10} {:>7}  target", "", "measured", "baseline", "ratio");
    for line in lines {
        let number = |n: f64| format!("{n:.3} {}", line.unit);
        let baseline = line.baseline.map(number).unwrap_or_default();
        let ratio = line.baseline.map(|b| format!("{:.2}", line.measured / b)).unwrap_or_default();
        println!(
            "{:<46} {:>10} {:>10} {:>7}  {}",
            line.what,
            number(line.measured),
            baseline,
            ratio,
            line.target
        );
    }
    let value: Vec<Value> = lines
        .iter()
        .map(|l| json!({ "what": l.what, "measured": l.measured, "baseline": l.baseline, "unit": l.unit, "target": l.target }))
        .collect();
    std::fs::write(file, serde_json::to_string_pretty(&value)?)?;
    Ok(())
}

/// The median, in milliseconds.
pub fn median_ms(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}

/// Runs futures at once on this task.
pub async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
