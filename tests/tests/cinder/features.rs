//! What the class and the claim can say, and what becomes of it in Cinder.

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::requests as ask;
use provisioners::cinder::Service;
use serde_json::json;
use tonic::Code;

use crate::world::{GIB, World};

/// The name is the template's, the tags and the zone are the class's, and the record is there.
#[tokio::test(flavor = "multi_thread")]
async fn names_tags_and_zones_are_the_classs() -> Result<()> {
    let Some(w) = World::new("names").await? else { return Ok(()) };
    let mut request = World::request(
        "pvc-1",
        &[
            ("nameTemplate", "${pvc.namespace}-${pvc.name}"),
            ("tags", "team=storage,env=prod"),
            ("availability", "nova"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("csi.storage.k8s.io/pvc/name", "db"),
        ],
    );
    request.accessibility_requirements = Some(zone("nova"));
    let volume = w.create(request.clone()).await?;
    ensure!(volume.accessible_topology[0].segments["topology.cinder.csi.volumectl.io/zone"] == "nova");
    let shown = w.show(&volume.volume_id).await?;
    ensure!(shown["name"] == "shop-db" && shown["metadata"]["team"] == "storage", "{shown}");
    ensure!(shown["metadata"]["volumectl.name"] == "pvc-1", "{shown}");
    ensure!(w.create(request).await?.volume_id == volume.volume_id);
    let mut elsewhere = World::request("pvc-2", &[("availability", "nova")]);
    elsewhere.accessibility_requirements = Some(zone("moon"));
    let error = w.create(elsewhere).await.err().context("another zone")?;
    ensure!(error.code() == Code::ResourceExhausted, "{error}");
    w.end().await
}

fn zone(name: &str) -> pb::TopologyRequirement {
    let key = "topology.cinder.csi.volumectl.io/zone".to_owned();
    let topology = pb::Topology { segments: [(key, name.to_owned())].into_iter().collect() };
    pb::TopologyRequirement { requisite: vec![topology.clone()], preferred: vec![topology] }
}

/// Types: one that is not there, a retype, and one for several servers.
#[tokio::test(flavor = "multi_thread")]
async fn types_are_chosen_and_changed() -> Result<()> {
    let Some(w) = World::new("types").await? else { return Ok(()) };
    let admin = w.cloud.bare("admin");
    for (name, specs) in [("plain", json!({})), ("shared", json!({"multiattach": "<is> True"}))] {
        let body = json!({"volume_type": {"name": format!("{name}-{}", w.owner), "extra_specs": specs}});
        admin.ask(Service::Volume, "types", Some(body)).await?;
    }
    let (plain, shared) = (format!("plain-{}", w.owner), format!("shared-{}", w.owner));
    let error =
        w.create(World::request("none", &[("type", "no-such-type")])).await.err().context("no type")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("no-such-type"), "{error}");
    let id = w.create(World::request("v", &[("type", &plain)])).await?.volume_id;
    ensure!(w.show(&id).await?["volume_type"] == plain.as_str());
    for _ in 0..2 {
        let request = pb::ControllerModifyVolumeRequest {
            volume_id: id.clone(),
            mutable_parameters: [("type".to_owned(), "__DEFAULT__".to_owned())].into_iter().collect(),
            ..Default::default()
        };
        w.clients.controller.clone().controller_modify_volume(request).await?;
        ensure!(w.show(&id).await?["volume_type"] == "__DEFAULT__");
    }
    o9_several_servers(&w, &shared).await?;
    w.end().await
}

/// O9: a volume for several servers needs a type for it, and gets to several.
async fn o9_several_servers(w: &World, shared: &str) -> Result<()> {
    let many = ask::with_mode(&ask::block(), pb::volume_capability::access_mode::Mode::MultiNodeMultiWriter);
    let mut request = World::request("alone", &[]);
    request.volume_capabilities = vec![many.clone()];
    let error = w.create(request.clone()).await.err().context("no multi-attach")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("multiattach"), "{error}");
    request.name = "many".into();
    request.parameters = [("type".to_owned(), shared.to_owned())].into_iter().collect();
    let id = w.create(request).await?.volume_id;
    for server in &w.cloud.nodes()?[..2] {
        let attach = ask::attach(&id, server, many.clone());
        w.clients.controller.clone().controller_publish_volume(attach).await?;
    }
    ensure!(w.show(&id).await?["attachments"].as_array().is_some_and(|all| all.len() == 2));
    w.clients.controller.clone().controller_unpublish_volume(ask::detach(&id, "")).await?;
    ensure!(w.show(&id).await?["status"] == "available");
    Ok(())
}

/// A volume that failed is removed, and the error has Cinder's own words.
#[tokio::test(flavor = "multi_thread")]
async fn d2_a_volume_that_failed_is_not_handed_out() -> Result<()> {
    let Some(w) = World::new("failed").await? else { return Ok(()) };
    let error = w.create(World::request("please-fail", &[])).await.err().context("failed")?;
    ensure!(error.message().contains("error"), "{error}");
    ensure!(w.own("volumes").await?.is_empty());
    w.end().await
}

