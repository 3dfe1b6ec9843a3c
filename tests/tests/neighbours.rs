//! Each server is killed, stopped and cut off in turn, under a load of calls that hang: every RPC of every other backend
//! is answered in time.

#[path = "neighbours/calls.rs"]
mod calls;
#[path = "neighbours/world.rs"]
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::requests as ask;
use tonic::Request;

use calls::{Calls, Used, load};
use world::{BACKENDS, Harm, World};

/// A local volume's server is its file system, which can only be frozen.
const HARMS: [(&str, Harm); 10] = [
    ("local", Harm::Stopped),
    ("nfs", Harm::Stopped),
    ("nfs", Harm::CutOff),
    ("nfs", Harm::Killed),
    ("cinder", Harm::CutOff),
    ("cinder", Harm::Stopped),
    ("rbd", Harm::CutOff),
    ("rbd", Harm::Stopped),
    ("rbd", Harm::Killed),
    ("cinder", Harm::Killed),
];

/// Every RPC of all backends but one, at once.
async fn neighbours(w: &World, harmed: &str, round: &str) -> Result<()> {
    let others = BACKENDS.into_iter().filter(|name| *name != harmed);
    let calls: Vec<_> = others.map(|name| Calls::new(w, name, round)).collect::<Result<_>>()?;
    let done = e2e::join_all(calls.iter().map(Calls::all).collect()).await;
    done.into_iter().collect()
}

/// Waits until a backend makes volumes again after its server was harmed.
async fn well_again(w: &World, name: &str, round: &str) -> Result<()> {
    let begun = Instant::now();
    let mut controller = w.ready(name).await?.controller;
    loop {
        let mut request = Request::new(World::create_request(name, &format!("again-{round}")));
        request.set_timeout(Duration::from_secs(20));
        match controller.create_volume(request).await {
            Ok(made) => {
                let id = made.into_inner().volume.unwrap_or_default().volume_id;
                controller.delete_volume(ask::delete(&id)).await?;
                return Ok(());
            }
            Err(status) => {
                ensure!(begun.elapsed() < Duration::from_secs(180), "{round}: {name} stays ill: {status}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn one_harm(w: &World, (name, harm): (&'static str, Harm), used: &Used) -> Result<()> {
    let round = format!("{name} {harm:?}").to_lowercase();
    let begun = Instant::now();
    w.harm(name, harm)?;
    let calls = load(w, name, &round.replace(' ', "-"), used)?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let done = neighbours(w, name, &round).await;
    let harmed = begun.elapsed();
    w.heal(name, harm)?;
    done?;
    drop(calls);
    well_again(w, name, &round.replace(' ', "-")).await?;
    println!("{round}: the others took {harmed:?}, and it was well again at {:?}", begun.elapsed());
    Ok(())
}

async fn all_harms(w: &World) -> Result<()> {
    // Each backend has a volume in use while it is harmed.
    let mut used = Vec::new();
    for name in BACKENDS {
        let mut controller = w.clients(name)?.controller;
        let made = controller.create_volume(World::create_request(name, "in-use")).await?.into_inner();
        let volume = made.volume.context("no volume")?;
        used.push(Calls::new(w, name, "before")?.use_it(&volume, "in-use").await?);
    }
    neighbours(w, "", "all well").await?;
    let only = std::env::var("HARM").unwrap_or_default();
    for (name, harm) in HARMS.into_iter().filter(|it| format!("{} {:?}", it.0, it.1).contains(&only)) {
        one_harm(w, (name, harm), &used[World::index(name)]).await?;
    }
    for (name, used) in BACKENDS.into_iter().zip(&used) {
        Calls::new(w, name, "afterwards")?.give_up(used).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f22_a_server_that_is_killed_stopped_or_cut_off_harms_no_other_backend() -> Result<()> {
    let Some(w) = World::start("neighbours").await? else { return Ok(()) };
    all_harms(&w).await.with_context(|| w.driver.log_tail())?;
    ensure!(!w.scratch.mounts().iter().any(|it| it.ends_with("target")), "{:?}", w.scratch.mounts());
    Ok(())
}
