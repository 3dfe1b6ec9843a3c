//! What stands in a volume's way is said by its name.

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use e2e::contract::refused;
use e2e::requests as ask;
use tonic::Code;

use super::world::{SIZE, World};

/// What the class names and the cluster does not have is said by the parameter's name.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_or_pool_that_is_missing_is_named() -> Result<()> {
    let Some(w) = World::new("missing", "").await? else { return Ok(()) };
    for (key, words) in [
        (
            "radosNamespace",
            &["parameters[\"radosNamespace\"]", "no-such", "rbd namespace create rbd/no-such"][..],
        ),
        ("dataPool", &["parameters[\"dataPool\"]", "no-such", "ceph osd pool ls"]),
    ] {
        let mut request = ask::create("missing", SIZE, ask::mount("ext4"));
        request.parameters.insert(key.into(), "no-such".into());
        refused(w.clients.controller.clone().create_volume(request).await, Code::InvalidArgument, words)?;
    }
    let left = w.ceph.run("rados", &["-p", "rbd", "-N", "no-such", "listomapkeys", "volumectl.intents"]);
    ensure!(left.is_err() || left?.trim().is_empty(), "a note is left in a namespace that does not exist");
    Ok(())
}

/// Members of a group that others have made with `rbd group` are refused by the group's name, and stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_group_is_not_deleted() -> Result<()> {
    let Some(w) = World::new("member", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("member").await?, w.spec("member"));
    let group = format!("rbd/{}/theirs", w.namespace);
    w.rbd(&["group", "create", &group])?;
    w.rbd(&["group", "image", "add", &group, &spec])?;
    let told = w.clients.controller.clone().delete_volume(ask::delete(&id)).await;
    refused(told, Code::FailedPrecondition, &[&group, "rbd group image rm"])?;
    // The mark of the deletion is taken back.
    w.stage(&id).await?;
    w.unstage(&id).await?;
    w.rbd(&["group", "image", "rm", &group, &spec])?;
    w.delete(&id).await?;
    w.rbd(&["group", "rm", &group]).map(drop)
}

/// The image of a hand-made PersistentVolume, or of a driver that was here before, is used and grown as one of ours is; it is
/// not listed, and never deleted.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_others_is_used_and_never_deleted() -> Result<()> {
    let Some(w) = World::new("theirs", "").await? else { return Ok(()) };
    let name = "csi-vol-0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9";
    let (spec, id) = (w.spec(name), format!("ceph:{}", w.spec(name)));
    w.rbd(&["create", "--size", "64M", &spec])?;
    let deleted = async || w.clients.controller.clone().delete_volume(ask::delete(&id)).await;
    let attach = super::fencing::attach(&id, "node-1");
    w.clients.controller.clone().controller_publish_volume(attach).await?;
    refused(deleted().await, Code::FailedPrecondition, &["no record of this driver"])?;
    // As Ceph's own driver has written its PersistentVolume.
    let context = |pool: &str| {
        let (pool, encrypted) = (pool.to_owned(), "false".to_owned());
        let more = [("staticVolume", "true"), ("imageFeatures", "layering"), ("imageName", name)];
        let more = more.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        [("pool".to_owned(), pool), ("encrypted".to_owned(), encrypted)].into_iter().chain(more).collect()
    };
    let staging = w.scratch.path().join("kubelet").join(name).join("stage");
    std::fs::create_dir_all(&staging)?;
    let pool = spec.split('/').next().unwrap_or_default();
    let stage = async |id: &str, pool: &str| {
        let request = pb::NodeStageVolumeRequest {
            volume_context: context(pool),
            ..ask::stage(id, &staging, ask::mount("ext4"))
        };
        w.clients.node.clone().node_stage_volume(request).await
    };
    refused(stage(&id, "another").await, Code::InvalidArgument, &["pool", "volumeHandle"])?;
    refused(stage(name, pool).await, Code::NotFound, &["write volumeHandle"])?;
    stage(&id, pool).await?;
    std::fs::write(staging.join("data"), "theirs")?;
    w.unstage(&id).await?;
    let detach = ask::detach(&id, "node-1");
    w.clients.controller.clone().controller_unpublish_volume(detach).await?;
    w.clients.controller.clone().controller_expand_volume(ask::expand(&id, 96 << 20)).await?;
    let staging = w.stage(&id).await?;
    ensure!(std::fs::read_to_string(staging.join("data"))? == "theirs");
    w.unstage(&id).await?;
    refused(deleted().await, Code::FailedPrecondition, &["no record of this driver"])?;
    let listed =
        w.clients.controller.clone().list_volumes(csi_proto::v1::ListVolumesRequest::default()).await?;
    ensure!(!format!("{listed:?}").contains(name), "it is no volume of ours: {listed:?}");
    w.rbd(&["rm", &spec]).map(drop)
}
