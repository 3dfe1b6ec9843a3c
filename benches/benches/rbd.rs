//! The driver with the rbd backend, as a process, against a real cluster; the baseline is librbd alone in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use benches::{Driver, Line, join_all, median_ms, report};
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::clients::Clients;
use e2e::requests as ask;
use e2e::scratch::Scratch;
use provisioners::rbd::{Bare, Place, RbdCluster, RbdConfig};

const SIZE: i64 = 1 << 30;
/// Images a round.
const COUNT: usize = 200;
/// Volumes of the listing.
const LISTED: usize = 10_000;
/// layering, exclusive-lock, object-map, fast-diff, deep-flatten: what the driver's images have, too.
const FEATURES: u64 = 61;

fn main() -> Result<()> {
    // `cargo test --benches` and the like only ask whether it starts.
    if std::env::args().any(|a| a == "--test") {
        return Ok(());
    }
    let Some(ceph) = Ceph::shared("benches rbd")? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut lines = Vec::new();
    runtime.block_on(measure(ceph, &mut lines))?;
    report(&lines, "../target/bench-rbd.json")
}

async fn measure(ceph: &Ceph, lines: &mut Vec<Line>) -> Result<()> {
    let scratch = Scratch::new()?;
    let config = ceph.config("bench", scratch.path(), "    purgeWorkers: 16\n")?;
    let driver = Driver::start(&scratch, &config.text, "rbd")?;
    let clients = driver.clients().await?;
    ceph.run("rbd", &["namespace", "create", "rbd/bare"])?;
    let bare = Arc::new(connect(ceph, "bare")?);
    let watch = connect(ceph, &config.namespace)?;
    let memory = |lines: &mut Vec<Line>, what: &str| {
        driver.memory().map(|measured| {
            let what = what.to_owned();
            lines.push(Line { what, measured, baseline: None, unit: "MiB", target: "reported" });
        })
    };
    memory(lines, "resident memory, idle and connected")?;
    for at_once in [1, 16] {
        pair(&clients, &bare, &watch, at_once, lines).await?;
    }
    clones(&clients, lines).await?;
    memory(lines, "resident memory after that load")?;
    listing(&clients, lines).await?;
    memory(lines, "resident memory after listing 10,000 volumes")
}

