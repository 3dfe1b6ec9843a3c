//! The driver is killed (SIGKILL) at a random point of a random operation, started again, and the call repeated, many
//! times over: nothing is leaked, nothing doubled, and no data changes.
//!
//! `CRASH_ROUNDS` (default 200) and `CRASH_SEED` choose how often and which.

#[path = "crash/operations.rs"]
mod operations;
#[path = "crash/world.rs"]
mod world;

use std::time::Instant;

use anyhow::{Context as _, Result};
use e2e::ceph::Ceph;
use e2e::nfs::Nfs;
use e2e::random::Random;
use operations::{OPERATIONS, Operation};
use world::{Kind, World};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_point_and_called_again_it_ends_the_same() -> Result<()> {
    if !e2e::is_root("crash") {
        return Ok(());
    }
    rounds(Kind::Local, 200).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_a_ceph_cluster() -> Result<()> {
    match Ceph::shared("crash rbd")? {
        Some(ceph) => rounds(Kind::Rbd(ceph), 60).await,
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_an_nfs_server() -> Result<()> {
    let Some(server) = Nfs::shared("crash nfs")? else { return Ok(()) };
    rounds(Kind::Nfs(server, "3"), 120).await?;
    rounds(Kind::Nfs(server, "4.1"), 120).await
}

async fn rounds(kind: Kind, default: u64) -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = number("CRASH_SEED").unwrap_or(clock.as_secs());
    let rounds = number("CRASH_ROUNDS").unwrap_or(default);
    println!("crash test: seed {seed}, {rounds} rounds");
    let (mut random, mut hits, begun) = (Random::new(seed), 0, Instant::now());
    let mut world = World::new(kind).await?;
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
        "crash test: {hits} of {rounds} kills met a running call, {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    assert!(hits * 5 >= rounds, "too few kills met a running call: {hits} of {rounds}");
    Ok(())
}

/// One round; whether the kill met the running call.
async fn one(world: &mut World, random: &mut Random, operation: Operation, round: u64) -> Result<bool> {
    let subject = world.prepare(operation, round).await.context("preparing")?;
    let typical = world.typical(operation);
    let share = u32::try_from(random.below(1200)).unwrap_or(0);
    let delay = typical * share / 1000;
    let call = tokio::spawn(operations::call(world.clients().await?, operation, subject.clone()));
    // A thread's sleep: the runtime's own counts in whole milliseconds, longer than many calls take.
    tokio::task::spawn_blocking(move || std::thread::sleep(delay)).await?;
    world.kill_and_start()?;
    let hit = call.await?.is_err();
    let answer = world.repeat(operation, subject.clone()).await.context("the repeated call")?;
    world.learn(operation, hit);
    world.check(operation, &subject, &answer).await.context("after the repeated call")?;
    world.clear(operation, &subject, &answer).await.context("clearing up")?;
    world.check_rest().await.context("at rest")?;
    Ok(hit)
}