/// Snapshots of a volume in use, their sizes, and one that forbids that.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_volumes_in_use() -> Result<()> {
    let Some(w) = World::new("snapshots").await? else { return Ok(()) };
    let id = w.make("v").await?;
    w.attach(&id).await?;
    let mut request = ask::snapshot(&id, "forbidden");
    request.parameters = [("force-create".to_owned(), "false".to_owned())].into_iter().collect();
    let error = w.clients.controller.clone().create_snapshot(request).await.err().context("in use")?;
    ensure!(error.code() == Code::FailedPrecondition, "{error}");
    let taken = w.snapshot(&id, "s").await?;
    ensure!(taken.size_bytes == GIB && taken.ready_to_use);
    let error = w.delete(&id).await.err().context("deleted while in use")?;
    ensure!(error.code() == Code::FailedPrecondition && error.message().contains(&w.server), "{error}");
    let mut small = World::request("small", &[]);
    small.volume_content_source = ask::from_snapshot(&taken.snapshot_id);
    small.capacity_range = Some(pb::CapacityRange { required_bytes: 0, limit_bytes: GIB / 2 });
    let error = w.create(small).await.err().context("too small")?;
    ensure!(error.code() == Code::OutOfRange, "{error}");
    w.end().await
}

/// A snapshot of type backup is a backup of Cinder's service, and what was written comes back from it.
#[tokio::test(flavor = "multi_thread")]
async fn backups_are_snapshots() -> Result<()> {
    let Some(w) = World::new("backups").await? else { return Ok(()) };
    let id = w.make("v").await?;
    w.attach(&id).await?;
    let disk = |id: &str| w.cloud.devices(&w.server).join(format!("virtio-{}", &id[..20]));
    let mut file = std::fs::OpenOptions::new().write(true).open(disk(&id))?;
    std::io::Write::write_all(&mut file, b"what must come back")?;
    file.sync_all()?;
    drop(file);
    w.detach(&id).await?;
    let mut request = ask::snapshot(&id, "b");
    request.parameters = [("type".to_owned(), "backup".to_owned())].into_iter().collect();
    let taken = w.clients.controller.clone().create_snapshot(request.clone()).await?.into_inner().snapshot;
    let taken = taken.context("no snapshot")?;
    ensure!(taken.snapshot_id.starts_with("backup:") && taken.ready_to_use && taken.source_volume_id == id);
    let again = w.clients.controller.clone().create_snapshot(request).await?.into_inner().snapshot;
    ensure!(again.as_ref() == Some(&taken), "{again:?}");
    let listed = pb::ListSnapshotsRequest { snapshot_id: taken.snapshot_id.clone(), ..Default::default() };
    let listed = w.clients.controller.clone().list_snapshots(listed).await?.into_inner();
    ensure!(listed.entries.len() == 1);
    let mut restored = World::request("restored", &[]);
    restored.volume_content_source = ask::from_snapshot(&taken.snapshot_id);
    let restored = w.create(restored).await?.volume_id;
    w.attach(&restored).await?;
    let mut data = vec![0; 19];
    std::io::Read::read_exact(&mut std::fs::File::open(disk(&restored))?, &mut data)?;
    ensure!(data == b"what must come back");
    w.delete_snapshot(&taken.snapshot_id).await?;
    w.end().await
}

/// A volume that was deleted while it has snapshots goes with the last of them, also after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_volume_goes_with_its_last_snapshot() -> Result<()> {
    let Some(w) = World::new("outlived").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let (first, second) = (w.snapshot(&id, "a").await?, w.snapshot(&id, "b").await?);
    w.delete(&id).await?;
    w.delete(&id).await?;
    ensure!(w.own("volumes").await?.len() == 1);
    let again = w.make("v").await?;
    ensure!(again != id, "the name is free");
    w.delete_snapshot(&first.snapshot_id).await?;
    ensure!(w.own("volumes").await?.len() == 2);
    w.delete_snapshot(&second.snapshot_id).await?;
    ensure!(w.own("volumes").await?.len() == 1);
    w.end().await
}

