//! Names, policies and records: what users of the other NFS drivers have asked for or lost.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::requests::{self as ask, MIB};
use tonic::Code;

use crate::world::{SIZE, VERSIONS, World, from_snapshot, from_volume};

/// What the external-provisioner says of a claim.
fn claim(request: &mut pb::CreateVolumeRequest, namespace: &str, name: &str) {
    for (key, value) in [("pvc/namespace", namespace), ("pvc/name", name), ("pv/name", &request.name.clone())]
    {
        request.parameters.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
    }
}

/// Both drivers' templates make the directory that they make there.
#[tokio::test(flavor = "multi_thread")]
async fn directories_are_named_by_templates() -> Result<()> {
    for version in VERSIONS {
        let Some(w) = World::new("templates", version).await? else { return Ok(()) };
        let templates = [
            ("subDir", "${pvc.metadata.namespace}/${pvc.metadata.name}", "shop/data-1"),
            ("pathPattern", "${.PVC.namespace}-${.PVC.name}", "shop-data-2"),
            ("subDir", "a b/ü/${pv.name}", "a b/ü/three"),
            ("subDir", "${pvc.labels.tier}/x", "gold/x"),
        ];
        for (i, (key, template, dir)) in templates.iter().enumerate() {
            let name = ["one", "two", "three", "four"][i];
            // A class with pathPattern archives, unless it says otherwise.
            let mut request = World::request(name, &[(key, template), ("onDelete", "delete")]);
            claim(&mut request, "shop", &format!("data-{}", i + 1));
            request.parameters.insert("csi.volumectl.io/pvc/labels/tier".into(), "gold".into());
            let volume = w.create(request.clone()).await?;
            ensure!(w.dir.join(dir).is_dir(), "{dir}: {:?}", w.names()?);
            ensure!(volume.volume_context["subdir"] == *dir);
            ensure!(w.create(request).await? == volume, "again");
        }
        ensure!(w.ids().await?.len() == 4);
        for id in w.ids().await? {
            w.delete(&id).await?;
        }
        w.until_clean().await?;
        ensure!(
            w.names()? == ["a b", "gold", "shop"],
            "only what was made for the volumes goes: {:?}",
            w.names()?
        );
    }
    Ok(())
}

/// No template leads out of the share, or into the driver's own directory.
#[tokio::test(flavor = "multi_thread")]
async fn templates_do_not_leave_the_share() -> Result<()> {
    let Some(w) = World::new("escape", "4.1").await? else { return Ok(()) };
    let long = "x".repeat(256);
    let many = "d/".repeat(600) + "e";
    for bad in [
        "../up",
        "a/../../up",
        "/absolute",
        "a//b",
        "a/./b",
        "",
        ".volumectl",
        "a/.volumectl-x/b",
        "new\nline",
        &long,
        &many,
        "end/",
    ] {
        let error =
            w.create(World::request("bad", &[("subDir", bad)])).await.err().context(bad.to_owned())?;
        ensure!(
            error.code() == Code::InvalidArgument && error.message().contains("subDir"),
            "{bad:?}: {error}"
        );
    }
    let mut request = World::request("bad", &[("subDir", "x/${pvc.annotations.path}")]);
    request.parameters.insert("csi.volumectl.io/pvc/annotations/path".into(), "../../etc".into());
    let error = w.create(request).await.err().context("an annotation that climbs")?;
    ensure!(error.code() == Code::InvalidArgument, "{error}");
    ensure!(w.names()?.is_empty() && w.ids().await?.is_empty());
    Ok(())
}

