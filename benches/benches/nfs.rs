//! The driver with the nfs backend, as a process, against a real server. The baselines, in the same run: the same calls
//! sent without a driver, and `cp -a` on the exported directory.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use benches::{Driver, Line, median_ms, report};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::nfs::Nfs;
use e2e::requests as ask;
use e2e::scratch::Scratch;
use provisioners::nfs::{Bare, NfsConfig, NfsShare, Version};

/// Volumes a round.
const COUNT: u32 = 400;

fn main() -> Result<()> {
    // `cargo test --benches` and the like only ask whether it starts.
    if std::env::args().any(|a| a == "--test") || !Nfs::possible("benches nfs") {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut lines = Vec::new();
    // On a disk: memory would flatter both sides.
    let backing = Scratch::new()?;
    let server = Nfs::start("3,4", &["no_root_squash", &backing.path().display().to_string()])?;
    for version in [Version::V3, Version::V41] {
        runtime.block_on(measure(&server, version, &mut lines))?;
    }
    report(&lines, "../target/bench-nfs.json")
}

struct Bench<'a> {
    clients: Clients,
    dir: std::path::PathBuf,
    version: &'a str,
    lines: &'a mut Vec<Line>,
}

impl Bench<'_> {
    fn line(
        &mut self,
        what: &str,
        measured: f64,
        baseline: Option<f64>,
        unit: &'static str,
        target: &'static str,
    ) {
        let what = format!("v{}: {what}", self.version);
        self.lines.push(Line { what, measured, baseline, unit, target });
    }
}

async fn measure(server: &Nfs, version: Version, lines: &mut Vec<Line>) -> Result<()> {
    let scratch = Scratch::new()?;
    let (share, dir) = server.share("bench")?;
    let http = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let config = server.config(scratch.path(), &share, &format!(", nfsVersion: \"{}\"", version.word()))?;
    let config = config.replace("callTimeoutSeconds: 5", "callTimeoutSeconds: 60");
    let driver = Driver::start(&scratch, &format!("httpAddress: {http}\n{config}"), "nfs")?;
    let mut bench = Bench { clients: driver.clients().await?, dir, version: version.word(), lines };
    bench.line("resident memory, idle", driver.memory()?, None, "MiB", "reported");
    let (bare_share, _) = server.share("bare")?;
    let bare = bare(server, version, &bare_share)?;
    for at_once in [1, 16] {
        pairs(&mut bench, &bare, at_once, http).await?;
    }
    bench.line("resident memory after that load", driver.memory()?, None, "MiB", "reported");
    trees(&mut bench).await?;
    bench.line("resident memory after copying trees", driver.memory()?, None, "MiB", "bounded");
    deletion(&mut bench).await
}

fn bare(server: &Nfs, version: Version, path: &str) -> Result<Bare> {
    let share = NfsShare {
        name: "bare".into(),
        server: server.address.clone(),
        path: path.into(),
        version: Some(version),
        ..NfsShare::default()
    };
    Ok(Bare::connect(&NfsConfig { shares: vec![share], ..NfsConfig::default() })?)
}

/// Create and delete, by the driver and by the calls alone.
async fn pairs(bench: &mut Bench<'_>, bare: &Bare, at_once: u32, http: std::net::SocketAddr) -> Result<()> {
    let before = bare.calls();
    let mut alone = blocking(at_once, |name| {
        bare.create(&name)?;
        bare.delete(&name)
    })?;
    let calls_alone = f64::from(u32::try_from(bare.calls() - before)?) / f64::from(COUNT);
    let calls_before = calls(http).await?;
    let (begun, next) = (Instant::now(), AtomicU32::new(0));
    let times = std::cell::RefCell::new(Vec::new());
    let worker = async || {
        let mut controller = bench.clients.controller.clone();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= COUNT {
                return Ok::<_, tonic::Status>(());
            }
            let begun = Instant::now();
            let made = controller
                .create_volume(ask::create(&format!("bench-{at_once}-{i}"), 1 << 30, ask::mount("")))
                .await?;
            let id = made.into_inner().volume.unwrap_or_default().volume_id;
            controller.delete_volume(ask::delete(&id)).await?;
            times.borrow_mut().push(begun.elapsed());
        }
    };
    for ended in benches::join_all((0..at_once).map(|_| worker()).collect()).await {
        ended?;
    }
    let each = begun.elapsed().as_secs_f64() * 1e3 / f64::from(COUNT);
    let median = median_ms(&mut times.borrow_mut());
    // What is removed behind the answers counts, too.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sent = (calls(http).await? - calls_before) / f64::from(COUNT);
    let alone_median = median_ms(&mut alone.1);
    bench.line(
        &format!("create + delete, {at_once} at once, per volume"),
        each,
        Some(alone.0),
        "ms",
        "at 16: at most 2x the bare calls",
    );
    bench.line(
        &format!("create + delete, {at_once} at once, median"),
        median,
        Some(alone_median),
        "ms",
        "reported",
    );
    bench.line(
        &format!("calls for create + delete, {at_once} at once"),
        sent,
        Some(calls_alone),
        "",
        "counted",
    );
    Ok(())
}

