//! The contract suite against the local backend, in each way its volumes are used, through the real kernel.

use std::collections::BTreeMap;

use anyhow::Result;
use csi_proto::v1 as pb;
use e2e::contract::Subject;
use e2e::drivers::{InProcess, local_config};
use e2e::requests::{self, MIB};
use e2e::scratch::Scratch;

async fn subject(
    case: &str,
    parameters: &[(&str, &str)],
    capability: pb::VolumeCapability,
    size: i64,
) -> Result<Option<Subject>> {
    if !e2e::is_root(case) {
        return Ok(None);
    }
    let scratch = Scratch::new()?;
    let driver = InProcess::start(&local_config(scratch.path(), "")).await?;
    let sized = !parameters.contains(&("type", "directory"));
    let parameters = parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect::<BTreeMap<_, _>>();
    let subject = Subject::new(driver.clients().await?, scratch, capability, size, driver);
    Ok(Some(Subject { parameters, sized, ..subject }))
}

mod xfs {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        if !e2e::has_program(case, "mkfs.xfs") {
            return Ok(None);
        }
        subject(case, &[], requests::mount("xfs"), 320 * MIB).await
    }

    e2e::contract_suite!(setup);
}

mod ext4 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        let subject = subject(case, &[("type", "file")], requests::mount("ext4"), 64 * MIB).await?;
        Ok(subject.map(|s| Subject { grows_staged: e2e::can_grow_ext4_online(), ..s }))
    }

    e2e::contract_suite!(setup);
}

mod btrfs {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        if !e2e::has_program(case, "mkfs.btrfs") {
            return Ok(None);
        }
        subject(case, &[], requests::mount("btrfs"), 256 * MIB).await
    }

    e2e::contract_suite!(setup);
}

mod block {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, &[("thick", "true")], requests::block(), 16 * MIB).await
    }

    e2e::contract_suite!(setup);
}

mod directory {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        subject(case, &[("type", "directory"), ("mode", "0770")], requests::mount(""), 16 * MIB).await
    }

    e2e::contract_suite!(setup);
}

/// Volumes that are grown by the driver of their node alone (`expansion: node`), as Kubernetes does it where one resizer
/// acts for all nodes.
mod grown_on_node {
    use anyhow::{Context as _, ensure};
    use pb::controller_service_capability::{Type, rpc};
    use tonic::Code;

    use super::*;

    async fn setup(case: &str, capability: pb::VolumeCapability) -> Result<Option<Subject>> {
        if !e2e::is_root(case) || !e2e::has_program(case, "mkfs.xfs") {
            return Ok(None);
        }
        let scratch = Scratch::new()?;
        let driver = InProcess::start(&local_config(scratch.path(), "    expansion: node\n")).await?;
        Ok(Some(Subject::new(driver.clients().await?, scratch, capability, 320 * MIB, driver)))
    }

    /// Bytes of what is at a path: a device, or a file system.
    fn bytes(path: &std::path::Path) -> Result<u64> {
        use std::io::Seek as _;
        if path.is_dir() {
            let stat = rustix::fs::statvfs(path)?;
            return Ok(stat.f_blocks * stat.f_frsize);
        }
        Ok(std::fs::File::open(path)?.seek(std::io::SeekFrom::End(0))?)
    }

    async fn grows(case: &str, capability: pb::VolumeCapability) -> Result<()> {
        let Some(s) = setup(case, capability).await? else { return Ok(()) };
        let (mut controller, mut node) = (s.clients.controller.clone(), s.clients.node.clone());
        let id = s.create(case).await?.volume_id;
        // Where the volume is not, nothing grows.
        let nowhere = s.path("nowhere")?;
        std::fs::create_dir_all(&nowhere)?;
        let refused = node.node_expand_volume(requests::node_expand(&id, &nowhere, 640 * MIB)).await;
        ensure!(refused.err().context("it grew")?.code() == Code::NotFound);
        let used = s.mount(&id, case).await?;
        let small = bytes(&used.target)?;
        ensure!(small <= 320 << 20, "{small}");
        for _ in 0..2 {
            let request = requests::node_expand(&id, &used.target, 640 * MIB);
            let has = node.node_expand_volume(request).await?.into_inner().capacity_bytes;
            ensure!(has == 640 * MIB, "{has}");
        }
        let large = bytes(&used.target)?;
        ensure!(large > 560 << 20, "{large}");
        // It never shrinks, and has its size when it is used again.
        let request = requests::node_expand(&id, &used.target, 320 * MIB);
        ensure!(node.node_expand_volume(request).await?.into_inner().capacity_bytes == 640 * MIB);
        s.unmount(&used).await?;
        let used = s.mount(&id, case).await?;
        ensure!(bytes(&used.target)? == large);
        let get = pb::ControllerGetVolumeRequest { volume_id: id.clone() };
        let volume = controller.controller_get_volume(get).await?.into_inner().volume.context("no volume")?;
        ensure!(volume.capacity_bytes == 640 * MIB, "{volume:?}");
        s.unmount(&used).await?;
        s.delete(&[&id]).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_system() -> Result<()> {
        grows("grown-on-node", requests::mount("xfs")).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_block_device() -> Result<()> {
        grows("grown-on-node-block", requests::block()).await
    }

    /// By this external-resizer knows that it is to leave the growing to kubelet.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_controller_has_no_part_in_it() -> Result<()> {
        let Some(s) = setup("grown-by-the-node-alone", requests::mount("xfs")).await? else { return Ok(()) };
        let (mut controller, mut node) = (s.clients.controller.clone(), s.clients.node.clone());
        let can = controller
            .controller_get_capabilities(pb::ControllerGetCapabilitiesRequest {})
            .await?
            .into_inner()
            .capabilities;
        let grows = rpc::Type::ExpandVolume;
        ensure!(!can.iter().any(|it| matches!(&it.r#type, Some(Type::Rpc(rpc)) if rpc.r#type() == grows)));
        let can =
            node.node_get_capabilities(pb::NodeGetCapabilitiesRequest {}).await?.into_inner().capabilities;
        let grows = pb::node_service_capability::rpc::Type::ExpandVolume;
        ensure!(can.iter().any(|it| {
            matches!(&it.r#type, Some(pb::node_service_capability::Type::Rpc(rpc)) if rpc.r#type() == grows)
        }));
        let id = s.create("v").await?.volume_id;
        let refused = controller.controller_expand_volume(requests::expand(&id, 640 * MIB)).await;
        let refused = refused.err().context("it grew")?;
        ensure!(
            refused.code() == Code::Unimplemented && refused.message().contains("NodeExpandVolume"),
            "{refused}"
        );
        s.delete(&[&id]).await
    }
}