/// N9, D12: nothing is removed that has no record of ours: other people's directories, what is reached by a link, and
/// neighbours whose names begin alike.
#[tokio::test(flavor = "multi_thread")]
async fn n9_only_what_is_our_own_is_removed() -> Result<()> {
    for version in VERSIONS {
        let Some(w) = World::new("n9", version).await? else { return Ok(()) };
        fs::create_dir_all(w.dir.join("theirs/data"))?;
        fs::write(w.dir.join("theirs/data/file"), "keep")?;
        for existing in ["theirs", "theirs/data"] {
            let error =
                w.create(World::request("v", &[("subDir", existing)])).await.err().context(existing)?;
            ensure!(error.code() == Code::AlreadyExists && error.message().contains(existing), "{error}");
        }
        ensure!(w.names()? == ["theirs"] && w.ids().await?.is_empty());
        // The directory was exchanged for another one, or for a link to somewhere else.
        let (moved, linked) = (w.make("vol1").await?, w.make("vol10").await?);
        fs::rename(w.dir.join("vol1"), w.dir.join("aside"))?;
        fs::create_dir(w.dir.join("vol1"))?;
        fs::write(w.dir.join("vol1/file"), "not yours")?;
        fs::rename(w.dir.join("vol10"), w.dir.join("aside10"))?;
        symlink("theirs", w.dir.join("vol10"))?;
        for id in [&moved, &linked] {
            let shown = w.get(id).await?;
            ensure!(shown.status.unwrap_or_default().volume_condition.unwrap_or_default().abnormal);
            w.delete(id).await?;
        }
        ensure!(fs::read_to_string(w.dir.join("vol1/file"))? == "not yours");
        ensure!(fs::read_to_string(w.dir.join("theirs/data/file"))? == "keep");
        ensure!(w.ids().await?.is_empty());
        // Deleting one leaves the neighbour whose name begins alike.
        let error = w.create(World::request("vol1", &[])).await.err().context("it exists")?;
        ensure!(error.code() == Code::AlreadyExists, "{error}");
        fs::remove_dir_all(w.dir.join("vol1"))?;
        let short = w.make("vol1").await?;
        let nested = w
            .create(World::request("inner", &[("subDir", "vol1/inner")]))
            .await
            .err()
            .context("within a volume")?;
        ensure!(nested.code() == Code::AlreadyExists && nested.message().contains("vol1"), "{nested}");
        let long = w.create(World::request("vol100", &[("subDir", "vol100/x")])).await?.volume_id;
        let around = w
            .create(World::request("around", &[("subDir", "vol100")]))
            .await
            .err()
            .context("around a volume")?;
        ensure!(around.code() == Code::AlreadyExists, "{around}");
        w.delete(&short).await?;
        ensure!(w.dir.join("vol100/x").is_dir());
        w.delete(&long).await?;
        w.until_clean().await?;
    }
    Ok(())
}

/// Two claims whose template gives the same directory do not share it.
#[tokio::test(flavor = "multi_thread")]
async fn two_volumes_do_not_get_one_directory() -> Result<()> {
    let Some(w) = World::new("twins", "4.1").await? else { return Ok(()) };
    w.create(World::request("one", &[("subDir", "same")])).await?;
    let error = w.create(World::request("two", &[("subDir", "same")])).await.err().context("taken")?;
    ensure!(error.code() == Code::AlreadyExists && error.message().contains("same"), "{error}");
    ensure!(w.ids().await? == ["main:one"]);
    w.delete("main:one").await?;
    w.create(World::request("two", &[("subDir", "same")])).await?;
    Ok(())
}

/// N2, D9, D10: an archive never erases an older one, and deleting twice, also after a restart, is fine.
#[tokio::test(flavor = "multi_thread")]
async fn n2_archives_are_kept_and_deletion_can_be_repeated() -> Result<()> {
    for version in VERSIONS {
        let Some(mut w) = World::new("n2", version).await? else { return Ok(()) };
        for round in 0..3 {
            let id = w.create(World::request("data", &[("onDelete", "archive")])).await?.volume_id;
            fs::write(w.dir.join("data/round"), round.to_string())?;
            w.delete(&id).await?;
            w.restart().await?;
            w.delete(&id).await?;
        }
        let names = w.names()?;
        ensure!(names.len() == 3 && names[0] == "archived-data", "{names:?}");
        let mut rounds = Vec::new();
        for name in &names {
            rounds.push(fs::read_to_string(w.dir.join(name).join("round"))?);
        }
        rounds.sort();
        ensure!(rounds == ["0", "1", "2"], "{rounds:?}");
        // Killed between the rename and the end: the directory is there under its archive's name already.
        let id = w.create(World::request("again", &[("archiveOnDelete", "true")])).await?.volume_id;
        fs::rename(w.dir.join("again"), w.dir.join("archived-again"))?;
        w.delete(&id).await?;
        ensure!(w.dir.join("archived-again").is_dir() && w.ids().await?.is_empty());
    }
    Ok(())
}

