//! What must not be destroyed, and what must not be waited for: strangers in a volume's place, shares within shares, live
//! copies, dead shares beside good ones, damaged records.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::nfs::Nfs;
use e2e::requests as ask;
use e2e::scratch::Scratch;
use tonic::Code;

use crate::world::{World, from_volume};

/// A server whose file system gives the number of a directory that is gone to the next one: what memory does not do, a
/// disk does.
pub fn on_disk(test: &str, scratch: &Scratch) -> Result<Option<Nfs>> {
    if !Nfs::possible(test) {
        return Ok(None);
    }
    Nfs::start("3,4", &["no_root_squash", &scratch.path().display().to_string()]).map(Some)
}

/// Puts another directory in a volume's place; whether the server gave it the same number.
pub fn replace(dir: &Path) -> Result<bool> {
    let before = fs::metadata(dir)?.ino();
    fs::remove_dir_all(dir)?;
    fs::create_dir(dir)?;
    fs::write(dir.join("precious"), "a stranger's")?;
    Ok(fs::metadata(dir)?.ino() == before)
}

/// A directory that was put in a volume's place is never removed, archived or filled from, also where it has the number of
/// the one that was there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_the_same_number_is_never_removed() -> Result<()> {
    let scratch = Scratch::new()?;
    let Some(server) = on_disk("stranger", &scratch)? else { return Ok(()) };
    for version in
        [", nfsVersion: \"3\"", ", nfsVersion: \"4.1\"", ", nfsVersion: \"4.2\"", ", client: mount"]
    {
        let w = World::on(&server, "stranger", version).await?;
        let mut same = 0;
        for round in 0..4 {
            let name = format!("v{round}");
            let policy = if round == 3 { "archive" } else { "delete" };
            let id = w.create(World::request(&name, &[("onDelete", policy)])).await?.volume_id;
            same += usize::from(replace(&w.dir.join(&name))?);
            World::settle().await;
            let condition = w.get(&id).await?.status.unwrap_or_default().volume_condition.unwrap_or_default();
            ensure!(condition.abnormal && condition.message.contains("another"), "{version}: {condition:?}");
            ensure!(w.copy("copy", from_volume(&id)).await.is_err(), "{version}: the stranger was cloned");
            w.delete(&id).await?;
            w.until_clean().await?;
            ensure!(
                fs::read_to_string(w.dir.join(&name).join("precious"))? == "a stranger's",
                "{version}, round {round}: the stranger's data is gone"
            );
        }
        if same == 0 {
            e2e::skip("stranger", "this file system gave no number twice");
        }
    }
    Ok(())
}

/// The directory is exchanged between the look at it and the rename: what came to the trash goes back; and after a kill in
/// between, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_volumes_comes_back_from_the_trash() -> Result<()> {
    let Some(mut w) = World::new("exchanged", "4.1").await? else { return Ok(()) };
    let id = w.make("v").await?;
    fs::write(w.dir.join("v/file"), "x")?;
    w.make("other").await?;
    w.delete("main:other").await?;
    w.until_clean().await?;
    w.stop().await?;
    // As a deletion leaves it that was killed after its rename: the name is of the volume, the directory is not.
    fs::rename(w.dir.join("v"), w.dir.join("aside"))?;
    let name = "0123456789abcdef01234567.00112233445566778899aabb.v";
    fs::create_dir(w.own("trash").join(name))?;
    fs::write(w.own("trash").join(name).join("precious"), "a stranger's")?;
    w.restart().await?;
    w.until("it is back", || Ok(w.dir.join("v/precious").exists())).await?;
    w.delete(&id).await?;
    ensure!(fs::read_to_string(w.dir.join("v/precious"))? == "a stranger's");
    ensure!(fs::read_to_string(w.dir.join("aside/file"))? == "x");
    Ok(())
}

/// Nothing is made in another share by the outer one, either.
async fn nothing_is_made_within(w: &World) -> Result<()> {
    for dir in ["deep/er/a/b/new", "team/new"] {
        let error = w.create(World::request("new", &[("subDir", dir)])).await.err().context("made within")?;
        ensure!([Code::FailedPrecondition, Code::AlreadyExists].contains(&error.code()), "{error}");
    }
    fs::create_dir_all(w.dir.join("outside/x/.volumectl/volumes"))?;
    let within = w.create(World::request("w", &[("subDir", "outside/x/v")])).await.err().context("within")?;
    ensure!(
        within.code() == Code::FailedPrecondition && within.message().contains("another share"),
        "{within}"
    );
    Ok(())
}

