//! The driver with the local backend, as a process, through its socket.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use benches::{Driver, Line, bare, median_ms, report};
use e2e::clients::Clients;
use e2e::drivers::local_config;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;

const SIZE: i64 = 16 * MIB;
/// Rounds of create and delete at each concurrency, for the driver and for the baseline.
const ROUNDS: usize = 600;
const STARTS: usize = 30;

fn main() -> Result<()> {
    // `cargo test --benches` and the like only ask whether it starts.
    if std::env::args().any(|a| a == "--test") {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut lines = Vec::new();
    runtime.block_on(async {
        start(&mut lines).await?;
        throughput(&mut lines).await?;
        flatness(&mut lines).await
    })?;
    report(&lines, "../target/bench-local.json")
}

fn start_driver(scratch: &Scratch) -> Result<Driver> {
    Driver::start(scratch, &local_config(scratch.path(), ""), "local")
}

async fn start(lines: &mut Vec<Line>) -> Result<()> {
    let (mut times, mut bare_times, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let scratch = Scratch::new()?;
        let begun = Instant::now();
        let driver = start_driver(&scratch)?;
        driver.clients().await?;
        times.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
        memory.push(driver.memory()?);
        let begun = Instant::now();
        Command::new("/bin/true").status()?;
        bare_times.push(begun.elapsed());
    }
    memory.sort_by(f64::total_cmp);
    let what = "start to first Probe answered (baseline /bin/true)".into();
    let (measured, baseline) = (median_ms(&mut times), Some(median_ms(&mut bare_times)));
    lines.push(Line { what, measured, baseline, unit: "ms", target: "at most 5 ms" });
    let (what, measured) = ("resident memory, idle".into(), memory[memory.len() / 2]);
    lines.push(Line { what, measured, baseline: None, unit: "MiB", target: "at most 8 MiB" });
    Ok(())
}

async fn throughput(lines: &mut Vec<Line>) -> Result<()> {
    let scratch = Scratch::new()?;
    let driver = start_driver(&scratch)?;
    let clients = driver.clients().await?;
    let bare_root = scratch.path().join("bare");
    bare::prepare(&bare_root)?;
    for at_once in [1, 16, 64] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        // In turn, so that both meet the same machine.
        for turn in 0..5 {
            without.push(bare_round(&bare_root, at_once)?);
            with.push(driver_round(&clients, at_once, turn).await?);
        }
        let what = format!("create + delete, {at_once} at once, per volume");
        let (measured, baseline) = (median_ms(&mut with), Some(median_ms(&mut without)));
        lines.push(Line {
            what,
            measured,
            baseline,
            unit: "ms",
            target: "at most 1.5x the bare system calls",
        });
    }
    let (what, measured) = ("resident memory after that load".into(), driver.memory()?);
    lines.push(Line { what, measured, baseline: None, unit: "MiB", target: "reported" });
    Ok(())
}

fn bare_round(root: &Path, at_once: usize) -> Result<Duration> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let work = |worker: usize| {
            (0..ROUNDS / at_once).try_for_each(|i| {
                let name = format!("bare-{worker}-{i}");
                bare::create(root, &name, SIZE.unsigned_abs())?;
                bare::delete(root, &name)
            })
        };
        let threads: Vec<_> = (0..at_once).map(|worker| scope.spawn(move || work(worker))).collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|_| Err(std::io::Error::other("panicked"))))
    })?;
    Ok(begun.elapsed() / u32::try_from(ROUNDS / at_once * at_once)?)
}

async fn driver_round(clients: &Clients, at_once: usize, turn: usize) -> Result<Duration> {
    let (begun, mut workers) = (Instant::now(), tokio::task::JoinSet::new());
    for worker in 0..at_once {
        let clients = clients.clone();
        workers.spawn(async move {
            for i in 0..ROUNDS / at_once {
                let id = create(&clients, &format!("bench-{turn}-{worker}-{i}")).await?;
                clients.controller.clone().delete_volume(ask::delete(&id)).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(begun.elapsed() / u32::try_from(ROUNDS / at_once * at_once)?)
}

async fn create(clients: &Clients, name: &str) -> Result<String, tonic::Status> {
    let answer = clients.controller.clone().create_volume(ask::create(name, SIZE, ask::block())).await?;
    Ok(answer.into_inner().volume.unwrap_or_default().volume_id)
}

async fn flatness(lines: &mut Vec<Line>) -> Result<()> {
    let scratch = Scratch::new()?;
    let driver = start_driver(&scratch)?;
    let clients = driver.clients().await?;
    let (mut existing, mut first) = (0, None);
    for count in [10, 100, 1000, 10_000] {
        while existing < count {
            create(&clients, &format!("existing-{existing}")).await?;
            existing += 1;
        }
        let mut times = Vec::new();
        for i in 0..200 {
            let begun = Instant::now();
            let id = create(&clients, &format!("measured-{i}")).await?;
            times.push(begun.elapsed());
            clients.controller.clone().delete_volume(ask::delete(&id)).await?;
        }
        let measured = median_ms(&mut times);
        let baseline = Some(*first.get_or_insert(measured));
        let what = format!("create with {count} existing volumes (baseline: with 10)");
        lines.push(Line { what, measured, baseline, unit: "ms", target: "flat" });
    }
    let (what, measured) = ("resident memory with 10,000 volumes".into(), driver.memory()?);
    lines.push(Line { what, measured, baseline: None, unit: "MiB", target: "reported" });
    Ok(())
}
