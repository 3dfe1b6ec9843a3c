//! Servers that are gone, stuck, restarted, full, read-only, squashing or slow.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::nfs::Nfs;
use tonic::Code;

use crate::world::{World, from_volume};

/// A server of one test, which may break it.
fn server(test: &str, versions: &str, more: &[&str]) -> Result<Option<Nfs>> {
    if Nfs::possible(test) { Nfs::start(versions, more).map(Some) } else { Ok(None) }
}

/// A server that is killed and started again, with all its handles and sessions forgotten: calls wait for it a while, or
/// say that it is gone, and go on afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_started_again_is_used_again() -> Result<()> {
    let Some(server) = server("restart", "3,4", &[])? else { return Ok(()) };
    for version in ["3", "4.1", "4.2"] {
        let w = World::on(&server, "restart", &format!(", nfsVersion: \"{version}\"")).await?;
        let id = w.make("before").await?;
        server.tell("signal KILL")?;
        let begun = Instant::now();
        let error = w.create(World::request("while", &[])).await.err().context("the server is gone")?;
        ensure!(error.code() == Code::Unavailable && error.message().contains(&server.address), "{error}");
        ensure!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
        server.tell("start")?;
        let volume = w.create(World::request("while", &[])).await?;
        ensure!(w.ids().await? == [id.clone(), volume.volume_id.clone()]);
        // Killed and started between two calls: the connections are dead, and nobody notices.
        server.tell("signal KILL")?;
        server.tell("start")?;
        w.delete(&id).await?;
        w.delete(&volume.volume_id).await?;
        w.until_clean().await?;
    }
    Ok(())
}

/// N1, N5: a server that does not answer hangs no call, no probe and no shutdown.
#[tokio::test(flavor = "multi_thread")]
async fn n1_a_server_that_hangs_does_not_hang_the_driver() -> Result<()> {
    let Some(server) = server("hang", "3,4", &[])? else { return Ok(()) };
    for version in ["3", "4.1"] {
        let mut w = World::on(&server, "hang", &format!(", nfsVersion: \"{version}\"")).await?;
        let id = w.make("v").await?;
        server.tell("signal STOP")?;
        let begun = Instant::now();
        let mut identity = w.clients.identity.clone();
        let (create, delete, probe) = tokio::join!(
            w.create(World::request("w", &[])),
            w.delete(&id),
            identity.probe(csi_proto::v1::ProbeRequest::default()),
        );
        for error in [create.err().context("create")?, delete.err().context("delete")?] {
            ensure!(error.code() == Code::Unavailable && error.message().contains("hangs"), "{error}");
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        drop(probe);
        let stopped = Instant::now();
        tokio::time::timeout(Duration::from_secs(20), w.stop()).await.context("the shutdown hangs")??;
        ensure!(stopped.elapsed() < Duration::from_secs(20), "the shutdown hangs");
        server.tell("signal CONT")?;
        w.restart().await?;
        w.make("w").await?;
        w.delete(&id).await?;
        w.until_clean().await?;
    }
    Ok(())
}

/// A cable that is out and in again.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_and_mended() -> Result<()> {
    let Some(server) = server("cut", "3,4", &[])? else { return Ok(()) };
    let w = World::on(&server, "cut", "").await?;
    let id = w.make("v").await?;
    server.tell("cut")?;
    let error = w.delete(&id).await.err().context("no network")?;
    ensure!(error.code() == Code::Unavailable, "{error}");
    server.tell("mend")?;
    w.delete(&id).await?;
    w.until_clean().await
}

/// A read-only export, and one that is writable again.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_export_says_so() -> Result<()> {
    let Some(server) = server("readonly", "3,4", &[])? else { return Ok(()) };
    for version in ["3", "4.1"] {
        let w = World::on(&server, "readonly", &format!(", nfsVersion: \"{version}\"")).await?;
        let id = w.make("v").await?;
        server.tell("access RO")?;
        for error in [w.create(World::request("w", &[])).await.err(), w.delete(&id).await.err()] {
            let error = error.context("it cannot be written to")?;
            ensure!(error.code() == Code::Unavailable && error.message().contains("read-only"), "{error}");
        }
        ensure!(w.ids().await? == [id.as_str()], "reading goes on");
        server.tell("access RW")?;
        w.delete(&id).await?;
    }
    Ok(())
}

