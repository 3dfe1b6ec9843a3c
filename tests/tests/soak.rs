//! Pods with volumes of all four backends, while their servers are killed, stopped, cut off, filled and slowed, the
//! driver is killed or replaced again and again, and a second controller gets some of the calls, too. At the end nothing
//! is left of any of them, no byte was wrong on the way, and what belongs to others is as it was.
//!
//! Run in a guest, by `scripts/test-kernel soak`. `SOAK_SECONDS` (default 1800) says how long, `SOAK_SEED` which faults and
//! which pods, `SOAK_BACKENDS` on which backends (all); the report is written as JSON and printed as a table.

#[path = "soak/calls.rs"]
mod calls;
#[path = "soak/checks.rs"]
mod checks;
#[path = "soak/faults.rs"]
mod faults;
#[path = "soak/foreign.rs"]
mod foreign;
#[path = "soak/moving.rs"]
mod moving;
#[path = "soak/pods.rs"]
mod pods;
#[path = "soak/report.rs"]
mod report;
#[path = "soak/world.rs"]
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use e2e::random::Random;

use calls::Caller;
use faults::Harm;
use report::Report;
use world::{BACKENDS, World};

/// Pods that live at the same time on each backend.
const PODS: u64 = 2;

/// The backends whose pods live and whose servers are harmed.
fn chosen() -> impl Iterator<Item = (u64, &'static str)> {
    let chosen = std::env::var("SOAK_BACKENDS").unwrap_or_else(|_| BACKENDS.join(","));
    (0..).zip(BACKENDS).filter(move |(_, name)| chosen.split(',').any(|it| it == *name))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn soak() -> Result<()> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (seed, seconds) = (number("SOAK_SEED").unwrap_or(clock), number("SOAK_SECONDS").unwrap_or(1800));
    println!("soak: seed {seed}, {seconds} s");
    let Some(world) = World::start().await? else { return Ok(()) };
    let (world, report) = (Arc::new(world), Arc::new(Report::new(seed, seconds)));
    let ran = run(&world, &report, seed, Duration::from_secs(seconds)).await;
    world.heal().await.context("healing the servers")?;
    let clean = match &ran {
        Ok(()) => Box::pin(at_last(&world, &report, seed)).await,
        Err(_) => Ok(()),
    };
    let flat = report.memory_is_flat();
    report.write(&e2e::control::server_dir().join("report.json"))?;
    println!("{report}");
    let Err(error) = ran.and(clean).and(flat) else { return Ok(()) };
    println!("soak: seed {seed}: {error:?}\nthe driver's log ends:\n{}", world.log_tail());
    // What the failure has left may never let go of a file system whose servers end; they all end with the guest.
    std::process::exit(1)
}

/// One more pod on each backend, undisturbed; then nothing is left.
async fn at_last(world: &Arc<World>, report: &Arc<Report>, seed: u64) -> Result<()> {
    for backend in BACKENDS {
        let caller = Caller::new(world, report, backend).await?;
        caller.pod(&format!("{backend}-last"), &mut Random::new(seed), Instant::now()).await?;
    }
    checks::nothing_is_left(world).await
}

/// The pods, the faults and the kills, until the time is over and all pods have ended.
async fn run(world: &Arc<World>, report: &Arc<Report>, seed: u64, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let mut tasks = tokio::task::JoinSet::new();
    for (index, backend) in chosen() {
        for pod in 0..PODS {
            let random = Random::new(seed.wrapping_mul(31) + index * PODS + pod);
            let caller = Caller::new(world, report, backend).await?;
            tasks.spawn(pods::live(caller, random, format!("{backend}-{pod}"), end));
        }
    }
    tasks.spawn(Harm::new(world, report, seed ^ 1, end).harm_drivers());
    tasks.spawn(Harm::new(world, report, seed ^ 3, end).harm_children());
    tasks.spawn(Harm::new(world, report, seed ^ 2, end).harm_servers());
    let mut ran = Ok(());
    while let Some(done) = tasks.join_next().await {
        let done = done.context("a task panicked").flatten();
        if done.is_err() && ran.is_ok() {
            // The others end at their next step.
            world.stopped.store(true, Ordering::Relaxed);
            println!("soak: {done:?}\nsoak: a failure {}", report.recent());
            world.show_trouble();
            ran = done;
        }
    }
    ran
}
