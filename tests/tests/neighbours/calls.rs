//! Every RPC of a backend that is well, each with a deadline; and calls of one that is not.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::requests as ask;
use tokio::task::JoinSet;
use tonic::{Code, Request, Response, Status};

use super::world::{SIZE, World};

/// How long a question of a backend that is well may take: far more than it needs on a busy machine, and far less than
/// the driver waits for a server that is silent.
const QUESTION: Duration = Duration::from_secs(10);
/// The same for what changes something.
const CHANGE: Duration = Duration::from_secs(30);
/// So many calls of each kind hang.
const LOAD: usize = 40;

/// One round of calls of one backend.
pub struct Calls<'a> {
    w: &'a World,
    name: &'static str,
    round: String,
    clients: Clients,
    called: Mutex<BTreeSet<&'static str>>,
}

/// What csi.proto has.
fn all_rpcs() -> BTreeSet<&'static str> {
    let text = include_str!("../../../proto/proto/csi.proto");
    let rpcs = text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
    rpcs.collect()
}

impl<'a> Calls<'a> {
    pub fn new(w: &'a World, name: &'static str, round: &str) -> Result<Self> {
        let clients = w.clients(name)?;
        Ok(Self { w, name, round: round.to_owned(), clients, called: Mutex::default() })
    }

