//! `volumectl csi load`: how fast a driver answers, measured through its socket.

mod report;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use provisioners::ExitCode;
use tokio::task::JoinSet;

use crate::client::Csi;
use crate::csi::args::{CapabilityArgs, map, pair, size};
use crate::output::Format;
use report::{Report, Samples};
use worker::{Plan, Worker};

/// `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// What is done again and again.
    #[arg(long, value_enum, default_value_t = Ops::CreateDelete)]
    ops: Ops,
    /// Stop after so many rounds (default: when the time is over).
    #[arg(long)]
    volumes: Option<usize>,
    /// So many rounds at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// How long, in seconds.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    duration: f64,
    /// Rounds in the first seconds do not count.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    warmup: f64,
    /// The size of each volume.
    #[arg(short, long, value_parser = size, default_value = "64Mi", value_name = "SIZE")]
    size: i64,
    #[command(flatten)]
    capability: CapabilityArgs,
    /// A StorageClass parameter.
    #[arg(long = "param", value_parser = pair, value_name = "KEY=VALUE")]
    parameters: Vec<(String, String)>,
    /// Where volumes are staged and published, for stage-publish.
    #[arg(long, value_name = "DIR", default_value = "./load")]
    dir: PathBuf,
    /// Also write the report as JSON to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What one round does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ops {
    /// CreateVolume, DeleteVolume
    CreateDelete,
    /// and CreateSnapshot, DeleteSnapshot in between
    CreateSnapshotDelete,
    /// and NodeStageVolume, NodePublishVolume, NodeUnpublishVolume, NodeUnstageVolume in between
    StagePublish,
}

/// What all workers share.
struct Shared {
    stop: AtomicBool,
    rounds: AtomicUsize,
    begun: Instant,
}

/// Runs the load.
pub async fn run(endpoint: &str, csi: &Csi, args: &LoadArgs, format: Format) -> Result<ExitCode> {
    let shared = Arc::new(Shared { stop: false.into(), rounds: 0.into(), begun: Instant::now() });
    let plan = Arc::new(plan(args)?);
    stop_on_signals(shared.clone());
    let bar = bar(args);
    let mut workers = JoinSet::new();
    for number in 0..args.concurrency {
        // A connection each: one HTTP/2 connection would be what is measured.
        let csi = Csi::connect(endpoint, csi.timeout()).await?;
        let worker = Worker::new(csi, plan.clone(), number);
        workers.spawn(work(worker, shared.clone(), limits(args), bar.clone()));
    }
    let (mut samples, mut left) = (Samples::default(), Vec::new());
    while let Some(ended) = workers.join_next().await {
        let (some, remains) = ended.context("a worker ended early")?;
        samples.merge(some);
        left.extend(remains);
    }
    bar.finish_and_clear();
    let report = Report::new(&samples, shared.rounds.load(Ordering::SeqCst), args.concurrency, &left);
    report.print(format)?;
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.value())?;
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    let _ = std::fs::remove_dir(&args.dir);
    let failed = samples.failed() || !left.is_empty();
    Ok(if failed { ExitCode::from(crate::errors::FAILED) } else { ExitCode::SUCCESS })
}

fn plan(args: &LoadArgs) -> Result<Plan> {
    Ok(Plan {
        run: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned(),
        size: args.size,
        capability: args.capability.capability(),
        parameters: map("--param", &args.parameters)?,
        snapshot: args.ops == Ops::CreateSnapshotDelete,
        publish: args.ops == Ops::StagePublish,
        dir: std::path::absolute(&args.dir)?,
    })
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    rounds: usize,
    duration: Duration,
    warmup: Duration,
}

fn limits(args: &LoadArgs) -> Limits {
    let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or(Duration::ZERO);
    let warmup = seconds(args.warmup);
    Limits { rounds: args.volumes.unwrap_or(usize::MAX), duration: warmup + seconds(args.duration), warmup }
}

/// Rounds until the time is over; each ends whole, so that nothing of it is left.
async fn work(
    mut worker: Worker,
    shared: Arc<Shared>,
    limits: Limits,
    bar: ProgressBar,
) -> (Samples, Vec<String>) {
    while !shared.stop.load(Ordering::SeqCst) && shared.begun.elapsed() < limits.duration {
        let warming = shared.begun.elapsed() < limits.warmup;
        if !warming && shared.rounds.fetch_add(1, Ordering::SeqCst) >= limits.rounds {
            shared.rounds.fetch_sub(1, Ordering::SeqCst);
            break;
        }
        worker.round(!warming).await;
        bar.set_position(u64::try_from(shared.begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!("{} rounds", shared.rounds.load(Ordering::SeqCst)));
    }
    worker.finish().await
}

/// The first signal ends the rounds and cleans up; the second ends the process.
fn stop_on_signals(shared: Arc<Shared>) {
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        for text in [
            "stopping after the running rounds; once more to stop at once",
            "stopped at once: volumes of this run may be left",
        ] {
            tokio::select! {
                _ = interrupt.recv() => {},
                _ = terminate.recv() => {},
            }
            anstream::eprintln!("{text}");
            if shared.stop.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        }
    });
}

fn bar(args: &LoadArgs) -> ProgressBar {
    let total = limits(args).duration.as_millis();
    // Indicatif draws on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}% {msg}") {
        bar.set_style(style);
    }
    bar
}
