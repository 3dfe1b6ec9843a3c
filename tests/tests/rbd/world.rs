//! A driver on the shared cluster, and what the tests ask of it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::clients::Clients;
use e2e::drivers::InProcess;
use e2e::kubernetes::Api;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;

pub const SIZE: i64 = 64 * MIB;

/// One test's driver with a namespace of its own.
pub struct World {
    pub ceph: &'static Ceph,
    pub clients: Clients,
    pub scratch: Scratch,
    pub namespace: String,
    pub nodes: Api,
    _driver: InProcess,
}

impl World {
    /// `None`: there can be no cluster here, and why is logged as a skip.
    pub async fn new(test: &str, more: &str) -> Result<Option<Self>> {
        match Ceph::shared(test)? {
            Some(ceph) => Self::on(ceph, test, more).await.map(Some),
            None => Ok(None),
        }
    }

    /// The same on a cluster that no other test uses; it ends with this process.
    pub async fn alone(test: &str) -> Result<Option<Self>> {
        match Ceph::own(test).await? {
            Some(ceph) => Self::on(Box::leak(Box::new(ceph)), test, "").await.map(Some),
            None => Ok(None),
        }
    }

    async fn on(ceph: &'static Ceph, test: &str, more: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let nodes = Api::start(scratch.path(), "node-1").await?;
        let config = ceph.config(test, scratch.path(), more)?;
        let driver = InProcess::start(&(nodes.config() + &config.text)).await?;
        let clients = driver.clients().await?;
        Ok(Self { ceph, clients, scratch, namespace: config.namespace, nodes, _driver: driver })
    }

    /// `rbd/<namespace>/<image>`.
    pub fn spec(&self, image: &str) -> String {
        format!("rbd/{}/{image}", self.namespace)
    }

    pub fn rbd(&self, args: &[&str]) -> Result<String> {
        self.ceph.run("rbd", args)
    }

    pub async fn create(&self, request: pb::CreateVolumeRequest) -> Result<String> {
        let answer = self.clients.controller.clone().create_volume(request).await?;
        Ok(answer.into_inner().volume.context("no volume")?.volume_id)
    }

    pub async fn make(&self, name: &str) -> Result<String> {
        self.create(ask::create(name, SIZE, ask::mount("ext4"))).await
    }

    pub async fn delete(&self, id: &str) -> Result<()> {
        self.clients.controller.clone().delete_volume(ask::delete(id)).await?;
        Ok(())
    }

    pub async fn snapshot(&self, source: &str, name: &str) -> Result<pb::Snapshot> {
        let answer = self.clients.controller.clone().create_snapshot(ask::snapshot(source, name)).await?;
        answer.into_inner().snapshot.context("no snapshot")
    }

    /// The images of this test, and what is in its trash.
    pub fn images(&self) -> Result<(Vec<String>, Vec<String>)> {
        let place = format!("rbd/{}", self.namespace);
        let lines = |text: String| text.lines().map(str::to_owned).filter(|l| !l.is_empty()).collect();
        Ok((lines(self.rbd(&["ls", &place])?), lines(self.rbd(&["trash", "ls", &place])?)))
    }

    /// Waits until a condition holds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        for _ in 0..600 {
            if holds()? {
                return Ok(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        anyhow::bail!("not within a minute: {what}")
    }

    /// Runs volumectl against the cluster, as this test's driver's; exit code, standard output and error.
    pub fn volumectl(&self, args: &[&str]) -> Result<(i32, String, String)> {
        self.ceph.volumectl(&[args, &["--cluster-id", &self.namespace]].concat())
    }

    /// Stages a volume on this node.
    pub async fn stage(&self, id: &str) -> Result<PathBuf, tonic::Status> {
        let staging =
            self.scratch.path().join("kubelet").join(id.rsplit('/').next().unwrap_or(id)).join("stage");
        std::fs::create_dir_all(&staging).map_err(|e| tonic::Status::internal(e.to_string()))?;
        let request = ask::stage(id, &staging, ask::mount("ext4"));
        self.clients.node.clone().node_stage_volume(request).await?;
        Ok(staging)
    }

    pub async fn unstage(&self, id: &str) -> Result<()> {
        let staging =
            self.scratch.path().join("kubelet").join(id.rsplit('/').next().unwrap_or(id)).join("stage");
        self.clients.node.clone().node_unstage_volume(ask::unstage(id, &staging)).await?;
        Ok(())
    }
}
