//! The driver is killed (SIGKILL) at a random point of a random operation, started again, and the call repeated, many
//! times over: there is one volume and no other, sizes and data are right, nothing stays attached.
//!
//! `CRASH_ROUNDS` (default 24) and `CRASH_SEED` choose how often and which.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::clients::Clients;
use e2e::drivers::Process;
use e2e::random::Random;
use e2e::requests as ask;
use tonic::{Code, Status};

use crate::world::{GIB, World};

/// The operations that are killed.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Create,
    Clone,
    Delete,
    Attach,
    Detach,
    Expand,
    Snapshot,
    DeleteSnapshot,
    Stage,
    Unstage,
}

const OPERATIONS: [Operation; 10] = [
    Operation::Create,
    Operation::Clone,
    Operation::Delete,
    Operation::Attach,
    Operation::Detach,
    Operation::Expand,
    Operation::Snapshot,
    Operation::DeleteSnapshot,
    Operation::Stage,
    Operation::Unstage,
];

/// A round's volume, as far as it exists.
#[derive(Debug, Clone, Default)]
struct Subject {
    name: String,
    volume: String,
    snapshot: String,
    server: String,
    staging: std::path::PathBuf,
    publish_context: std::collections::BTreeMap<String, String>,
}

/// What a call answers: the id of what was made.
async fn call(clients: Clients, operation: Operation, s: Subject) -> Result<String, Status> {
    let (mut controller, mut node) = (clients.controller, clients.node);
    Ok(match operation {
        Operation::Create | Operation::Clone => {
            let mut request = World::request(&s.name, &[]);
            if matches!(operation, Operation::Clone) {
                request.name.push_str("-clone");
                request.volume_content_source = ask::from_volume(&s.volume);
            }
            controller.create_volume(request).await?.into_inner().volume.unwrap_or_default().volume_id
        }
        Operation::Delete => controller.delete_volume(ask::delete(&s.volume)).await.map(|_| String::new())?,
        Operation::Attach => {
            let request = ask::attach(&s.volume, &s.server, ask::mount("xfs"));
            controller.controller_publish_volume(request).await.map(|_| String::new())?
        }
        Operation::Detach => {
            let request = ask::detach(&s.volume, &s.server);
            controller.controller_unpublish_volume(request).await.map(|_| String::new())?
        }
        Operation::Expand => controller
            .controller_expand_volume(ask::expand(&s.volume, 2 * GIB))
            .await
            .map(|_| String::new())?,
        Operation::Snapshot => {
            let answer = controller.create_snapshot(ask::snapshot(&s.volume, &s.name)).await?.into_inner();
            answer.snapshot.unwrap_or_default().snapshot_id
        }
        Operation::DeleteSnapshot => {
            controller.delete_snapshot(ask::delete_snapshot(&s.snapshot)).await.map(|_| String::new())?
        }
        Operation::Stage => {
            let mut request = ask::stage(&s.volume, &s.staging, ask::mount("xfs"));
            request.publish_context = s.publish_context;
            node.node_stage_volume(request).await.map(|_| String::new())?
        }
        Operation::Unstage => {
            node.node_unstage_volume(ask::unstage(&s.volume, &s.staging)).await.map(|_| String::new())?
        }
    })
}

struct Crash {
    w: World,
    driver: Process,
}