/// With a share and one within it both in use, no volume of the one takes the other with it, by whatever policy, name of
/// the server or path.
#[tokio::test(flavor = "multi_thread")]
async fn shares_within_shares_are_left_alone() -> Result<()> {
    for version in ["3", "4.1"] {
        let Some(mut w) = World::new("nested", version).await? else { return Ok(()) };
        let server = Nfs::shared("nested")?.context("a server")?;
        w.config = w.config.replace("    sweepSeconds", "    anyShare: true\n    sweepSeconds");
        w.restart().await?;
        let team = w.make("team").await?;
        let deep = w.create(World::request("deep", &[("subDir", "deep/er")])).await?.volume_id;
        let kept = w.create(World::request("kept", &[("onDelete", "archive")])).await?.volume_id;
        fs::create_dir_all(w.dir.join("deep/er/a/b"))?;
        let mut inner = Vec::new();
        for dir in ["team", "deep/er/a/b", "kept"] {
            let parameters = [("server", server.address.as_str()), ("share", &format!("{}/{dir}", w.share))];
            let mut request = World::request(&format!("inner-{}", inner.len()), &parameters);
            request.parameters.insert("subDir".into(), "data".into());
            let volume = w.create(request).await?;
            let data = w.dir.join(dir).join("data");
            fs::write(data.join("file"), "theirs")?;
            inner.push((volume.volume_id, data));
        }
        for round in 0..2 {
            for id in [&team, &deep, &kept] {
                let error =
                    w.delete(id).await.err().with_context(|| format!("{version}: {id} was deleted"))?;
                ensure!(error.code() == Code::FailedPrecondition, "{error}");
                ensure!(
                    error.message().contains("another share's root")
                        || error.message().contains("is above share"),
                    "{error}"
                );
            }
            for (id, data) in &inner {
                ensure!(fs::read_to_string(data.join("file"))? == "theirs", "{id}");
            }
            // No more than what is on the share is needed to know it: another driver, with one share only.
            if round == 0 {
                w.config = w.config.replace("    anyShare: true\n", "");
                fs::remove_dir_all(w.scratch.path().join("state")).ok();
                fs::remove_dir_all(w.own("shares")).ok();
                w.restart().await?;
            }
        }
        nothing_is_made_within(&w).await?;
        w.config = w.config.replace("    sweepSeconds", "    anyShare: true\n    sweepSeconds");
        w.restart().await?;
        for (id, _) in &inner {
            w.delete(id).await?;
        }
        w.config = w.config.replace("    anyShare: true\n", "");
        w.restart().await?;
        for dir in ["team", "deep/er/a/b", "kept"] {
            fs::remove_dir_all(w.dir.join(dir).join(".volumectl"))?;
        }
        World::settle().await;
        for id in [&team, &kept] {
            w.delete(id).await.with_context(|| format!("{id}, which nothing is in any more"))?;
        }
    }
    Ok(())
}

/// Another driver's copy is not swept, however long it takes and however slow it is; and what was abandoned goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_live_copy_is_not_swept_by_another_driver() -> Result<()> {
    let Some(w) = World::new("live-copy", "4.1").await? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let config =
        w.config.replace(&w.scratch.path().display().to_string(), &scratch.path().display().to_string());
    let second = World::with(scratch, w.share.clone(), w.dir.clone(), config).await?;
    let id = w.make("source").await?;
    let dir = w.dir.join("source");
    for i in 0..3000 {
        fs::write(dir.join(format!("file-{i}")), "content")?;
    }
    // What the copy gets at its end, as every copy does: the times of its source.
    let old = std::process::Command::new("touch").args(["-d", "2001-01-01"]).arg(&dir).status()?;
    ensure!(old.success());
    let abandoned = w.own("tmp").join("0123456789abcdef01234567-abandoned");
    fs::create_dir(&abandoned)?;
    let copying = async {
        for round in 0..3 {
            w.copy(&format!("copy-{round}"), from_volume(&id)).await?;
            w.snapshot(&id, &format!("snap-{round}")).await?;
        }
        Ok::<_, tonic::Status>(())
    };
    copying.await?;
    second.until("the abandoned one is gone", || Ok(!abandoned.exists())).await?;
    Ok(())
}

