//! Clients of one CSI socket.

use std::path::Path;
use std::time::{Duration, Instant};

use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use pb::group_controller_client::GroupControllerClient;
use pb::identity_client::IdentityClient;
use pb::node_client::NodeClient;
use pb::snapshot_metadata_client::SnapshotMetadataClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// The services over one connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Identity.
    pub identity: IdentityClient<Channel>,
    /// Controller.
    pub controller: ControllerClient<Channel>,
    /// GroupController.
    pub group: GroupControllerClient<Channel>,
    /// Node.
    pub node: NodeClient<Channel>,
    /// SnapshotMetadata.
    pub blocks: SnapshotMetadataClient<Channel>,
}

impl Clients {
    /// Connects when the first call is made.
    pub fn lazy(socket: &Path) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))?.connect_lazy();
        Ok(Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            group: GroupControllerClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            blocks: SnapshotMetadataClient::new(channel),
        })
    }

    /// Connects, and waits until Probe says ready: a minute, three in a guest.
    pub async fn ready(socket: &Path) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let patience = Duration::from_secs(if crate::control::is_guest() { 180 } else { 60 });
        loop {
            let clients = Self::lazy(socket)?;
            match clients.identity.clone().probe(pb::ProbeRequest {}).await {
                Ok(answer) if answer.get_ref().ready == Some(true) => return Ok(clients),
                other if begun.elapsed() > patience => {
                    anyhow::bail!("{} is not ready: {other:?}", socket.display())
                }
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

/// A call, again for so long while it is UNAVAILABLE or not done in time, as kubelet and the sidecars repeat it.
pub async fn repeated<T>(
    patience: Duration,
    mut call: impl AsyncFnMut() -> Result<T, Status>,
) -> Result<T, Status> {
    let begun = Instant::now();
    loop {
        match call().await {
            Err(status)
                if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
                    && begun.elapsed() < patience =>
            {
                println!("repeated after {:?}: {status}", begun.elapsed());
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            other => return other,
        }
    }
}