/// N10: what becomes of the directory is decided at creation, and can be changed by a VolumeAttributesClass.
#[tokio::test(flavor = "multi_thread")]
async fn n10_the_policy_is_the_volumes_own() -> Result<()> {
    let Some(w) = World::new("n10", "4.1").await? else { return Ok(()) };
    let kept = w.create(World::request("kept", &[("onDelete", "retain")])).await?.volume_id;
    fs::write(w.dir.join("kept/file"), "x")?;
    w.delete(&kept).await?;
    ensure!(w.dir.join("kept/file").exists() && w.ids().await?.is_empty());
    ensure!(fs::read_dir(w.own("retained"))?.count() == 1, "its record is kept aside");
    let changed = w.create(World::request("changed", &[("onDelete", "retain")])).await?.volume_id;
    let request = pb::ControllerModifyVolumeRequest {
        volume_id: changed.clone(),
        mutable_parameters: [
            ("onDelete", "delete"),
            ("mountPermissions", "0750"),
            ("uid", "1001"),
            ("gid", "1002"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into(),
        ..Default::default()
    };
    w.clients.controller.clone().controller_modify_volume(request).await?;
    let meta = fs::metadata(w.dir.join("changed"))?;
    ensure!((meta.mode() & 0o7777, meta.uid(), meta.gid()) == (0o750, 1001, 1002));
    w.delete(&changed).await?;
    ensure!(!w.dir.join("changed").exists());
    let error =
        w.create(World::request("both", &[("onDelete", "retain"), ("archiveOnDelete", "true")])).await.err();
    ensure!(error.is_some_and(|e| e.code() == Code::InvalidArgument));
    Ok(())
}

/// N8, D11: the size is recorded, compared and can grow; a volume that holds more says so.
#[tokio::test(flavor = "multi_thread")]
async fn n8_the_size_is_recorded_and_passing_it_is_told() -> Result<()> {
    let Some(w) = World::new("n8", "4.1").await? else { return Ok(()) };
    let id = w.make("sized").await?;
    let mut other = World::request("sized", &[]);
    other.capacity_range = Some(pb::CapacityRange { required_bytes: 2 * SIZE, limit_bytes: 0 });
    let error = w.create(other).await.err().context("another size")?;
    ensure!(error.code() == Code::AlreadyExists && error.message().contains("size"), "{error}");
    fs::write(w.dir.join("sized/much"), vec![1; usize::try_from(SIZE + MIB)?])?;
    let condition = w.get(&id).await?.status.unwrap_or_default().volume_condition.unwrap_or_default();
    ensure!(condition.abnormal && condition.message.contains("does not enforce"), "{condition:?}");
    let grown =
        w.clients.controller.clone().controller_expand_volume(ask::expand(&id, 2 * SIZE)).await?.into_inner();
    ensure!(grown.capacity_bytes == 2 * SIZE && !grown.node_expansion_required);
    let shown = w.get(&id).await?;
    ensure!(shown.volume.unwrap_or_default().capacity_bytes == 2 * SIZE);
    ensure!(!shown.status.unwrap_or_default().volume_condition.unwrap_or_default().abnormal);
    Ok(())
}

/// The directory has the owner and mode that the class says.
#[tokio::test(flavor = "multi_thread")]
async fn owner_and_mode_are_the_classs() -> Result<()> {
    for version in VERSIONS {
        let Some(w) = World::new("owner", version).await? else { return Ok(()) };
        w.create(World::request("v", &[("mountPermissions", "2770"), ("uid", "999"), ("gid", "1000")]))
            .await?;
        let meta = fs::metadata(w.dir.join("v"))?;
        ensure!((meta.mode() & 0o7777, meta.uid(), meta.gid()) == (0o2770, 999, 1000), "{version}: {meta:?}");
        w.create(World::request("plain", &[])).await?;
        ensure!(fs::metadata(w.dir.join("plain"))?.mode() & 0o7777 == 0o777, "{version}");
        ensure!(
            fs::metadata(w.own(""))?.mode() & 0o777 == 0o700,
            "nobody else looks into the driver's directory"
        );
    }
    Ok(())
}

/// N6: a volume that was made by hand: server, share and directory in the PV's attributes.
#[tokio::test(flavor = "multi_thread")]
async fn n6_volumes_made_by_hand_are_mounted() -> Result<()> {
    let Some(w) = World::new("n6", "4.1").await? else { return Ok(()) };
    fs::create_dir_all(w.dir.join("by/hand"))?;
    fs::write(w.dir.join("by/hand/file"), "x")?;
    let server = e2e::nfs::Nfs::shared("n6")?.context("a server")?;
    let path = |name: &str| {
        let path = w.scratch.path().join("kubelet").join(name);
        std::fs::create_dir_all(&path).map(|()| path)
    };
    let context = |dir: &str| -> std::collections::BTreeMap<String, String> {
        [("server", server.address.as_str()), ("share", &w.share), ("subDir", dir)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    };
    let (one, two) = (path("one")?, path("two")?);
    let mut node = w.clients.node.clone();
    let stage = |id: &str, path: &std::path::Path, dir: &str| pb::NodeStageVolumeRequest {
        volume_context: context(dir),
        ..ask::stage(id, path, ask::mount(""))
    };
    node.node_stage_volume(stage("any-handle##at#all", &one, "by/hand")).await?;
    ensure!(fs::read_to_string(one.join("file"))? == "x");
    node.node_stage_volume(stage("the-root", &two, "")).await?;
    ensure!(two.join("by/hand/file").exists());
    symlink("/etc", w.dir.join("out"))?;
    for bad in ["../..", "out", "nowhere", "by/hand/file"] {
        let staging = path("bad")?;
        let error = node.node_stage_volume(stage("bad", &staging, bad)).await.err().context(bad)?;
        ensure!(!matches!(error.code(), Code::Ok | Code::Internal | Code::Unknown), "{bad}: {error}");
        ensure!(!w.scratch.mounts().iter().any(|m| m.ends_with("bad")));
    }
    ensure!(w.scratch.mounts().len() == 3, "one mount of the share for both: {:?}", w.scratch.mounts());
    node.node_unstage_volume(ask::unstage("any-handle##at#all", &one)).await?;
    ensure!(w.scratch.mounts().len() == 2);
    node.node_unstage_volume(ask::unstage("the-root", &two)).await?;
    ensure!(
        w.scratch.mounts().is_empty(),
        "the share is unmounted with its last user: {:?}",
        w.scratch.mounts()
    );
    Ok(())
}

/// Different options are different mounts of a share; a restarted driver still knows which are used.
#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_shared_by_options_and_survive_a_restart() -> Result<()> {
    let Some(mut w) = World::new("shared-mounts", "4.1").await? else { return Ok(()) };
    let mut staged = Vec::new();
    for (i, flags) in [&[][..], &[], &["noatime"], &["noatime"]].iter().enumerate() {
        let id = w.make(&format!("v{i}")).await?;
        let path = w.scratch.path().join(format!("kubelet/{i}"));
        fs::create_dir_all(&path)?;
        let mut request = ask::stage(&id, &path, ask::mount(""));
        if let Some(pb::volume_capability::AccessType::Mount(mount)) =
            request.volume_capability.as_mut().and_then(|c| c.access_type.as_mut())
        {
            mount.mount_flags = flags.iter().map(ToString::to_string).collect();
        }
        w.clients.node.clone().node_stage_volume(request).await?;
        staged.push((id, path));
    }
    ensure!(w.scratch.mounts().len() == 4 + 2, "{:?}", w.scratch.mounts());
    w.restart().await?;
    // A bind does not tell by which of two mounts of one share it was made, so both stay until the last goes.
    for (left, (id, path)) in [(5, &staged[0]), (4, &staged[1]), (3, &staged[2]), (0, &staged[3])] {
        w.clients.node.clone().node_unstage_volume(ask::unstage(id, path)).await?;
        ensure!(w.scratch.mounts().len() == left, "{left}: {:?}", w.scratch.mounts());
    }
    Ok(())
}

/// A class that names a server and share of its own, as with csi-driver-nfs.
#[tokio::test(flavor = "multi_thread")]
async fn a_class_names_server_and_share() -> Result<()> {
    let Some(mut w) = World::new("any-share", "4.1").await? else { return Ok(()) };
    let server = e2e::nfs::Nfs::shared("any-share")?.context("a server")?;
    let parameters = [("server", server.address.as_str()), ("share", w.share.as_str())];
    let id = w.create(World::request("configured", &parameters)).await?.volume_id;
    ensure!(id == "main:configured", "{id}");
    let (other, other_dir) = server.share("other")?;
    let parameters = [("server", server.address.as_str()), ("share", other.as_str())];
    let error = w.create(World::request("foreign", &parameters)).await.err().context("not configured")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("anyShare"), "{error}");
    w.config = w.config.replace("    sweepSeconds", "    anyShare: true\n    sweepSeconds");
    w.restart().await?;
    let id = w.create(World::request("foreign", &parameters)).await?.volume_id;
    ensure!(id == format!("{}#{other}#foreign", server.address), "{id}");
    ensure!(other_dir.join("foreign").is_dir());
    w.restart().await?;
    ensure!(w.get(&id).await?.volume.unwrap_or_default().volume_id == id, "the handle says where it is");
    w.delete(&id).await?;
    ensure!(!other_dir.join("foreign").exists());
    Ok(())
}

/// What another cluster has made on the same share is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn another_clusters_volumes_are_not_deleted() -> Result<()> {
    let Some(mut w) = World::new("clusters", "4.1").await? else { return Ok(()) };
    let id = w.make("theirs").await?;
    let snapshot = w.snapshot(&id, "snap").await?.snapshot_id;
    w.config = w.config.replace("clusterId: test", "clusterId: another");
    w.restart().await?;
    let error = w.delete(&id).await.err().context("not ours")?;
    ensure!(error.code() == Code::FailedPrecondition && error.message().contains("\"test\""), "{error}");
    ensure!(w.delete_snapshot(&snapshot).await.is_err());
    let error = w.make("theirs").await.err().context("the name is taken")?;
    ensure!(format!("{error:#}").contains("belongs to cluster"), "{error:#}");
    ensure!(w.dir.join("theirs").is_dir());
    Ok(())
}