/// A draft that has its last attributes - times of long ago - and waits for its record is alive as long as its change time
/// changes; what looks old by its times only is not taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_draft_is_not_judged_by_times_that_a_copy_sets() -> Result<()> {
    let Some(w) = World::new("draft-times", "4.1").await? else { return Ok(()) };
    let draft = w.own("tmp").join("0123456789abcdef01234567");
    fs::create_dir(&draft)?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(26) {
        let touched = std::process::Command::new("touch").args(["-d", "2001-01-01"]).arg(&draft).status()?;
        ensure!(touched.success() && draft.exists(), "taken after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    w.until("it is gone when nobody works on it", || Ok(!draft.exists())).await
}

/// One share is dead, one is mistyped in a class: the good one is listed, probed and used as if they were not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dead_share_keeps_nothing_of_a_good_one_waiting() -> Result<()> {
    if !Nfs::possible("dead-share") {
        return Ok(());
    }
    let dead = Nfs::start("3,4", &[])?;
    let (dead_share, _) = dead.share("dead")?;
    let Some(mut w) = World::new("dead-share", "4.1").await? else { return Ok(()) };
    let more = format!("}}, {{name: second, server: \"{}\", share: {dead_share}}}]", dead.address);
    w.config =
        w.config.replace("}]", &more).replace("    sweepSeconds", "    anyShare: true\n    sweepSeconds");
    w.restart().await?;
    w.create(World::request("good", &[("shareName", "main")])).await?;
    w.create(World::request("lost", &[("shareName", "second")])).await?;
    ensure!(w.ids().await? == ["main:good", "second:lost"]);
    for (server, share) in [("no-such-server.invalid", "/x"), (w_address()?.as_str(), "/no/such/export")] {
        let mistyped = World::request("v", &[("server", server), ("share", share)]);
        ensure!(w.create(mistyped).await.is_err());
    }
    dead.tell("signal STOP")?;
    for restarted in [false, true] {
        if restarted {
            w.restart().await?;
        }
        tokio::time::sleep(Duration::from_secs(6)).await;
        let probe = w.clients.identity.clone().probe(pb::ProbeRequest::default()).await?;
        ensure!(probe.get_ref().ready == Some(true), "one good share is enough");
        let begun = Instant::now();
        ensure!(w.ids().await? == ["main:good"]);
        ensure!(begun.elapsed() < Duration::from_secs(8), "the list took {:?}", begun.elapsed());
        let begun = Instant::now();
        let name = format!("new-{restarted}");
        let id = w.create(World::request(&name, &[("shareName", "main")])).await?.volume_id;
        w.delete(&id).await?;
        ensure!(begun.elapsed() < Duration::from_secs(5), "the good share took {:?}", begun.elapsed());
        w.until_clean().await?;
        let error = w.create(World::request("w", &[("shareName", "second")])).await.err().context("dead")?;
        ensure!(error.code() == Code::Unavailable && error.message().contains(&dead.address), "{error}");
    }
    dead.tell("signal CONT")?;
    w.until("the dead one is listed again", || Ok(true)).await?;
    let begun = Instant::now();
    while w.ids().await? != ["main:good", "second:lost"] {
        ensure!(begun.elapsed() < Duration::from_secs(30), "{:?}", w.ids().await?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

fn w_address() -> Result<String> {
    Ok(Nfs::shared("address")?.context("a server")?.address.clone())
}

/// A driver all of whose shares are dead is not ready.
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_can_serve_nothing_is_not_ready() -> Result<()> {
    if !Nfs::possible("all-dead") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    let w = World::on(&server, "all-dead", "").await?;
    server.tell("signal KILL")?;
    // What was known stands for a while.
    let begun = Instant::now();
    while w.clients.identity.clone().probe(pb::ProbeRequest::default()).await.is_ok() {
        ensure!(begun.elapsed() < Duration::from_secs(60), "still ready");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}

/// A record of no bytes, of garbage, or of a newer version makes its own volume abnormal, and no other; it is neither
/// deleted nor made again.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_is_its_own_volumes_trouble_only() -> Result<()> {
    for version in ["3", "4.1"] {
        let Some(mut w) = World::new("damaged", version).await? else { return Ok(()) };
        for name in ["a", "b", "c", "d", "good"] {
            w.make(name).await?;
        }
        let snapshots = [w.snapshot("main:good", "s1").await?, w.snapshot("main:good", "s2").await?];
        let record = fs::read_to_string(w.own("volumes/c.json"))?;
        fs::write(w.own("volumes/a.json"), "")?;
        fs::write(w.own("volumes/b.json"), "{\"schema\": 1, \"kind\": \"Volu")?;
        fs::write(w.own("volumes/c.json"), record.replace("\"schema\": 1", "\"schema\": 99"))?;
        fs::write(w.own("snapshots/s1/snapshot.json"), "")?;
        World::settle().await;
        let answer = w.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?;
        for entry in answer.into_inner().entries {
            let id = entry.volume.unwrap_or_default().volume_id;
            let condition = entry.status.unwrap_or_default().volume_condition.unwrap_or_default();
            let bad = ["main:a", "main:b", "main:c"].contains(&id.as_str());
            ensure!(condition.abnormal == bad, "{id}: {condition:?}");
            ensure!(!bad || condition.message.contains("volumes/"), "{id}: {condition:?}");
        }
        ensure!(w.ids().await?.len() == 5);
        let listed = w.clients.controller.clone().list_snapshots(pb::ListSnapshotsRequest::default()).await?;
        let listed: Vec<_> =
            listed.into_inner().entries.into_iter().filter_map(|e| Some(e.snapshot?.snapshot_id)).collect();
        ensure!(listed == [snapshots[1].snapshot_id.clone()], "{listed:?}");
        for name in ["a", "b", "c"] {
            ensure!(w.delete(&format!("main:{name}")).await.is_err() && w.make(name).await.is_err());
            ensure!(w.dir.join(name).is_dir());
        }
        w.delete("main:d").await?;
        // An intent that cannot be read: what it may have is kept, what others have left is swept.
        fs::write(w.own("intents/half.json"), "")?;
        let (kept, swept) =
            (w.own("tmp/0123456789abcdef01234567-half"), w.own("tmp/0123456789abcdef01234567-gone"));
        fs::create_dir(&kept)?;
        fs::create_dir(&swept)?;
        w.restart().await?;
        w.until("what is nobody's is swept", || Ok(!swept.exists())).await?;
        ensure!(kept.exists());
    }
    Ok(())
}

/// Shares that only classes have named are found again by the next driver: their volumes are listed, their trash emptied.
#[tokio::test(flavor = "multi_thread")]
async fn shares_that_classes_have_named_are_found_again() -> Result<()> {
    for keep_state in [true, false] {
        let Some(mut w) = World::new("learnt", "4.1").await? else { return Ok(()) };
        let server = Nfs::shared("learnt")?.context("a server")?;
        let (other, other_dir) = server.share("learnt-other")?;
        w.config = w.config.replace("    sweepSeconds", "    anyShare: true\n    sweepSeconds");
        w.restart().await?;
        let parameters = [("server", server.address.as_str()), ("share", other.as_str())];
        let id = w.create(World::request("v", &parameters)).await?.volume_id;
        w.stop().await?;
        if !keep_state {
            fs::remove_dir_all(w.scratch.path().join("state"))?;
        }
        // As a driver leaves it that was killed behind the answer to a deletion.
        let trash = other_dir.join(".volumectl/trash/0123456789abcdef01234567");
        fs::create_dir(&trash)?;
        fs::write(trash.join("file"), "x")?;
        w.restart().await?;
        w.until("its trash is emptied", || Ok(!trash.exists())).await?;
        ensure!(w.ids().await? == [id], "{:?}", w.ids().await?);
    }
    Ok(())
}

/// Connections of a server that stands still are dropped at once: no call takes longer than its time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sessions_of_a_dead_server_are_dropped_at_once() -> Result<()> {
    if !Nfs::possible("drop") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    let w = World::on(&server, "drop", ", nfsVersion: \"4.1\"").await?;
    // Many connections, which wait for work then.
    let calls = (0..12).map(|i| w.create(World::request(&format!("v{i}"), &[]))).collect();
    for call in e2e::join_all(calls).await {
        call?;
    }
    server.tell("signal STOP")?;
    for _ in 0..2 {
        let begun = Instant::now();
        let ids: Vec<_> = (0..4).map(|i| format!("main:v{i}")).collect();
        for outcome in e2e::join_all(ids.iter().map(|id| w.delete(id)).collect()).await {
            ensure!(outcome.err().context("no server")?.code() == Code::Unavailable);
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(7),
            "with a limit of 5 s it took {:?}",
            begun.elapsed()
        );
    }
    server.tell("signal CONT")?;
    for i in 0..12 {
        w.delete(&format!("main:v{i}")).await?;
    }
    w.until_clean().await
}

/// A volume that is staged at two paths - kubelet has changed them between versions - is unstaged at each, in any order, also
/// twice, and the share goes with the last.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_staged_at_two_paths_is_unstaged_at_both() -> Result<()> {
    let Some(w) = World::new("two-paths", "4.1").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let paths = ["plugins-old", "plugins-new"].map(|name| w.scratch.path().join("kubelet").join(name));
    let mut node = w.clients.node.clone();
    for order in [[0, 1], [1, 0]] {
        for path in &paths {
            fs::create_dir_all(path)?;
            node.node_stage_volume(ask::stage(&id, path, ask::mount(""))).await?;
        }
        for (left, at) in [(2, order[0]), (0, order[1])] {
            for _ in 0..2 {
                node.node_unstage_volume(ask::unstage(&id, &paths[at])).await?;
                ensure!(w.scratch.mounts().len() == left, "{:?}", w.scratch.mounts());
            }
        }
    }
    w.delete(&id).await?;
    Ok(())
}