impl Crash {
    async fn repeat(&mut self, operation: Operation, s: &Subject) -> Result<String> {
        let begun = Instant::now();
        loop {
            match call(self.driver.clients().await?, operation, s.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status)
                    if [Code::Unavailable, Code::Aborted, Code::Unknown, Code::DeadlineExceeded]
                        .contains(&status.code())
                        && begun.elapsed() < Duration::from_secs(60) =>
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(status) => bail!("{operation:?}: {status}; {}", self.driver.log_tail()),
            }
        }
    }

    /// What has to be there before an operation.
    async fn prepare(&mut self, operation: Operation, round: u64) -> Result<Subject> {
        let staging = self.w.path(&format!("round-{round}"))?;
        std::fs::create_dir_all(&staging)?;
        let server = self.w.server.clone();
        let mut s = Subject { name: format!("round-{round}"), staging, server, ..Subject::default() };
        if matches!(operation, Operation::Create) {
            return Ok(s);
        }
        s.volume = self.repeat(Operation::Create, &s).await?;
        match operation {
            Operation::DeleteSnapshot => s.snapshot = self.repeat(Operation::Snapshot, &s).await?,
            Operation::Detach | Operation::Stage | Operation::Unstage => {
                let request = ask::attach(&s.volume, &s.server, ask::mount("xfs"));
                let mut controller = self.driver.clients().await?.controller;
                s.publish_context =
                    controller.controller_publish_volume(request).await?.into_inner().publish_context;
            }
            _ => {}
        }
        if matches!(operation, Operation::Unstage) {
            self.repeat(Operation::Stage, &s).await?;
        }
        Ok(s)
    }

    /// What is there after an operation that was repeated to its end.
    async fn check(&self, operation: Operation, s: &Subject, answer: &str) -> Result<()> {
        let (volumes, snapshots) = (self.w.own("volumes").await?, self.w.own("snapshots").await?);
        let wanted = match operation {
            Operation::Delete => 0,
            Operation::Clone => 2,
            _ => 1,
        };
        ensure!(volumes.len() == wanted, "{} volumes, not {wanted}: {volumes:?}", volumes.len());
        ensure!(snapshots.len() == usize::from(matches!(operation, Operation::Snapshot)), "{snapshots:?}");
        let id = if s.volume.is_empty() { answer } else { s.volume.as_str() };
        let Some(volume) = volumes.iter().find(|volume| volume["id"] == id) else { return Ok(()) };
        let attached = matches!(operation, Operation::Attach | Operation::Stage | Operation::Unstage);
        let status = if attached { "in-use" } else { "available" };
        ensure!(volume["status"] == status, "{volume}");
        ensure!(volume["size"] == if matches!(operation, Operation::Expand) { 2 } else { 1 }, "{volume}");
        let mounted = self.w.scratch.mounts().len();
        ensure!(mounted == usize::from(matches!(operation, Operation::Stage)), "{mounted} mounts");
        Ok(())
    }

    async fn clear(&mut self, operation: Operation, s: &Subject, answer: &str) -> Result<()> {
        if matches!(operation, Operation::Stage) {
            self.repeat(Operation::Unstage, s).await?;
        }
        let first = if s.volume.is_empty() { answer.to_owned() } else { s.volume.clone() };
        let gone = Subject { volume: first, ..s.clone() };
        self.repeat(Operation::Detach, &gone).await?;
        if matches!(operation, Operation::Snapshot) {
            self.repeat(Operation::DeleteSnapshot, &Subject { snapshot: answer.into(), ..s.clone() }).await?;
        }
        if matches!(operation, Operation::Clone) {
            self.repeat(Operation::Delete, &Subject { volume: answer.into(), ..s.clone() }).await?;
        }
        self.repeat(Operation::Delete, &gone).await?;
        ensure!(self.w.own("volumes").await?.is_empty() && self.w.own("snapshots").await?.is_empty());
        ensure!(self.w.scratch.mounts().is_empty());
        Ok(())
    }

    /// One round; whether the kill met the running call.
    async fn round(&mut self, random: &mut Random, round: u64) -> Result<bool> {
        let operation = OPERATIONS[random.below(OPERATIONS.len())];
        let s = self.prepare(operation, round).await.context("preparing")?;
        let delay = Duration::from_millis(u64::try_from(random.below(600))?);
        let running = tokio::spawn(call(self.driver.clients().await?, operation, s.clone()));
        tokio::time::sleep(delay).await;
        self.driver.kill()?;
        let hit = running.await?.is_err();
        self.driver = Process::start(self.w.scratch.path(), &self.w.config)?;
        let answer = self.repeat(operation, &s).await?;
        self.check(operation, &s, &answer).await.with_context(|| format!("{operation:?} after {delay:?}"))?;
        self.clear(operation, &s, &answer).await.with_context(|| format!("clearing up {operation:?}"))?;
        Ok(hit)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_point_and_called_again_it_ends_the_same() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let (seed, rounds) = (number("CRASH_SEED").unwrap_or(clock), number("CRASH_ROUNDS").unwrap_or(24));
    let Some(mut w) = World::new("crash").await? else { return Ok(()) };
    println!("crash test: seed {seed}, {rounds} rounds");
    w.driver.take().context("no driver")?.stop().await?;
    let driver = Process::start(w.scratch.path(), &w.config)?;
    let (mut crash, mut random, mut hits) = (Crash { w, driver }, Random::new(seed), 0);
    for round in 0..rounds {
        let hit = crash.round(&mut random, round).await;
        hits += u64::from(hit.with_context(|| format!("seed {seed}, round {round}"))?);
    }
    println!("crash test: {hits} of {rounds} kills met a running call");
    ensure!(hits * 5 >= rounds, "too few kills met a running call: {hits} of {rounds}");
    Ok(())
}