/// Two controllers that make the same volume make one; two that delete it both succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_controllers_that_race_make_one_volume() -> Result<()> {
    for version in VERSIONS {
        let Some(w) = World::new("race", version).await? else { return Ok(()) };
        let scratch = e2e::scratch::Scratch::new()?;
        let config =
            w.config.replace(&w.scratch.path().display().to_string(), &scratch.path().display().to_string());
        let second = World::with(scratch, w.share.clone(), w.dir.clone(), config).await?;
        for round in 0..20 {
            let name = format!("race-{round}");
            let (a, b) =
                tokio::join!(w.create(World::request(&name, &[])), second.create(World::request(&name, &[])));
            let done: Vec<_> = [a, b].into_iter().collect::<Result<_, _>>().or_else(|error| {
                ensure!(error.code() == Code::Unavailable, "{error}");
                Ok(Vec::new())
            })?;
            ensure!(done.iter().all(|v| v.volume_id == format!("main:{name}")));
            w.make(&name).await?;
            let id = format!("main:{name}");
            let (a, b) = tokio::join!(w.delete(&id), second.delete(&id));
            for outcome in [a, b] {
                ensure!(outcome.as_ref().err().is_none_or(|e| e.code() == Code::Unavailable), "{outcome:?}");
            }
            w.delete(&id).await?;
        }
        ensure!(w.ids().await?.is_empty() && w.names()?.is_empty(), "{:?} {:?}", w.ids().await?, w.names()?);
        w.until_clean().await?;
    }
    Ok(())
}