/// Ten thousand volumes, listed in pages of a thousand.
async fn listing(clients: &Clients, lines: &mut Vec<Line>) -> Result<()> {
    let make = async |from: usize| {
        for i in (from..LISTED).step_by(32) {
            let request = ask::create(&pvc(&format!("listed-{}", 100_000 + i)), SIZE, ask::mount("ext4"));
            clients.controller.clone().create_volume(request).await?;
        }
        Ok::<_, tonic::Status>(())
    };
    for made in join_all((0..32).map(make).collect()).await {
        made?;
    }
    let (begun, mut count, mut token) = (Instant::now(), 0, String::new());
    loop {
        let request = pb::ListVolumesRequest { max_entries: 1000, starting_token: token };
        let page = clients.controller.clone().list_volumes(request).await?.into_inner();
        count += page.entries.len();
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    anyhow::ensure!(count >= LISTED, "{count} listed");
    let (what, measured) =
        ("10,000 volumes listed in pages of 1,000".to_owned(), begun.elapsed().as_secs_f64());
    lines.push(Line { what, measured, baseline: None, unit: "s", target: "bounded memory" });
    Ok(())
}

fn connect(ceph: &Ceph, namespace: &str) -> Result<Bare> {
    let place = Place { cluster: "ceph".into(), pool: "rbd".into(), namespace: namespace.into() };
    let cluster = RbdCluster { id: "ceph".into(), conf: Some(ceph.conf()), ..RbdCluster::default() };
    let config = RbdConfig { clusters: vec![cluster], ..RbdConfig::default() };
    Ok(Bare::connect(config, &place, FEATURES)?)
}

/// Create and delete by the driver and by librbd alone, in turn.
async fn pair(
    clients: &Clients,
    bare: &Arc<Bare>,
    watch: &Bare,
    at_once: usize,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let create = |name: String| bare.create(&name, SIZE.unsigned_abs());
    let bare_create = blocking(at_once, create)?;
    let bare_remove = blocking(at_once, |name| bare.remove(&name))?;
    let created = calls(clients, at_once, async |clients, name| {
        let request = ask::create(&pvc(&name), SIZE, ask::mount("ext4"));
        clients.controller.create_volume(request).await.map(drop)
    })
    .await?;
    let list = clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?.into_inner();
    let ids: Vec<_> = list.entries.into_iter().filter_map(|e| Some(e.volume?.volume_id)).collect();
    let ids = Arc::new(ids);
    let deleted = calls(clients, at_once, async |clients, name| {
        let index: usize = name.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        clients.controller.delete_volume(ask::delete(&ids[index])).await.map(drop)
    })
    .await?;
    let (begun, left) = (Instant::now(), watch.trash()?);
    while watch.trash()? > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    #[allow(clippy::cast_precision_loss)]
    let purged = left as f64 / begun.elapsed().as_secs_f64();
    let mut line = |what: &str, (measured, baseline), unit, target| {
        let what = format!("{what}, {at_once} at once");
        lines.push(Line { what, measured, baseline, unit, target });
    };
    line("create", (created.0, Some(bare_create.0)), "/s", "at least 0.8 of librbd alone");
    line("create, median", (created.1, Some(bare_create.1)), "ms", "alone: at most 1.3 of librbd alone");
    line("delete answered", (deleted.0, Some(bare_remove.0)), "/s", "at least 150/s at 16 at once");
    line("delete answered, median", (deleted.1, Some(bare_remove.1)), "ms", "alone: at most 20 ms");
    line("purge of what was left then", (purged, Some(bare_remove.0)), "/s", "at least librbd alone");
    Ok(())
}

/// A name as Kubernetes gives.
fn pvc(name: &str) -> String {
    format!("pvc-5c0e6d3c-0000-4000-8000-{:0>12}", name.rsplit('-').next().unwrap_or_default())
}

/// Images a second, and the median of one in milliseconds.
type Measured = (f64, f64);

#[allow(clippy::cast_precision_loss)]
fn rate(time: Duration) -> f64 {
    COUNT as f64 / time.as_secs_f64()
}

fn blocking(at_once: usize, one: impl Fn(String) -> provisioners::Result<()> + Sync) -> Result<Measured> {
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    let work = || {
        let mut times = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= COUNT {
                return Ok::<_, provisioners::Error>(times);
            }
            let begun = Instant::now();
            one(format!("bench-{i}"))?;
            times.push(begun.elapsed());
        }
    };
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            times.extend(thread.join().ok().context("a thread panicked")??);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok((rate(begun.elapsed()), median_ms(&mut times)))
}

async fn calls(
    clients: &Clients,
    at_once: usize,
    one: impl AsyncFn(&mut Clients, String) -> Result<(), tonic::Status>,
) -> Result<Measured> {
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    let times = std::cell::RefCell::new(Vec::new());
    let worker = async || {
        let mut clients = clients.clone();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= COUNT {
                return Ok::<_, tonic::Status>(());
            }
            let begun = Instant::now();
            one(&mut clients, format!("bench-{i}")).await?;
            times.borrow_mut().push(begun.elapsed());
        }
    };
    let workers: Vec<_> = (0..at_once).map(|_| worker()).collect();
    for ended in join_all(workers).await {
        ended?;
    }
    Ok((rate(begun.elapsed()), median_ms(&mut times.into_inner())))
}

/// Sixteen clones of one parent at once.
async fn clones(clients: &Clients, lines: &mut Vec<Line>) -> Result<()> {
    let request = ask::create("parent", SIZE, ask::mount("ext4"));
    let parent = clients.controller.clone().create_volume(request).await?.into_inner().volume;
    let parent = parent.context("no volume")?.volume_id;
    let begun = Instant::now();
    let one = async |i: usize| {
        let mut request = ask::create(&format!("clone-{i}"), SIZE, ask::mount("ext4"));
        request.volume_content_source = ask::from_volume(&parent);
        let begun = Instant::now();
        clients.controller.clone().create_volume(request).await.map(|_| begun.elapsed())
    };
    let answers = join_all((0..16).map(one).collect()).await;
    let mut times = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let all = begun.elapsed().as_secs_f64();
    let (what, measured) = ("16 clones of one parent at once".to_owned(), 16.0 / all);
    lines.push(Line { what, measured, baseline: None, unit: "/s", target: "reported" });
    let (what, measured) = ("the same, median".to_owned(), median_ms(&mut times));
    lines.push(Line { what, measured, baseline: None, unit: "ms", target: "reported" });
    Ok(())
}
