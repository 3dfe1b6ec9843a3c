//! The demo's volumes: made, mounted, and taken back in reverse order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use pb::volume_capability::{AccessType, MountVolume};

use super::Rows;
use crate::client::Csi;
use crate::csi::args;

/// The demo's node, as its configuration says.
const NODE: &str = "demo-node";

/// One volume and how far it was carried.
#[derive(Debug, Clone)]
struct Volume {
    id: String,
    name: String,
    mounted: bool,
}

pub(super) struct Volumes {
    csi: Csi,
    dir: PathBuf,
    made: Vec<Volume>,
    snapshots: Vec<String>,
}

impl Volumes {
    pub fn new(csi: Csi, dir: &Path) -> Self {
        Self { csi, dir: dir.to_owned(), made: Vec::new(), snapshots: Vec::new() }
    }

    fn capability() -> pb::VolumeCapability {
        let mount = MountVolume { fs_type: "xfs".into(), ..MountVolume::default() };
        args::capability(AccessType::Mount(mount), Mode::SingleNodeWriter)
    }

    /// Creates a volume whose name is the claim's (`nameTemplate`), of at least `bytes`.
    pub async fn create(
        &mut self,
        claim: &str,
        bytes: i64,
        source: Option<pb::VolumeContentSource>,
    ) -> Result<String> {
        let template = "${pvc.namespace}-${pvc.name}";
        let parameters = [
            ("type", "file"),
            ("nameTemplate", template),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("csi.storage.k8s.io/pvc/name", claim),
        ];
        let request = pb::CreateVolumeRequest {
            name: format!("pvc-{claim}"),
            capacity_range: args::range(Some(bytes), None),
            volume_capabilities: vec![Self::capability()],
            parameters: parameters.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            volume_content_source: source,
            ..pb::CreateVolumeRequest::default()
        };
        let answer = self.csi.controller.clone().create_volume(self.csi.request(request)).await?.into_inner();
        let volume = answer.volume.context("no volume in the answer")?;
        let id = volume.volume_id;
        self.made.push(Volume { id: id.clone(), name: claim.to_owned(), mounted: false });
        Ok(id)
    }

    /// Attaches, stages and publishes; returns where it is mounted.
    pub async fn mount(&mut self, id: &str) -> Result<PathBuf> {
        let index = self.made.iter().position(|v| v.id == id).context("not a volume of the demo")?;
        self.made[index].mounted = true;
        let name = self.made[index].name.clone();
        let (staging, target) = (self.staging(&name), self.target(&name));
        fs::create_dir_all(&staging)?;
        let capability = Some(Self::capability());
        let attach = pb::ControllerPublishVolumeRequest {
            volume_id: id.to_owned(),
            node_id: NODE.into(),
            volume_capability: capability.clone(),
            ..pb::ControllerPublishVolumeRequest::default()
        };
        let answer = self.csi.controller.clone().controller_publish_volume(self.csi.request(attach)).await?;
        let publish_context = answer.into_inner().publish_context;
        let stage = pb::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            publish_context: publish_context.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: capability.clone(),
            ..pb::NodeStageVolumeRequest::default()
        };
        self.csi.node.clone().node_stage_volume(self.csi.request(stage)).await?;
        let publish = pb::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            publish_context,
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: capability,
            ..pb::NodePublishVolumeRequest::default()
        };
        self.csi.node.clone().node_publish_volume(self.csi.request(publish)).await?;
        Ok(target)
    }

    fn staging(&self, name: &str) -> PathBuf {
        self.dir.join("kubelet").join(name).join("globalmount")
    }

    fn target(&self, name: &str) -> PathBuf {
        self.dir.join("kubelet").join(name).join("mount")
    }

    /// Takes a snapshot of a volume.
    pub async fn snapshot(&mut self, source: &str, name: &str) -> Result<String> {
        let request = pb::CreateSnapshotRequest {
            source_volume_id: source.to_owned(),
            name: name.to_owned(),
            ..pb::CreateSnapshotRequest::default()
        };
        let answer =
            self.csi.controller.clone().create_snapshot(self.csi.request(request)).await?.into_inner();
        let id = answer.snapshot.context("no snapshot in the answer")?.snapshot_id;
        self.snapshots.push(id.clone());
        Ok(id)
    }

    /// Grows a mounted volume; returns the file system's size before and after, in bytes.
    pub async fn expand(&self, id: &str, mounted: &Path, bytes: i64) -> Result<(u64, u64)> {
        let size = || rustix::fs::statvfs(mounted).map(|s| s.f_blocks * s.f_frsize);
        let before = size()?;
        let expand = pb::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: args::range(Some(bytes), None),
            ..pb::ControllerExpandVolumeRequest::default()
        };
        let answer = self
            .csi
            .controller
            .clone()
            .controller_expand_volume(self.csi.request(expand))
            .await?
            .into_inner();
        if answer.node_expansion_required {
            let grow = pb::NodeExpandVolumeRequest {
                volume_id: id.to_owned(),
                volume_path: mounted.display().to_string(),
                capacity_range: args::range(Some(answer.capacity_bytes), None),
                ..pb::NodeExpandVolumeRequest::default()
            };
            self.csi.node.clone().node_expand_volume(self.csi.request(grow)).await?;
        }
        Ok((before, size()?))
    }

    /// Unpublishes, unstages, detaches and deletes all volumes, the last first, and then the snapshots.
    pub async fn take_back(&mut self, rows: &mut Rows) -> Result<()> {
        let (begun, volumes, snapshots) = (Instant::now(), self.made.len(), self.snapshots.len());
        while let Some(volume) = self.made.last().cloned() {
            if volume.mounted {
                self.unmount(&volume).await.with_context(|| format!("unmounting {}", volume.name))?;
            }
            let request = pb::DeleteVolumeRequest { volume_id: volume.id.clone(), secrets: BTreeMap::new() };
            let answer = self.csi.controller.clone().delete_volume(self.csi.request(request)).await;
            answer.with_context(|| format!("deleting {}", volume.name))?;
            self.made.pop();
        }
        while let Some(snapshot_id) = self.snapshots.last().cloned() {
            let request = pb::DeleteSnapshotRequest { snapshot_id, secrets: BTreeMap::new() };
            self.csi
                .controller
                .clone()
                .delete_snapshot(self.csi.request(request))
                .await
                .context("deleting a snapshot")?;
            self.snapshots.pop();
        }
        rows.add(
            "unmount, detach, delete",
            begun.elapsed(),
            format!("{volumes} volumes, {snapshots} snapshot"),
        );
        Ok(())
    }

    async fn unmount(&self, volume: &Volume) -> Result<()> {
        let (volume_id, csi) = (volume.id.clone(), &self.csi);
        let target_path = self.target(&volume.name).display().to_string();
        let request = pb::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
        csi.node.clone().node_unpublish_volume(csi.request(request)).await?;
        let staging_target_path = self.staging(&volume.name).display().to_string();
        let request = pb::NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path };
        csi.node.clone().node_unstage_volume(csi.request(request)).await?;
        let request = pb::ControllerUnpublishVolumeRequest {
            volume_id,
            node_id: NODE.into(),
            secrets: BTreeMap::new(),
        };
        csi.controller.clone().controller_unpublish_volume(csi.request(request)).await?;
        Ok(())
    }
}
