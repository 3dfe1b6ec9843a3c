//! What an image can be asked to have, and what the cluster says of it.

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::contract::refused;
use e2e::requests::{self as ask, MIB};
use tonic::Code;

use super::world::{SIZE, World};

fn with(name: &str, parameters: &[(&str, &str)]) -> pb::CreateVolumeRequest {
    let mut request = ask::create(name, SIZE, ask::mount("ext4"));
    request.parameters = parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn the_class_decides_features_striping_and_name() -> Result<()> {
    let Some(w) = World::new("class", "").await? else { return Ok(()) };
    let mut request = with(
        "claim-1",
        &[
            ("imageFeatures", "layering,exclusive-lock"),
            ("objectSize", "8388608"),
            ("stripeUnit", "65536"),
            ("stripeCount", "4"),
            ("volumeNamePrefix", "shop-"),
            ("nameTemplate", "${pvc.namespace}-${pvc.name}"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("csi.storage.k8s.io/pvc/name", "db"),
        ],
    );
    let id = w.create(request.clone()).await?;
    ensure!(id == format!("ceph:{}", w.spec("shop-shop-db")), "{id}");
    let info: serde_json::Value =
        serde_json::from_str(&w.rbd(&["info", "--format", "json", &w.spec("shop-shop-db")])?)?;
    let features: Vec<_> = info["features"].as_array().context("no features")?.iter().collect();
    ensure!(features == ["layering", "striping", "exclusive-lock"], "{info}");
    ensure!(info["object_size"] == 8_388_608 && info["stripe_unit"] == 65536 && info["stripe_count"] == 4);
    ensure!(w.create(request.clone()).await? == id, "again is the same");
    request.parameters.insert("stripeCount".into(), "2".into());
    let other = w.clients.controller.clone().create_volume(request).await;
    refused(other, Code::AlreadyExists, &["stripeCount"])?;
    for (parameters, word) in [
        (&[("imageFeatures", "layering,fast-diff")][..], "object-map"),
        (&[("imageFeatures", "layers")], "layers"),
        (&[("stripeUnit", "65536")], "stripeCount"),
        (&[("objectSize", "5000")], "power of two"),
        (&[("pol", "rbd")], "pool"),
        (&[("mapOptions", "secret=x")], "set by the driver"),
        (&[("mapOptions", "noshare /dev/null")], "cannot be in an option"),
        (&[("unmapOptions", "hard")], "force"),
        (&[("clusterID", "mars")], "known: ceph"),
        (&[("encrypted", "true")], "encrypt"),
    ] {
        let wrong = w.clients.controller.clone().create_volume(with("wrong", parameters)).await;
        refused(wrong, Code::InvalidArgument, &[word])?;
    }
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn data_can_be_in_another_pool() -> Result<()> {
    let Some(w) = World::new("datapool", "").await? else { return Ok(()) };
    let pool = w.ceph.pool("data")?;
    let id = w.create(with("with-data-pool", &[("dataPool", &pool)])).await?;
    let info = w.rbd(&["info", "--format", "json", &w.spec("with-data-pool")])?;
    ensure!(info.contains(&format!("\"data_pool\":\"{pool}\"")), "{info}");
    let missing = w.clients.controller.clone().create_volume(with("no-pool", &[("dataPool", "none")])).await;
    ensure!(missing.is_err());
    w.delete(&id).await?;
    w.until("the purge", || Ok(w.images()?.1.is_empty())).await?;
    w.ceph.remove_pool(&pool)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_chooses_cluster_pool_and_namespace() -> Result<()> {
    let Some(w) = World::new("clusters", "").await? else { return Ok(()) };
    let pool = w.ceph.pool("second")?;
    let dir = w.scratch.path().join("second");
    std::fs::create_dir(&dir)?;
    let text = w.ceph.config_in(&dir, "rbd", &w.namespace, &w.namespace, "");
    // The same cluster under another name, with another pool: what differs is what the class chooses by.
    let conf = w.ceph.conf().display().to_string();
    let second = format!(", {{clusterID: mars, cephConf: {conf}, pools: [{pool}, rbd]}}]\n");
    let driver = e2e::drivers::InProcess::start(&text.replacen("]\n", &second, 1)).await?;
    let mut c = driver.clients().await?.controller;
    refused(
        c.create_volume(with("no-cluster", &[])).await,
        Code::InvalidArgument,
        &["clusterID", "ceph, mars"],
    )?;
    let mars = c.create_volume(with("no-pool", &[("clusterID", "mars")])).await;
    refused(mars, Code::InvalidArgument, &["pool", &pool])?;
    let mut ids = Vec::new();
    for parameters in [
        &[("clusterID", "ceph")][..],
        &[("clusterID", "mars"), ("pool", &pool)],
        &[("clusterID", "mars"), ("pool", "rbd"), ("radosNamespace", &w.namespace)],
    ] {
        let name = format!("in-{}", ids.len());
        ids.push(
            c.create_volume(with(&name, parameters)).await?.into_inner().volume.unwrap_or_default().volume_id,
        );
    }
    let namespace = &w.namespace;
    let expected = [
        format!("ceph:rbd/{namespace}/in-0"),
        format!("mars:{pool}/in-1"),
        format!("mars:rbd/{namespace}/in-2"),
    ];
    ensure!(ids == expected, "{ids:?}");
    // The same name in another pool of the cluster is taken.
    let taken = c.create_volume(with("in-1", &[("clusterID", "mars"), ("pool", "rbd")])).await;
    refused(taken, Code::AlreadyExists, &["pool", &pool])?;
    for id in ids {
        c.delete_volume(ask::delete(&id)).await?;
    }
    drop(driver);
    w.until("the purge", || Ok(w.rbd(&["trash", "ls", &pool])?.trim().is_empty())).await?;
    w.ceph.remove_pool(&pool)
}

#[tokio::test(flavor = "multi_thread")]
async fn capacity_counts_replicas_and_quotas() -> Result<()> {
    let Some(w) = World::new("capacity", "").await? else { return Ok(()) };
    let capacity = async || {
        let request = pb::GetCapacityRequest::default();
        let answer = w.clients.controller.clone().get_capacity(request).await?.into_inner();
        Ok::<_, anyhow::Error>(answer.available_capacity)
    };
    let df = w.ceph.ask(&["df"])?;
    let pools = df["pools"].as_array().context("no pools")?;
    let pool = pools.iter().find(|pool| pool["name"] == "rbd").context("no pool rbd")?;
    let most = pool["stats"]["max_avail"].as_i64().context("no max_avail")?;
    let has = capacity().await?;
    // Other tests write meanwhile.
    ensure!((has - most).abs() < most / 2, "{has} and max_avail {most}");
    let raw = df["stats"]["total_bytes"].as_i64().context("no total_bytes")?;
    ensure!(has < raw * 6 / 10, "two copies of each byte, so less than half of {raw}: {has}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_others_are_never_deleted_or_taken() -> Result<()> {
    let Some(w) = World::new("foreign", "").await? else { return Ok(()) };
    let spec = w.spec("precious");
    w.rbd(&["create", "--size", "64M", &spec])?;
    let id = format!("ceph:{spec}");
    let delete = w.clients.controller.clone().delete_volume(ask::delete(&id)).await;
    refused(delete, Code::FailedPrecondition, &["no record", "not deleted"])?;
    let create = w.clients.controller.clone().create_volume(with("precious", &[])).await;
    refused(create, Code::AlreadyExists, &["collision", "nothing was changed"])?;
    let list = w.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?;
    ensure!(list.get_ref().entries.is_empty());
    ensure!(w.images()?.0 == ["precious"]);
    let (code, _, error) = w.volumectl(&["volume", "rm", &spec, "--yes"])?;
    ensure!(code == 3 && error.contains("no record"), "{code}: {error}");
    w.rbd(&["rm", &spec]).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_clones_stays_short() -> Result<()> {
    let Some(w) = World::new("chain", "    softCloneDepth: 2\n    hardCloneDepth: 4\n").await? else {
        return Ok(());
    };
    let mut ids = vec![w.make("chain-0").await?];
    for i in 1..=32 {
        let mut request = ask::create(&format!("chain-{i}"), SIZE, ask::mount("ext4"));
        request.volume_content_source = ask::from_volume(&ids[i - 1]);
        // Too deep is answered at once, with what is being done about it; the retry succeeds.
        let mut tries = 0;
        loop {
            match w.clients.controller.clone().create_volume(request.clone()).await {
                Ok(made) => {
                    ids.push(made.into_inner().volume.context("no volume")?.volume_id);
                    break;
                }
                Err(status) if status.code() == Code::Unavailable && tries < 100 => {
                    ensure!(status.message().contains("repeat the call"), "{}", status.message());
                    tries += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                Err(status) => return Err(status.into()),
            }
        }
    }
    w.until("the flattening of what is deep", || {
        let mut deepest = 0;
        for i in 0..=32 {
            let mut depth = 0;
            let mut at = format!("chain-{i}");
            while let Some(parent) = parent(&w, &at)? {
                (depth, at) = (depth + 1, parent);
            }
            deepest = deepest.max(depth);
        }
        Ok(deepest <= 2)
    })
    .await?;
    // Parents first: those that have clones wait in the trash until these are gone.
    for id in &ids {
        w.delete(id).await?;
    }
    w.until("the purge of all", || Ok(w.images()?.1.is_empty())).await
}

fn parent(w: &World, image: &str) -> Result<Option<String>> {
    let info: serde_json::Value =
        serde_json::from_str(&w.rbd(&["info", "--format", "json", &w.spec(image)])?)?;
    Ok(info["parent"]["image"].as_str().map(str::to_owned))
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_parent_waits_for_its_clones_in_the_trash() -> Result<()> {
    let Some(w) = World::new("parent", "").await? else { return Ok(()) };
    let parent = w.make("parent").await?;
    let mut request = ask::create("child", SIZE, ask::mount("ext4"));
    request.volume_content_source = ask::from_volume(&parent);
    let child = w.create(request).await?;
    w.delete(&parent).await?;
    ensure!(w.images()?.0 == ["child"], "{:?}", w.images()?);
    ensure!(w.make("parent").await? == parent, "the name is free at once");
    w.delete(&parent).await?;
    w.delete(&child).await?;
    // The parent's turn comes with the next sweep at the latest.
    w.until("the purge", || Ok(w.images()?.1.is_empty())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_blocks_are_told() -> Result<()> {
    let Some(w) = World::new("blocks", "").await? else { return Ok(()) };
    let id = w.create(ask::create("blocks", 64 * MIB, ask::block())).await?;
    let spec = w.spec("blocks");
    let write = |offset: &str, pattern: &str| {
        w.rbd(&[
            "bench",
            "--io-type",
            "write",
            "--io-size",
            "4M",
            "--io-total",
            "4M",
            "--io-threads",
            "1",
            &spec,
        ])
        .map(|_| (offset.len(), pattern.len()))
    };
    let empty = w.snapshot(&id, "blocks-0").await?;
    write("0", "a")?;
    let first = w.snapshot(&id, "blocks-1").await?;
    let allocated = async |snapshot: &str| {
        let request = pb::GetMetadataAllocatedRequest { snapshot_id: snapshot.into(), ..Default::default() };
        let mut stream = w.clients.blocks.clone().get_metadata_allocated(request).await?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = stream.message().await? {
            ensure!(message.volume_capacity_bytes == 64 * MIB);
            found.extend(message.block_metadata.iter().map(|b| (b.byte_offset, b.size_bytes)));
        }
        Ok::<_, anyhow::Error>(found)
    };
    ensure!(allocated(&empty.snapshot_id).await?.is_empty());
    ensure!(allocated(&first.snapshot_id).await? == [(0, 4 * MIB)]);
    let delta = |base: &str, target: &str| pb::GetMetadataDeltaRequest {
        base_snapshot_id: base.into(),
        target_snapshot_id: target.into(),
        ..Default::default()
    };
    let request = delta(&empty.snapshot_id, &first.snapshot_id);
    let mut stream = w.clients.blocks.clone().get_metadata_delta(request).await?.into_inner();
    let message = stream.message().await?.context("no message")?;
    ensure!(
        message.block_metadata.len() == 1 && message.block_metadata[0].size_bytes == 4 * MIB,
        "{message:?}"
    );
    let backwards = delta(&first.snapshot_id, &empty.snapshot_id);
    let refused = w.clients.blocks.clone().get_metadata_delta(backwards).await.err().context("no error")?;
    ensure!(refused.code() == Code::InvalidArgument && refused.message().contains("base_snapshot_id"));
    for snapshot in [first, empty] {
        w.clients.controller.clone().delete_snapshot(ask::delete_snapshot(&snapshot.snapshot_id)).await?;
    }
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_images_are_listed_in_pages() -> Result<()> {
    let Some(w) = World::new("many", "    purgeWorkers: 16\n").await? else { return Ok(()) };
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..500 {
        let mut controller = w.clients.controller.clone();
        calls.spawn(async move {
            let request = ask::create(&format!("many-{i:03}"), SIZE, ask::mount("ext4"));
            controller.create_volume(request).await.map(drop)
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    let (mut ids, mut token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListVolumesRequest { max_entries: 64, starting_token: token };
        let page = w.clients.controller.clone().list_volumes(request).await?.into_inner();
        ids.extend(page.entries.into_iter().filter_map(|e| Some(e.volume?.volume_id)));
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    ensure!(ids.len() == 500 && ids.is_sorted(), "{} ids", ids.len());
    for id in ids {
        let mut controller = w.clients.controller.clone();
        calls.spawn(async move { controller.delete_volume(ask::delete(&id)).await.map(drop) });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    w.until("the purge of five hundred", || Ok(w.images()? == (vec![], vec![]))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn volumectl_makes_grows_and_removes_images() -> Result<()> {
    let Some(w) = World::new("volumectl", "").await? else { return Ok(()) };
    let spec = w.spec("db");
    let run = |args: &[&str]| -> Result<String> {
        let (code, out, error) = w.volumectl(args)?;
        ensure!(code == 0, "{args:?}: {code}: {out}{error}");
        Ok(out)
    };
    run(&["volume", "create", &spec, "--size", "1Gi"])?;
    ensure!(run(&["volume", "ls", "--pool", &format!("rbd/{}", w.namespace)])?.contains("1 GiB"));
    run(&["volume", "resize", &spec, "--size", "2Gi"])?;
    let (code, _, error) = w.volumectl(&["volume", "resize", &spec, "--size", "1Gi"])?;
    ensure!(code == 3 && error.contains("never made smaller"), "{code}: {error}");
    run(&["volume", "snap", "create", "monday", &spec])?;
    ensure!(run(&["volume", "snap", "ls", &spec])?.contains("monday"));
    let info: serde_json::Value = serde_json::from_str(&run(&["volume", "info", &spec, "-o", "json"])?)?;
    ensure!(info["size"] == 2_i64 << 30 && info["details"]["snapshots"]["monday"] == 2_i64 << 30, "{info}");
    run(&["volume", "snap", "rm", "monday", &spec, "--yes"])?;
    ensure!(run(&["volume", "rm", &spec])?.contains("Nothing was deleted"));
    ensure!(w.images()?.0 == ["db"]);
    ensure!(run(&["volume", "rm", &spec, "--yes"])?.contains("true"));
    ensure!(w.images()? == (vec![], vec![]));
    let (code, _, error) = w.volumectl(&["volume", "info", &spec])?;
    ensure!(code == 1 && error.contains("no image"), "{code}: {error}");
    Ok(())
}

/// ControllerModifyVolume, and the same at creation: the image shares nothing with its source any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_flattened_when_that_is_asked() -> Result<()> {
    let Some(w) = World::new("flatten", "").await? else { return Ok(()) };
    let source = w.make("flatten-source").await?;
    let clone_of = |name: &str, mutable: &[(&str, &str)]| {
        let mut request = ask::create(name, SIZE, ask::mount("ext4"));
        request.volume_content_source = ask::from_volume(&source);
        request.mutable_parameters =
            mutable.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        request
    };
    let has_parent = |name: &str| {
        let info: serde_json::Value =
            serde_json::from_str(&w.rbd(&["info", "--format", "json", &w.spec(name)])?)?;
        Ok::<_, anyhow::Error>(info.get("parent").is_some_and(|parent| !parent.is_null()))
    };
    let later = w.create(clone_of("flatten-later", &[])).await?;
    let at_once = w.create(clone_of("flatten-at-once", &[("flatten", "true")])).await?;
    ensure!(has_parent("flatten-later")?, "a clone shares data with its source");
    let modify = async |parameters: &[(&str, &str)]| {
        let request = pb::ControllerModifyVolumeRequest {
            volume_id: later.clone(),
            mutable_parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        };
        w.clients.controller.clone().controller_modify_volume(request).await
    };
    refused(modify(&[("pool", "rbd")]).await, Code::InvalidArgument, &["pool", "lockRecovery", "flatten"])?;
    refused(modify(&[("flatten", "perhaps")]).await, Code::InvalidArgument, &["flatten"])?;
    for _ in 0..2 {
        modify(&[("flatten", "true")]).await?;
    }
    for name in ["flatten-later", "flatten-at-once"] {
        w.until("it is flattened", || Ok(!has_parent(name)?)).await?;
    }
    modify(&[("flatten", "true")]).await?;
    for id in [&later, &at_once, &source] {
        w.delete(id).await?;
    }
    w.until("nothing is left", || Ok(w.images()? == (vec![], vec![]))).await
}
