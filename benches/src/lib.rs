//! What the benchmarks share: exact percentiles, the bare system calls of a volume, and a table of results.

pub mod bare;
mod driver;

pub use driver::Driver;
pub use e2e::join_all;

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