    /// `None`: the backend does not have it, and said so in time.
    async fn within<T>(
        &self,
        limit: Duration,
        rpc: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Option<T>> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner).insert(rpc);
        let what = || format!("{}: {rpc} of {}", self.round, self.name);
        let begun = Instant::now();
        let answer = tokio::time::timeout(limit, call).await;
        match answer.with_context(|| format!("{}: no answer in {limit:?}", what()))? {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            Err(status) => bail!("{}, after {:?}: {status}", what(), begun.elapsed()),
        }
    }

    async fn question<T>(
        &self,
        rpc: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Option<T>> {
        self.within(QUESTION, rpc, call).await
    }

    async fn change<T: Default>(
        &self,
        rpc: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        Ok(self.within(CHANGE, rpc, call).await?.unwrap_or_default())
    }

    /// Every RPC there is, in the order of a volume's life; all are answered in time, and none but those that the backend
    /// does not have are refused.
    pub async fn all(&self) -> Result<()> {
        self.who().await?;
        let volume_name = format!("v-{}", self.round.replace(' ', "-"));
        let mut c = self.clients.controller.clone();
        let request = World::create_request(self.name, &volume_name);
        let made = self.change("CreateVolume", c.create_volume(request)).await?;
        let volume = made.volume.context("no volume")?;
        let id = volume.volume_id.clone();
        self.questions(&id).await?;
        let used = self.use_it(&volume, "v").await?;
        self.node_questions(&used).await?;
        self.snapshots(&id, &volume_name).await?;
        self.grow(&used).await?;
        self.give_up(&used).await?;
        self.change("DeleteVolume", c.delete_volume(ask::delete(&id))).await?;
        let called = self.called.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let missing: Vec<_> = all_rpcs().difference(&called).copied().collect();
        ensure!(missing.is_empty(), "not called: {missing:?}");
        Ok(())
    }

    async fn who(&self) -> Result<()> {
        let Clients { mut identity, mut controller, mut group, mut node, .. } = self.clients.clone();
        self.question("GetPluginInfo", identity.get_plugin_info(pb::GetPluginInfoRequest {})).await?;
        let request = pb::GetPluginCapabilitiesRequest {};
        self.question("GetPluginCapabilities", identity.get_plugin_capabilities(request)).await?;
        let ready = self.question("Probe", identity.probe(pb::ProbeRequest {})).await?;
        ensure!(
            ready.is_some_and(|it| it.ready != Some(false)),
            "{}: {} is not ready",
            self.round,
            self.name
        );
        let request = pb::ControllerGetCapabilitiesRequest {};
        self.question("ControllerGetCapabilities", controller.controller_get_capabilities(request)).await?;
        let request = pb::GroupControllerGetCapabilitiesRequest {};
        let call = group.group_controller_get_capabilities(request);
        self.question("GroupControllerGetCapabilities", call).await?;
        let request = pb::NodeGetCapabilitiesRequest {};
        self.question("NodeGetCapabilities", node.node_get_capabilities(request)).await?;
        self.question("NodeGetInfo", node.node_get_info(pb::NodeGetInfoRequest {})).await.map(drop)
    }

    async fn questions(&self, id: &str) -> Result<()> {
        let mut c = self.clients.controller.clone();
        let get = pb::ControllerGetVolumeRequest { volume_id: id.into() };
        self.question("ControllerGetVolume", c.controller_get_volume(get)).await?;
        let listed = self.question("ListVolumes", c.list_volumes(pb::ListVolumesRequest::default())).await?;
        let has =
            |it: &pb::list_volumes_response::Entry| it.volume.as_ref().is_some_and(|v| v.volume_id == id);
        ensure!(listed.is_some_and(|it| it.entries.iter().any(has)), "{}: {id} is not listed", self.round);
        self.question("GetCapacity", c.get_capacity(pb::GetCapacityRequest::default())).await?;
        let validate = pb::ValidateVolumeCapabilitiesRequest {
            volume_id: id.into(),
            volume_capabilities: vec![World::capability(self.name)],
            ..Default::default()
        };
        self.question("ValidateVolumeCapabilities", c.validate_volume_capabilities(validate)).await?;
        let modify = pb::ControllerModifyVolumeRequest { volume_id: id.into(), ..Default::default() };
        self.change("ControllerModifyVolume", c.controller_modify_volume(modify)).await.map(drop)
    }

    /// Attached where that has to be, staged and published, below a directory of its own.
    pub async fn use_it(&self, volume: &pb::Volume, place: &str) -> Result<Used> {
        let (mut controller, mut node) = (self.clients.controller.clone(), self.clients.node.clone());
        let (id, capability) = (volume.volume_id.clone(), World::capability(self.name));
        let dir = self.w.dir(&format!("{}/{place}", self.name))?;
        let (staging, target) = (dir.join("staging"), dir.join("target"));
        std::fs::create_dir_all(&staging)?;
        let mut stage = ask::stage(&id, &staging, capability.clone());
        stage.volume_context = volume.volume_context.clone();
        let attach = ask::attach(&id, self.own_node(), capability.clone());
        let attached =
            self.change("ControllerPublishVolume", controller.controller_publish_volume(attach)).await?;
        stage.publish_context = attached.publish_context;
        self.change("NodeStageVolume", node.node_stage_volume(stage)).await?;
        let publish = ask::publish(&id, &staging, &target, capability);
        self.change("NodePublishVolume", node.node_publish_volume(publish)).await?;
        std::fs::write(target.join("file"), &self.round)?;
        Ok(Used { id, staging, target })
    }

    fn own_node(&self) -> &str {
        &self.w.nodes[World::index(self.name)]
    }

    async fn node_questions(&self, used: &Used) -> Result<()> {
        let mut node = self.clients.node.clone();
        let stats = ask::stats(&used.id, &used.target);
        self.question("NodeGetVolumeStats", node.node_get_volume_stats(stats)).await.map(drop)
    }

    async fn snapshots(&self, id: &str, name: &str) -> Result<()> {
        let mut c = self.clients.controller.clone();
        let taken = self.change("CreateSnapshot", c.create_snapshot(ask::snapshot(id, name))).await?;
        let snapshot_id = taken.snapshot.context("no snapshot")?.snapshot_id;
        let list = pb::ListSnapshotsRequest { source_volume_id: id.into(), ..Default::default() };
        let listed = self.question("ListSnapshots", c.list_snapshots(list)).await?;
        ensure!(
            listed.is_some_and(|it| it.entries.len() == 1),
            "{}: {snapshot_id} is not listed",
            self.round
        );
        let get = pb::GetSnapshotRequest { snapshot_id: snapshot_id.clone(), ..Default::default() };
        self.question("GetSnapshot", c.get_snapshot(get)).await?;
        self.blocks(&snapshot_id).await?;
        let delete = ask::delete_snapshot(&snapshot_id);
        self.change("DeleteSnapshot", c.delete_snapshot(delete)).await?;
        self.groups(id, name).await
    }

    async fn blocks(&self, snapshot_id: &str) -> Result<()> {
        let mut blocks = self.clients.blocks.clone();
        let request =
            pb::GetMetadataAllocatedRequest { snapshot_id: snapshot_id.into(), ..Default::default() };
        self.question("GetMetadataAllocated", async {
            let mut stream = blocks.get_metadata_allocated(request).await?.into_inner();
            while stream.message().await?.is_some() {}
            Ok(Response::new(()))
        })
        .await?;
        let request = pb::GetMetadataDeltaRequest {
            base_snapshot_id: snapshot_id.into(),
            target_snapshot_id: snapshot_id.into(),
            ..Default::default()
        };
        self.question("GetMetadataDelta", async {
            let mut stream = blocks.get_metadata_delta(request).await?.into_inner();
            while stream.message().await?.is_some() {}
            Ok(Response::new(()))
        })
        .await
        .map(drop)
    }

    async fn groups(&self, id: &str, name: &str) -> Result<()> {
        let mut groups = self.clients.group.clone();
        let request = pb::CreateVolumeGroupSnapshotRequest {
            name: format!("{name}-group"),
            source_volume_ids: vec![id.into()],
            ..Default::default()
        };
        let taken =
            self.change("CreateVolumeGroupSnapshot", groups.create_volume_group_snapshot(request)).await?;
        let group = taken.group_snapshot.unwrap_or_default();
        let snapshot_ids: Vec<_> = group.snapshots.iter().map(|it| it.snapshot_id.clone()).collect();
        // Of a backend without groups the two are asked for one that there is not.
        let group_snapshot_id = match group.group_snapshot_id {
            id if id.is_empty() => "none".to_owned(),
            id => id,
        };
        let request = pb::GetVolumeGroupSnapshotRequest {
            group_snapshot_id: group_snapshot_id.clone(),
            snapshot_ids: snapshot_ids.clone(),
            ..Default::default()
        };
        self.question("GetVolumeGroupSnapshot", groups.get_volume_group_snapshot(request)).await?;
        let request =
            pb::DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, ..Default::default() };
        self.change("DeleteVolumeGroupSnapshot", groups.delete_volume_group_snapshot(request)).await.map(drop)
    }

    /// While it is in use.
    async fn grow(&self, used: &Used) -> Result<()> {
        let (mut controller, mut node) = (self.clients.controller.clone(), self.clients.node.clone());
        let expand = ask::expand(&used.id, 2 * SIZE);
        let grown =
            self.change("ControllerExpandVolume", controller.controller_expand_volume(expand)).await?;
        let request = pb::NodeExpandVolumeRequest {
            staging_target_path: used.staging.display().to_string(),
            ..ask::node_expand(&used.id, &used.target, grown.capacity_bytes)
        };
        self.change("NodeExpandVolume", node.node_expand_volume(request)).await.map(drop)
    }

    /// Takes back what [`Calls::use_it`] did.
    pub async fn give_up(&self, used: &Used) -> Result<()> {
        let (mut controller, mut node) = (self.clients.controller.clone(), self.clients.node.clone());
        let unpublish = ask::unpublish(&used.id, &used.target);
        self.change("NodeUnpublishVolume", node.node_unpublish_volume(unpublish)).await?;
        let unstage = ask::unstage(&used.id, &used.staging);
        self.change("NodeUnstageVolume", node.node_unstage_volume(unstage)).await?;
        let detach = ask::detach(&used.id, self.own_node());
        self.change("ControllerUnpublishVolume", controller.controller_unpublish_volume(detach))
            .await
            .map(drop)
    }
}