/// Ten thousand volumes on one share: made, listed in pages and whole, and one found among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_volumes_are_listed() -> Result<()> {
    let Some(w) = World::new("many", "4.1").await? else { return Ok(()) };
    let id = w.make("v00000").await?;
    let record = fs::read_to_string(w.own("volumes/v00000.json"))?;
    for i in 1..10_000 {
        let name = format!("v{i:05}");
        fs::write(w.own("volumes").join(format!("{name}.json")), record.replace("v00000", &name))?;
    }
    let all = w.ids().await?;
    ensure!(all.len() == 10_000 && all.is_sorted());
    let (mut seen, mut token) = (0, String::new());
    loop {
        let request = pb::ListVolumesRequest { max_entries: 3000, starting_token: token };
        let page = w.clients.controller.clone().list_volumes(request).await?.into_inner();
        seen += page.entries.len();
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    ensure!(seen == 10_000);
    tokio::time::timeout(Duration::from_secs(5), w.get(&id)).await??;
    Ok(())
}

/// N3, N4: the controller mounts nothing and starts no process, so there is no mount option to lose and no mount to leak.
#[tokio::test(flavor = "multi_thread")]
async fn n3_n4_the_controller_mounts_nothing() -> Result<()> {
    let Some(w) = World::new("n4", "3").await? else { return Ok(()) };
    let mounts = || fs::read_to_string("/proc/self/mountinfo").map(|table| table.matches(&w.share).count());
    let before = mounts()?;
    let id = w.make("v").await?;
    fs::write(w.dir.join("v/file"), "x")?;
    let snapshot = w.snapshot(&id, "snap").await?.snapshot_id;
    w.copy("copy", from_snapshot(&snapshot)).await?;
    ensure!(mounts()? == before && w.scratch.mounts().is_empty());
    w.delete_snapshot(&snapshot).await?;
    w.delete(&id).await?;
    w.delete("main:copy").await?;
    w.until_clean().await?;
    ensure!(mounts()? == before);
    Ok(())
}