/// The driver's own count.
async fn calls(http: std::net::SocketAddr) -> Result<f64> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(http).await?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let line = text.lines().find(|line| line.starts_with("volumectl_csi_nfs_calls")).context("no count")?;
    Ok(line.rsplit(' ').next().context("no number")?.parse()?)
}

/// Milliseconds a volume, and each one's time.
fn blocking(
    at_once: u32,
    one: impl Fn(String) -> provisioners::Result<()> + Sync,
) -> Result<(f64, Vec<Duration>)> {
    let (next, begun) = (AtomicU32::new(0), Instant::now());
    let work = || {
        let mut times = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= COUNT {
                return Ok::<_, provisioners::Error>(times);
            }
            let begun = Instant::now();
            one(format!("bench-{at_once}-{i}"))?;
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
    Ok((begun.elapsed().as_secs_f64() * 1e3 / f64::from(COUNT), times))
}

/// Clones of a tree of ten thousand small files and of one large file.
async fn trees(bench: &mut Bench<'_>) -> Result<()> {
    for (what, fill) in
        [("10,000 small files", small as fn(&Path) -> Result<()>), ("one file of 1 GiB", large)]
    {
        let name = if what.starts_with("one") { "large" } else { "small" };
        let made = bench
            .clients
            .controller
            .clone()
            .create_volume(ask::create(name, 1 << 30, ask::mount("")))
            .await?;
        let id = made.into_inner().volume.context("no volume")?.volume_id;
        let source = bench.dir.join(name);
        fill(&source)?;
        rustix::fs::sync();
        let target = bench.dir.join(format!("cp-{name}"));
        let begun = Instant::now();
        ensure!(Command::new("cp").arg("-a").args([&source, &target]).status()?.success(), "cp");
        let cp = begun.elapsed().as_secs_f64();
        rustix::fs::sync();
        let cp_synced = begun.elapsed().as_secs_f64();
        std::fs::remove_dir_all(&target)?;
        rustix::fs::sync();
        let request = pb::CreateVolumeRequest {
            volume_content_source: ask::from_volume(&id),
            ..ask::create(&format!("clone-{name}"), 1 << 30, ask::mount(""))
        };
        let begun = Instant::now();
        bench.clients.controller.clone().create_volume(request).await?;
        let cloned = begun.elapsed().as_secs_f64();
        bench.line(
            &format!("clone of {what} (baseline: cp -a and sync)"),
            cloned,
            Some(cp_synced),
            "s",
            "at most 1.3x",
        );
        bench.line(&format!("clone of {what} (baseline: cp -a)"), cloned, Some(cp), "s", "at most 1.3x");
    }
    Ok(())
}

fn small(dir: &Path) -> Result<()> {
    for i in 0..100 {
        let sub = dir.join(format!("dir-{i}"));
        std::fs::create_dir(&sub)?;
        for j in 0..100 {
            std::fs::write(sub.join(format!("file-{j}")), vec![b'x'; 1000 + 37 * j])?;
        }
    }
    Ok(())
}

fn large(dir: &Path) -> Result<()> {
    let mut file = std::fs::File::create(dir.join("file"))?;
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[0] ^ 0x5a).collect();
    for _ in 0..1024 {
        std::io::Write::write_all(&mut file, &block)?;
    }
    Ok(())
}

/// A directory of a hundred thousand files is deleted in sight of the caller.
async fn deletion(bench: &mut Bench<'_>) -> Result<()> {
    const FILES: u32 = 100_000;
    let made =
        bench.clients.controller.clone().create_volume(ask::create("many", 1 << 30, ask::mount(""))).await?;
    let id = made.into_inner().volume.context("no volume")?.volume_id;
    for i in 0..FILES {
        std::fs::File::create(bench.dir.join("many").join(format!("file-{i}")))?;
    }
    let begun = Instant::now();
    bench.clients.controller.clone().delete_volume(ask::delete(&id)).await?;
    bench.line("delete answered, 100,000 files", begun.elapsed().as_secs_f64() * 1e3, None, "ms", "quick");
    let trash = bench.dir.join(".volumectl/trash");
    while std::fs::read_dir(&trash)?.next().is_some() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.line(
        "files removed behind the answer",
        f64::from(FILES) / begun.elapsed().as_secs_f64(),
        None,
        "/s",
        "reported",
    );
    Ok(())
}