/// A server that takes root for nobody: the error says what to do, and it works as the exported directory's owner.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_squashes_root() -> Result<()> {
    let Some(server) = server("squash", "3,4", &["root_squash"])? else { return Ok(()) };
    for version in ["3", "4.1"] {
        let more = format!(", nfsVersion: \"{version}\"");
        let (share, dir) = server.share("squash")?;
        let error = World::at(&server, share, dir, &more).await.err().context("squashed")?;
        let text = format!("{error:#}");
        ensure!(
            text.contains("not ready") && text.contains("no_root_squash") && text.contains("uid"),
            "{text}"
        );
        // Another directory: the server may remember whose this one was.
        let (share, dir) = server.share("owned")?;
        std::os::unix::fs::chown(&dir, Some(1500), Some(1500))?;
        let w = World::at(&server, share, dir, &format!("{more}, uid: 1500, gid: 1500"))
            .await
            .with_context(|| format!("version {version}"))?;
        let id = w.make("v").await?;
        fs::write(w.dir.join("v/file"), "x")?;
        std::os::unix::fs::chown(w.dir.join("v/file"), Some(1500), Some(1500))?;
        w.copy("copy", from_volume(&id)).await?;
        ensure!(fs::read_to_string(w.dir.join("copy/file"))? == "x");
        for id in w.ids().await? {
            w.delete(&id).await?;
        }
        w.until_clean().await?;
    }
    Ok(())
}

/// A full server: what does not fit is refused with RESOURCE_EXHAUSTED, and deleting makes room again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_says_so_and_deleting_still_works() -> Result<()> {
    let Some(server) = server("full", "3,4", &[])? else { return Ok(()) };
    for version in ["3", "4.1"] {
        let w = World::on(&server, "full", &format!(", nfsVersion: \"{version}\"")).await?;
        let id = w.make("v").await?;
        let mut file = fs::File::create(w.dir.join("v/fill"))?;
        while file.write_all(&vec![1; 65536]).is_ok() {}
        while file.write_all(&[1; 512]).is_ok() {}
        drop(file);
        let error = w.create(World::request("w", &[])).await.err().context("full")?;
        ensure!(error.code() == Code::ResourceExhausted, "{error}");
        w.delete(&id).await?;
        w.until_clean().await?;
        w.make("w").await?;
        fs::remove_dir_all(&w.dir)?;
    }
    Ok(())
}

/// The export is made anew below the driver: all handles are stale.
#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_was_made_anew() -> Result<()> {
    for version in ["3", "4.1"] {
        let Some(w) = World::new("anew", version).await? else { return Ok(()) };
        w.make("v").await?;
        fs::remove_dir_all(w.own(""))?;
        fs::remove_dir_all(w.dir.join("v"))?;
        let again = w.make("v").await?;
        ensure!(w.ids().await? == [again]);
    }
    Ok(())
}

/// Bytes that go through slowly: every call takes its time, none is taken for lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_waited_for() -> Result<()> {
    let Some(server) = server("slow", "3,4", &[])? else { return Ok(()) };
    let proxy = delaying_proxy(&format!("{}:2049", server.address), Duration::from_millis(60))?;
    let (share, dir) = server.share("slow")?;
    let scratch = e2e::scratch::Scratch::new()?;
    let config = server.config(scratch.path(), &share, &format!(", nfsVersion: \"4.1\", port: {proxy}"))?;
    let config = config.replace(&format!("server: \"{}\"", server.address), "server: localhost");
    let w = World::with(scratch, share, dir, config).await?;
    let id = w.make("v").await?;
    for i in 0..20 {
        fs::write(w.dir.join(format!("v/{i}")), "x")?;
    }
    w.copy("copy", from_volume(&id)).await?;
    w.delete(&id).await?;
    Ok(())
}

/// A port of this machine that leads to an address, each piece of data late.
fn delaying_proxy(to: &str, delay: Duration) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let to = to.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&to) else { continue };
            let (Ok(from), Ok(back)) = (client.try_clone(), server.try_clone()) else { continue };
            std::thread::spawn(move || forward(from, server, delay));
            std::thread::spawn(move || forward(back, client, Duration::ZERO));
        }
    });
    Ok(port)
}

fn forward(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        std::thread::sleep(delay);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Without a version in the configuration the newest that the server speaks is used.
#[tokio::test(flavor = "multi_thread")]
async fn the_version_is_found() -> Result<()> {
    for versions in ["3", "4", "3,4"] {
        let Some(server) = server("version", versions, &[])? else { return Ok(()) };
        let w = World::on(&server, "version", "").await?;
        w.make("v").await?;
    }
    Ok(())
}