/// Volumes of others, and of another cluster, are not deleted; volumes made by hand can be attached.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_others_are_left_alone() -> Result<()> {
    let Some(w) = World::new("others").await? else { return Ok(()) };
    let body = json!({"volume": {"size": 1, "name": null}});
    let foreign = e2e::openstack::id(&w.bare().ask(Service::Volume, "volumes", Some(body)).await?["volume"])?;
    e2e::openstack::wait_for(
        &w.bare(),
        Service::Volume,
        &format!("volumes/{foreign}"),
        "volume",
        "available",
    )
    .await?;
    let error = w.delete(&foreign).await.err().context("deleted")?;
    ensure!(error.code() == Code::FailedPrecondition && error.message().contains("no record"), "{error}");
    let listed = w.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?;
    ensure!(listed.into_inner().entries.is_empty());
    w.attach(&foreign).await?;
    w.detach(&foreign).await?;
    let other = World::on(w.cloud, "others", "").await?;
    let theirs = other.make("v").await?;
    let error = w.delete(&theirs).await.err().context("deleted")?;
    ensure!(error.code() == Code::FailedPrecondition && error.message().contains("cluster"), "{error}");
    w.bare().delete(Service::Volume, &format!("volumes/{foreign}")).await?;
    other.end().await?;
    w.end().await
}

/// Two clouds by name (two ways to log in): handles tell them apart, and data is not cloned across.
#[tokio::test(flavor = "multi_thread")]
async fn two_clouds_are_told_apart() -> Result<()> {
    let Some(mut w) = World::new("clouds").await? else { return Ok(()) };
    let file = w.cloud.clouds_file().display().to_string();
    let second = format!("}}, {{name: app, cloud: app, cloudsFile: {file}}}]");
    w.driver.take().context("driver")?.stop().await?;
    let config = w.config.replacen("}]", &second, 1);
    let driver = e2e::drivers::InProcess::start(&config).await?;
    w.clients = driver.clients().await?;
    let first = w.make("v").await?;
    let id = w.create(World::request("w", &[("cloud", "app")])).await?.volume_id;
    ensure!(id.starts_with("app/") && !first.contains('/'), "{id} {first}");
    let mut across = World::request("x", &[("cloud", "app")]);
    across.volume_content_source = ask::from_volume(&first);
    let error = w.create(across).await.err().context("across")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("cloud"), "{error}");
    let error = w.create(World::request("x", &[("cloud", "moon")])).await.err().context("no cloud")?;
    ensure!(error.code() == Code::InvalidArgument && error.message().contains("app"), "{error}");
    w.delete(&id).await?;
    w.delete(&first).await?;
    driver.stop().await
}

/// What cannot log in says so, and does not show the password.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told() -> Result<()> {
    let Some(w) = World::new("password").await? else { return Ok(()) };
    let text = std::fs::read_to_string(w.cloud.clouds_file())?
        .replace("\"password\": \"demo\"", "\"password\": \"wr0ng-one\"");
    let file = w.scratch.path().join("clouds.yaml");
    std::fs::write(&file, text)?;
    let config = w.config.replace(&w.cloud.clouds_file().display().to_string(), &file.display().to_string());
    let scratch = e2e::scratch::Scratch::new()?;
    let config = config.replace(
        &format!("socketDir: {}", w.scratch.path().display()),
        &format!("socketDir: {}", scratch.path().display()),
    );
    let driver = e2e::drivers::InProcess::start(&config).await?;
    let clients = e2e::clients::Clients::lazy(&driver.socket)?;
    let mut answer = clients.identity.clone().probe(pb::ProbeRequest {}).await;
    for _ in 0..100 {
        if answer.is_err() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        answer = clients.identity.clone().probe(pb::ProbeRequest {}).await;
    }
    let error = answer.err().context("it was let in")?;
    ensure!(error.message().contains("password") && !error.message().contains("wr0ng-one"), "{error}");
    w.end().await
}

/// The limit that the node announces is the controller's, too, also for calls at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_volumes_are_attached_than_the_node_announces() -> Result<()> {
    let Some(w) = World::with("limit", "    nodeVolumeAttachLimit: 3\n").await? else { return Ok(()) };
    // Booted from a volume, which takes one of the three places.
    let server = w.cloud.server(&w.owner).await?;
    let mut ids = Vec::new();
    for i in 0..4 {
        ids.push(w.make(&format!("limit-{i}")).await?);
    }
    let attach = |i: usize| w.attach_to(&ids[i], &server);
    let answers = tokio::join!(attach(0), attach(1), attach(2), attach(3));
    let answers = [answers.0, answers.1, answers.2, answers.3];
    let (attached, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    ensure!(attached.len() == 2, "{attached:?}");
    for error in refused.into_iter().filter_map(Result::err) {
        ensure!(error.code() == Code::ResourceExhausted, "{error}");
        ensure!(
            error.message().contains(&server) && error.message().contains("nodeVolumeAttachLimit"),
            "{error}"
        );
    }
    let info = w.clients.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await?.into_inner();
    ensure!(info.max_volumes_per_node == 2, "{info:?}");
    for id in &ids {
        let request = ask::detach(id, &server);
        w.clients.controller.clone().controller_unpublish_volume(request).await?;
    }
    w.attach_to(&ids[3], &server).await.context("a place is free again")?;
    w.clients.controller.clone().controller_unpublish_volume(ask::detach(&ids[3], &server)).await?;
    w.bare().delete(Service::Compute, &format!("servers/{server}")).await?;
    w.end().await
}
