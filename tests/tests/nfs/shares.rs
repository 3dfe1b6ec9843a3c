//! Several shares: what is told of each.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::drivers::Process;
use e2e::nfs::Nfs;
use e2e::pages::{free_port, get, get_until};
use e2e::requests as ask;
use e2e::scratch::Scratch;

use crate::world::World;

/// A share that is dead beside good ones, configured and learnt: the driver is ready, soon, and pages say which one it is
/// and why.
#[tokio::test(flavor = "multi_thread")]
async fn b11_a_dead_share_is_named_beside_good_ones() -> Result<()> {
    if !Nfs::possible("named-share") {
        return Ok(());
    }
    let dead = Nfs::start("3,4", &[])?;
    let server = Nfs::shared("named-share")?.context("a server")?;
    let ((main, _), (learnt, _), (second, _)) =
        (server.share("named-main")?, server.share("named-learnt")?, dead.share("named-dead")?);
    let (scratch, port) = (Scratch::new()?, free_port()?);
    let more = format!("}}, {{name: second, server: \"{}\", share: {second}}}]", dead.address);
    let text = server.config(scratch.path(), &main, "")?.replace("}]", &more);
    let text = text.replace("    sweepSeconds", "    anyShare: true\n    sweepSeconds");
    let mut process = Process::start(scratch.path(), &format!("httpAddress: 127.0.0.1:{port}\n{text}"))?;
    let mut clients = process.clients().await?;
    let request = World::request("v", &[("server", server.address.as_str()), ("share", learnt.as_str())]);
    clients.controller.create_volume(request).await?;
    let metric = |part: &str, ready: u8| {
        format!(r#"volumectl_csi_part_ready{{backend="nfs.csi.volumectl.io",part="{part}"}} {ready}"#)
    };
    let direct = format!("share {}#{learnt}", server.address);
    get_until(port, "/readyz", "nfs.csi.volumectl.io: ready\n")?;
    dead.tell("signal STOP")?;
    for restarted in [false, true] {
        if restarted {
            ensure!(process.terminate()? == Some(0));
            process = Process::start(scratch.path(), &format!("httpAddress: 127.0.0.1:{port}\n{text}"))?;
            clients = process.clients().await?;
        }
        // The learnt one is known from the start; the numbers are those of the last look.
        let begun = Instant::now();
        while !get(port, "/metrics")?.contains(&metric(&direct, 1)) {
            ensure!(begun.elapsed() < Duration::from_secs(60), "{}", get(port, "/metrics")?);
            get(port, "/readyz")?;
            std::thread::sleep(Duration::from_millis(200));
        }
        let page = get_until(port, "/readyz", "nfs.csi.volumectl.io: ready in part\n")?;
        ensure!(page.starts_with("HTTP/1.1 200") && page.contains(": share second: "), "{page}");
        ensure!(!page.contains("share main") && !page.contains(&direct), "{page}");
        let begun = Instant::now();
        let probe = clients.identity.probe(pb::ProbeRequest::default()).await?;
        ensure!(probe.get_ref().ready == Some(true) && begun.elapsed() < Duration::from_secs(5));
        let metrics = get(port, "/metrics")?;
        for line in [metric("share main", 1), metric("share second", 0), metric(&direct, 1)] {
            ensure!(metrics.contains(&line), "{line}: {metrics}");
        }
    }
    dead.tell("signal CONT")?;
    get_until(port, "/readyz", "nfs.csi.volumectl.io: ready\n")?;
    ensure!(get(port, "/metrics")?.contains(&metric("share second", 1)));
    Ok(())
}

/// One share that is named in several ways - by classes, handles and records - is one: with one handle for a volume, which
/// is listed once, as it was given out.
#[tokio::test(flavor = "multi_thread")]
async fn a_share_named_in_several_ways_is_one() -> Result<()> {
    let Some(mut w) = World::new("spelled", "4.1").await? else { return Ok(()) };
    let server = Nfs::shared("spelled")?.context("a server")?;
    let (other, other_dir) = server.share("spelled-other")?;
    w.config = w.config.replace("    sweepSeconds", "    anyShare: true\n    sweepSeconds");
    w.restart().await?;
    let (address, main) = (server.address.as_str(), w.share.clone());
    let mut made = Vec::new();
    for share in [&main, &other] {
        for spelling in [share.clone(), format!("{share}/"), format!("/{share}//")] {
            let request = World::request("v", &[("server", address), ("share", &spelling)]);
            made.push(w.create(request).await?.volume_id);
        }
    }
    let direct = format!("{address}#{other}#v");
    ensure!(
        made[..3].iter().all(|id| id == "main:v") && made[3..].iter().all(|id| *id == direct),
        "{made:?}"
    );
    // By the server and path of the configured one, and in another spelling.
    let spelled = format!("{address}#/{other}/#v");
    for id in [format!("{address}#{main}#v"), spelled.clone()] {
        ensure!(w.get(&id).await?.volume.unwrap_or_default().volume_id == id);
        w.clients.controller.clone().controller_expand_volume(ask::expand(&id, 64 << 20)).await?;
    }
    let mut both = vec![direct.clone(), "main:v".to_owned()];
    both.sort();
    ensure!(w.ids().await? == both, "{:?}", w.ids().await?);
    let snapshot = w.snapshot(&spelled, "s").await?;
    ensure!(w.snapshot(&direct, "s").await?.snapshot_id == snapshot.snapshot_id);
    w.delete_snapshot(&snapshot.snapshot_id).await?;
    // A volume that an earlier version has made under another spelling keeps its handle.
    w.stop().await?;
    let record = other_dir.join(".volumectl/volumes/v.json");
    fs::write(
        &record,
        fs::read_to_string(&record)?.replace(&format!("\"{direct}\""), &format!("\"{spelled}\"")),
    )?;
    World::settle().await;
    w.restart().await?;
    ensure!(w.ids().await? == [spelled.clone(), "main:v".to_owned()], "{:?}", w.ids().await?);
    let again = World::request("v", &[("server", address), ("share", &other)]);
    ensure!(w.create(again).await?.volume_id == spelled);
    for id in [spelled, format!("{address}#/{main}#v")] {
        w.delete(&id).await?;
    }
    ensure!(w.ids().await?.is_empty() && w.names()?.is_empty(), "{:?}", w.names()?);
    Ok(())
}
