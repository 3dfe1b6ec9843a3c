//! The driver is killed (SIGKILL) at a random point of a random operation, started again, and the call repeated, many
//! times over: nothing is leaked, nothing doubled, and no data changes. The same where a successor starts beside the one
//! that lets its calls end, as a rolling update does it; and where not the driver but each process that it starts is
//! killed. What belongs to others stands beside.
//!
//! `CRASH_ROUNDS` (default 200) and `CRASH_SEED` choose how often and which.

#[path = "crash/foreign.rs"]
mod foreign;
#[path = "crash/operations.rs"]
mod operations;
#[path = "crash/world.rs"]
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::ceph::Ceph;
use e2e::children::Killer;
use e2e::nfs::Nfs;
use e2e::random::Random;
use operations::{OPERATIONS, Operation};
use world::{End, Kind, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_point_and_called_again_it_ends_the_same() -> Result<()> {
    if !e2e::is_root("crash") {
        return Ok(());
    }
    rounds(Kind::Local, End::Killed, 200).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_a_ceph_cluster() -> Result<()> {
    match Ceph::shared("crash rbd")? {
        Some(ceph) => rounds(Kind::Rbd(ceph), End::Killed, 60).await,
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_an_nfs_server() -> Result<()> {
    let Some(server) = Nfs::shared("crash nfs")? else { return Ok(()) };
    rounds(Kind::Nfs(server, "3"), End::Killed, 120).await?;
    rounds(Kind::Nfs(server, "4.1"), End::Killed, 120).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_beside_a_driver_that_lets_its_calls_end() -> Result<()> {
    if !e2e::is_root("crash replaced") {
        return Ok(());
    }
    rounds(Kind::Local, End::Replaced, 60).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_on_a_ceph_cluster() -> Result<()> {
    match Ceph::shared("crash rbd replaced")? {
        Some(ceph) => rounds(Kind::Rbd(ceph), End::Replaced, 30).await,
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_on_an_nfs_server() -> Result<()> {
    match Nfs::shared("crash nfs replaced")? {
        Some(server) => rounds(Kind::Nfs(server, "4.1"), End::Replaced, 40).await,
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_child_may_be_killed_at_any_moment() -> Result<()> {
    if !e2e::is_root("crash children") {
        return Ok(());
    }
    rounds_of_children(Kind::Local, 80).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_child_may_be_killed_on_a_ceph_cluster() -> Result<()> {
    match Ceph::shared("crash rbd children")? {
        Some(ceph) => rounds_of_children(Kind::Rbd(ceph), 20).await,
        None => Ok(()),
    }
}

/// Operations that start processes, while these are killed; then the call again, undisturbed.
async fn rounds_of_children(kind: Kind, default: u64) -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = number("CRASH_SEED").unwrap_or(clock.as_secs());
    let rounds = number("CRASH_ROUNDS").map_or(default, |rounds| rounds.min(default));
    println!("crash test: seed {seed}, {rounds} rounds of killed children");
    let (mut random, mut killed) = (Random::new(seed), 0);
    let mut world = World::new(kind, End::Killed).await?;
    // Staging starts the most.
    let operations =
        [Operation::Stage, Operation::Stage, Operation::Snapshot, Operation::Duplicate, Operation::Unstage];
    for round in 0..rounds {
        let operation = operations[random.below(operations.len())];
        let done = one_of_children(&mut world, &mut random, operation, round);
        killed += done.await.with_context(|| format!("seed {seed}, round {round}: {operation:?}"))?;
    }
    world.end().await.with_context(|| format!("seed {seed}, the end"))?;
    println!("crash test: {killed} children were killed");
    assert!(killed * 10 >= rounds, "too few children met: {killed} in {rounds} rounds");
    Ok(())
}

async fn one_of_children(
    world: &mut World,
    random: &mut Random,
    operation: Operation,
    round: u64,
) -> Result<u64> {
    let subject = world.prepare(operation, round).await.context("preparing")?;
    let clients = world.clients().await?;
    let killer = Killer::start(world.pid(), Random::new(random.next()), Duration::from_millis(12));
    // It ends, well or not.
    let call = operations::call(clients, operation, subject.clone());
    let ended = tokio::time::timeout(Duration::from_secs(60), call).await.context("the call hangs")?;
    let killed = killer.stop();
    // What a sidecar repeats, and nothing that would have a person look for a fault.
    if let Err(status) = ended {
        let again = [tonic::Code::Unavailable, tonic::Code::Aborted, tonic::Code::DeadlineExceeded];
        anyhow::ensure!(
            again.contains(&status.code()),
            "answered with {:?}: {}",
            status.code(),
            status.message()
        );
    }
    let answer = world.repeat(operation, subject.clone()).await.context("the repeated call")?;
    world.check(operation, &subject, &answer).await.context("after the repeated call")?;
    world.clear(operation, &subject, &answer).await.context("clearing up")?;
    world.check_rest().await.context("at rest")?;
    Ok(killed)
}

async fn rounds(kind: Kind, end: End, default: u64) -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = number("CRASH_SEED").unwrap_or(clock.as_secs());
    let rounds = number("CRASH_ROUNDS").unwrap_or(default);
    println!("crash test: seed {seed}, {rounds} rounds");
    let (mut random, mut hits, begun) = (Random::new(seed), 0, Instant::now());
    let mut world = World::new(kind, end).await?;
    let local = matches!(kind, Kind::Local);
    let attaches = !matches!(kind, Kind::Nfs(..));
    let possible = |it: &Operation| (local || !it.is_local()) && (attaches || !it.attaches());
    let operations: Vec<_> = OPERATIONS.into_iter().filter(possible).collect();
    for round in 0..rounds {
        let operation = operations[random.below(operations.len())];
        let hit = one(&mut world, &mut random, operation, round);
        hits += u64::from(hit.await.with_context(|| format!("seed {seed}, round {round}: {operation:?}"))?);
    }
    world.end().await.with_context(|| format!("seed {seed}, the end"))?;
    println!(
        "crash test: {hits} of {rounds} times the driver {end:?} in a running call, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(hits * 5 >= rounds, "too few met a running call: {hits} of {rounds}");
    Ok(())
}

/// One round; whether the driver's end met the running call.
async fn one(world: &mut World, random: &mut Random, operation: Operation, round: u64) -> Result<bool> {
    let subject = world.prepare(operation, round).await.context("preparing")?;
    let typical = world.typical(operation);
    let share = u32::try_from(random.below(1200)).unwrap_or(0);
    let delay = typical * share / 1000;
    let call = tokio::spawn(operations::call(world.clients().await?, operation, subject.clone()));
    // A thread's sleep: the runtime's own counts in whole milliseconds, longer than many calls take.
    tokio::task::spawn_blocking(move || std::thread::sleep(delay)).await?;
    let running = !call.is_finished();
    world.end_and_start()?;
    // A driver that is killed answers no more; one that has a successor ends what it was asked, or says that it does not.
    let failed = call.await?.is_err();
    let hit = if world.is_killed() { failed } else { running };
    let answer = world.repeat(operation, subject.clone()).await.context("the repeated call")?;
    world.learn(operation, hit);
    world.check(operation, &subject, &answer).await.context("after the repeated call")?;
    world.clear(operation, &subject, &answer).await.context("clearing up")?;
    world.check_rest().await.context("at rest")?;
    Ok(hit)
}