/// N5: a call that is repeated while it runs joins the running one, instead of being told that it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn n5_repeated_calls_join_the_running_one() -> Result<()> {
    let Some(w) = World::new("n5", "4.1").await? else { return Ok(()) };
    let id = w.make("source").await?;
    for i in 0..500 {
        fs::write(w.dir.join(format!("source/{i}")), "x")?;
    }
    let copies = (0..8).map(|_| w.copy("copy", from_volume(&id)));
    for copy in e2e::join_all(copies.collect()).await {
        ensure!(copy? == "main:copy");
    }
    ensure!(w.ids().await? == ["main:copy", "main:source"]);
    Ok(())
}

/// D8: what works on one directory excludes what would take it away, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn d8_deletion_waits_for_what_reads_the_directory() -> Result<()> {
    let Some(w) = World::new("d8", "4.1").await? else { return Ok(()) };
    let id = w.make("source").await?;
    for i in 0..2000 {
        fs::write(w.dir.join(format!("source/{i}")), "x")?;
    }
    let later = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        w.delete(&id).await
    };
    let (snapshot, deleted) = tokio::join!(w.snapshot(&id, "snap"), later);
    let snapshot = snapshot?.snapshot_id;
    if let Err(error) = deleted {
        ensure!(error.code() == Code::Aborted && error.message().contains("CreateSnapshot"), "{error}");
        w.delete(&id).await?;
    }
    w.copy("restored", from_snapshot(&snapshot)).await?;
    ensure!(fs::read_dir(w.dir.join("restored"))?.count() == 2000, "the snapshot is whole");
    Ok(())
}

/// Several shares in one configuration: a class chooses, and the list has all.
#[tokio::test(flavor = "multi_thread")]
async fn several_shares_are_served_by_one_driver() -> Result<()> {
    let Some(mut w) = World::new("several", "4.1").await? else { return Ok(()) };
    let server = e2e::nfs::Nfs::shared("several")?.context("a server")?;
    let (second, dir) = server.share("second")?;
    let more = format!("}}, {{name: archive, server: \"{}\", share: {second}}}]", server.address);
    w.config = w.config.replace("}]", &more);
    w.restart().await?;
    let unnamed = w.create(World::request("v", &[])).await.err().context("which share")?;
    ensure!(
        unnamed.code() == Code::InvalidArgument && unnamed.message().contains("main, archive"),
        "{unnamed}"
    );
    for share in ["main", "archive"] {
        let volume = w.create(World::request("v", &[("shareName", share)])).await?;
        ensure!(volume.volume_id == format!("{share}:v"));
    }
    ensure!(w.dir.join("v").is_dir() && dir.join("v").is_dir());
    ensure!(w.ids().await? == ["archive:v", "main:v"]);
    let mut elsewhere = World::request("copy", &[("shareName", "main")]);
    elsewhere.volume_content_source = Some(from_volume("archive:v"));
    let error = w.create(elsewhere).await.err().context("from another share")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("same share"), "{error}");
    w.delete("archive:v").await?;
    ensure!(w.dir.join("v").is_dir() && !dir.join("v").exists());
    Ok(())
}

/// N7: two drivers on one host have no port to clash on: they listen on sockets in directories of their own.
#[tokio::test(flavor = "multi_thread")]
async fn n7_two_drivers_on_one_host_need_no_port() -> Result<()> {
    let Some(one) = World::new("n7", "4.1").await? else { return Ok(()) };
    let Some(two) = World::new("n7", "4.1").await? else { return Ok(()) };
    for world in [&one, &two] {
        ensure!(!world.config.contains("httpAddress"));
        let probe = world.clients.identity.clone().probe(pb::ProbeRequest::default()).await?;
        ensure!(probe.get_ref().ready == Some(true));
    }
    Ok(())
}