/// A volume in use.
#[derive(Debug, Clone)]
pub struct Used {
    pub id: String,
    pub staging: std::path::PathBuf,
    pub target: std::path::PathBuf,
}

/// A request that waits for as long as sidecars do.
fn patient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(60));
    request
}

/// Calls of a backend whose server does not answer, also about a volume in use: more than there are places for. What
/// they answer does not matter here.
pub fn load(w: &World, name: &'static str, round: &str, used: &Used) -> Result<JoinSet<()>> {
    let mut calls = JoinSet::new();
    for i in 0..LOAD {
        let c = w.clients(name)?;
        let create = World::create_request(name, &format!("load-{i}-{round}"));
        let used = used.clone();
        calls.spawn(async move {
            let (mut maker, mut lister, mut getter) =
                (c.controller.clone(), c.controller.clone(), c.controller.clone());
            let (mut node, mut identity) = (c.node.clone(), c.identity.clone());
            let get = pb::ControllerGetVolumeRequest { volume_id: used.id.clone() };
            let _ = tokio::join!(
                maker.create_volume(patient(create)),
                lister.list_volumes(patient(pb::ListVolumesRequest::default())),
                getter.controller_get_volume(patient(get)),
                node.node_get_volume_stats(patient(ask::stats(&used.id, &used.target))),
                identity.probe(patient(pb::ProbeRequest {}))
            );
        });
    }
    let (mut controller, used, round) = (w.clients(name)?.controller, used.clone(), round.to_owned());
    calls.spawn(async move {
        let _ = controller.create_snapshot(patient(ask::snapshot(&used.id, &round))).await;
    });
    Ok(calls)
}
