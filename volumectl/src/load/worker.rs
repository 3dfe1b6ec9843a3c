//! One worker: round after round, each call timed, and everything taken back.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use csi_proto::v1 as pb;
use tonic::{Response, Status};

use super::report::Samples;
use crate::client::Csi;

/// What every round does.
pub(super) struct Plan {
    /// Marks the volumes of this run.
    pub run: String,
    pub size: i64,
    pub capability: pb::VolumeCapability,
    pub parameters: BTreeMap<String, String>,
    pub snapshot: bool,
    pub publish: bool,
    pub dir: PathBuf,
}

pub(super) struct Worker {
    csi: Csi,
    plan: Arc<Plan>,
    number: u16,
    round: usize,
    count: bool,
    samples: Samples,
    /// What could not be taken back in its round, tried again at the end.
    left: Vec<Left>,
}

/// What a round made.
#[derive(Default)]
struct Left {
    volume: String,
    snapshot: Option<String>,
    staging: Option<String>,
    target: Option<String>,
}

impl Worker {
    pub fn new(csi: Csi, plan: Arc<Plan>, number: u16) -> Self {
        Self { csi, plan, number, round: 0, count: false, samples: Samples::default(), left: Vec::new() }
    }

    /// One round; `count`: it is measured.
    pub async fn round(&mut self, count: bool) {
        (self.count, self.round) = (count, self.round + 1);
        let Some(mut made) = self.create().await else { return };
        if self.plan.snapshot {
            self.snapshot(&mut made).await;
        }
        if self.plan.publish {
            self.publish(&mut made).await;
        }
        if !self.take_back(&mut made).await {
            self.left.push(made);
        }
    }

    /// Takes back what is left; returns the samples and what remains.
    pub async fn finish(mut self) -> (Samples, Vec<String>) {
        self.count = false;
        let mut remains = Vec::new();
        for mut left in std::mem::take(&mut self.left) {
            if !self.take_back(&mut left).await {
                remains.push(left.volume);
            }
        }
        let _ = std::fs::remove_dir(self.dir());
        (self.samples, remains)
    }

    fn dir(&self) -> PathBuf {
        self.plan.dir.join(format!("worker-{}", self.number))
    }

    async fn create(&mut self) -> Option<Left> {
        let request = pb::CreateVolumeRequest {
            name: format!("load-{}-{}-{}", self.plan.run, self.number, self.round),
            capacity_range: Some(pb::CapacityRange { required_bytes: self.plan.size, limit_bytes: 0 }),
            volume_capabilities: vec![self.plan.capability.clone()],
            parameters: self.plan.parameters.clone(),
            ..pb::CreateVolumeRequest::default()
        };
        let (mut controller, request) = (self.csi.controller.clone(), self.csi.request(request));
        let answer = self.time("CreateVolume", controller.create_volume(request)).await?;
        Some(Left { volume: answer.volume?.volume_id, ..Left::default() })
    }

    async fn snapshot(&mut self, made: &mut Left) {
        let request = pb::CreateSnapshotRequest {
            source_volume_id: made.volume.clone(),
            name: format!("load-{}-{}-{}", self.plan.run, self.number, self.round),
            ..pb::CreateSnapshotRequest::default()
        };
        let (mut controller, request) = (self.csi.controller.clone(), self.csi.request(request));
        let answer = self.time("CreateSnapshot", controller.create_snapshot(request)).await;
        made.snapshot = answer.and_then(|a| a.snapshot).map(|s| s.snapshot_id);
    }

    async fn publish(&mut self, made: &mut Left) {
        let (staging, target) = (self.dir().join("staging"), self.dir().join("target"));
        if std::fs::create_dir_all(&staging).is_err() {
            return self.samples.failure("NodeStageVolume", "no staging directory");
        }
        let (staging, target) = (staging.display().to_string(), target.display().to_string());
        let request = pb::NodeStageVolumeRequest {
            volume_id: made.volume.clone(),
            staging_target_path: staging.clone(),
            volume_capability: Some(self.plan.capability.clone()),
            ..pb::NodeStageVolumeRequest::default()
        };
        made.staging = Some(staging.clone());
        let (mut node, request) = (self.csi.node.clone(), self.csi.request(request));
        if self.time("NodeStageVolume", node.node_stage_volume(request)).await.is_none() {
            return;
        }
        let request = pb::NodePublishVolumeRequest {
            volume_id: made.volume.clone(),
            staging_target_path: staging,
            target_path: target.clone(),
            volume_capability: Some(self.plan.capability.clone()),
            ..pb::NodePublishVolumeRequest::default()
        };
        made.target = Some(target);
        let (mut node, request) = (self.csi.node.clone(), self.csi.request(request));
        self.time("NodePublishVolume", node.node_publish_volume(request)).await;
    }

    /// Whether all of it is gone.
    async fn take_back(&mut self, made: &mut Left) -> bool {
        let volume_id = made.volume.clone();
        if let Some(target_path) = made.target.clone() {
            let request = pb::NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path };
            let (mut node, request) = (self.csi.node.clone(), self.csi.request(request));
            if self.time("NodeUnpublishVolume", node.node_unpublish_volume(request)).await.is_none() {
                return false;
            }
            made.target = None;
        }
        if let Some(staging_target_path) = made.staging.clone() {
            let request = pb::NodeUnstageVolumeRequest {
                volume_id: volume_id.clone(),
                staging_target_path: staging_target_path.clone(),
            };
            let (mut node, request) = (self.csi.node.clone(), self.csi.request(request));
            if self.time("NodeUnstageVolume", node.node_unstage_volume(request)).await.is_none() {
                return false;
            }
            let _ = std::fs::remove_dir(staging_target_path);
            made.staging = None;
        }
        if let Some(snapshot_id) = made.snapshot.clone() {
            let request = pb::DeleteSnapshotRequest { snapshot_id, ..pb::DeleteSnapshotRequest::default() };
            let (mut controller, request) = (self.csi.controller.clone(), self.csi.request(request));
            if self.time("DeleteSnapshot", controller.delete_snapshot(request)).await.is_none() {
                return false;
            }
            made.snapshot = None;
        }
        let request = pb::DeleteVolumeRequest { volume_id, ..pb::DeleteVolumeRequest::default() };
        let (mut controller, request) = (self.csi.controller.clone(), self.csi.request(request));
        self.time("DeleteVolume", controller.delete_volume(request)).await.is_some()
    }

    async fn time<T>(
        &mut self,
        rpc: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Option<T> {
        let begun = Instant::now();
        match call.await {
            Ok(answer) => {
                if self.count {
                    self.samples.success(rpc, begun.elapsed());
                }
                Some(answer.into_inner())
            }
            Err(status) => {
                self.samples.failure(rpc, &crate::errors::code_name(status.code()));
                None
            }
        }
    }
}
