//! A driver on the real services, behind proxies that count requests and do harm to them, and what tests ask of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::drivers::InProcess;
use e2e::openstack::OpenStack;
use e2e::proxy::Proxy;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;
use provisioners::cinder::{Bare, Service};
use serde_json::{Value, json};
use tonic::Status;

/// Cinder's sizes are whole GiB.
pub const GIB: i64 = 1024 * MIB;

/// One test's driver.
pub struct World {
    pub cloud: &'static OpenStack,
    /// What tells this test's volumes from others'.
    pub owner: String,
    /// The server that is its node.
    pub server: String,
    pub scratch: Scratch,
    pub clients: Clients,
    /// Before Cinder.
    pub volumes: Proxy,
    /// Before Nova.
    pub compute: Proxy,
    pub config: String,
    pub driver: Option<InProcess>,
}

impl World {
    /// `None`: there can be none here, and why is logged as a skip.
    pub async fn new(test: &str) -> Result<Option<Self>> {
        Self::with(test, "").await
    }

    /// With more keys of the backend, each on a line of its own and indented by four.
    pub async fn with(test: &str, keys: &str) -> Result<Option<Self>> {
        match OpenStack::shared(test)? {
            Some(cloud) => Self::on(cloud, test, keys).await.map(Some),
            None => Ok(None),
        }
    }

    /// On services that run.
    pub async fn on(cloud: &'static OpenStack, test: &str, keys: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let owner = format!("{test}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let server = cloud.node()?;
        let (volumes, compute) =
            (Proxy::start(&cloud.address("cinder"))?, Proxy::start(&cloud.address("nova"))?);
        let scratch = Scratch::new()?;
        let more = format!(
            ", volumeEndpoint: \"http://{}/v3\", computeEndpoint: \"http://{}/v2.1\"",
            volumes.address(),
            compute.address()
        );
        let config = cloud.config(&owner, &server, scratch.path(), &more, keys);
        let driver = InProcess::start(&config).await?;
        let clients = driver.clients().await?;
        Ok(Self { cloud, owner, server, scratch, clients, volumes, compute, config, driver: Some(driver) })
    }

    /// A second driver of the same configuration, such as another replica of the controller.
    pub async fn second(&self) -> Result<(Scratch, InProcess, Clients)> {
        let scratch = Scratch::new()?;
        let here = self.scratch.path().display().to_string();
        let config = self.config.replace(&here, &scratch.path().display().to_string());
        let driver = InProcess::start(&config).await?;
        let clients = driver.clients().await?;
        Ok((scratch, driver, clients))
    }

    pub fn bare(&self) -> Bare {
        self.cloud.bare("demo")
    }

    pub fn request(name: &str, parameters: &[(&str, &str)]) -> pb::CreateVolumeRequest {
        let mut request = ask::create(name, GIB, ask::mount("xfs"));
        request.parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        request
    }

    pub async fn create(&self, request: pb::CreateVolumeRequest) -> Result<pb::Volume, Status> {
        let answer = self.clients.controller.clone().create_volume(request).await?;
        answer.into_inner().volume.ok_or_else(|| Status::internal("no volume"))
    }

    pub async fn make(&self, name: &str) -> Result<String> {
        Ok(self.create(Self::request(name, &[])).await?.volume_id)
    }

    pub async fn delete(&self, id: &str) -> Result<(), Status> {
        self.clients.controller.clone().delete_volume(ask::delete(id)).await.map(drop)
    }

    pub async fn attach_to(&self, id: &str, server: &str) -> Result<BTreeMap<String, String>, Status> {
        let request = ask::attach(id, server, ask::mount("xfs"));
        let answer = self.clients.controller.clone().controller_publish_volume(request).await?;
        Ok(answer.into_inner().publish_context.into_iter().collect())
    }

    pub async fn attach(&self, id: &str) -> Result<BTreeMap<String, String>, Status> {
        self.attach_to(id, &self.server).await
    }

    pub async fn detach(&self, id: &str) -> Result<(), Status> {
        let request = ask::detach(id, &self.server);
        self.clients.controller.clone().controller_unpublish_volume(request).await.map(drop)
    }

    pub async fn expand(&self, id: &str, gib: i64) -> Result<i64, Status> {
        let request = ask::expand(id, gib * GIB);
        Ok(self
            .clients
            .controller
            .clone()
            .controller_expand_volume(request)
            .await?
            .into_inner()
            .capacity_bytes)
    }

    pub async fn snapshot(&self, id: &str, name: &str) -> Result<pb::Snapshot, Status> {
        let answer = self.clients.controller.clone().create_snapshot(ask::snapshot(id, name)).await?;
        answer.into_inner().snapshot.ok_or_else(|| Status::internal("no snapshot"))
    }

    pub async fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        self.clients.controller.clone().delete_snapshot(ask::delete_snapshot(id)).await.map(drop)
    }

    /// What Cinder has of this test: `volumes` or `snapshots`.
    pub async fn own(&self, what: &str) -> Result<Vec<Value>> {
        self.cloud.owned(what, &self.owner).await
    }

    /// A volume as Cinder has it.
    pub async fn show(&self, id: &str) -> Result<Value> {
        Ok(self.bare().ask(Service::Volume, &format!("volumes/{id}"), None).await?["volume"].take())
    }

    /// An action of Cinder, as an administrator.
    pub async fn act(&self, id: &str, action: Value) -> Result<()> {
        self.cloud
            .bare("admin")
            .ask(Service::Volume, &format!("volumes/{id}/action"), Some(action))
            .await
            .map(drop)?;
        Ok(())
    }

    /// Gives a volume a status, as an administrator does.
    pub async fn set_status(&self, id: &str, status: &str) -> Result<()> {
        self.act(id, json!({"os-reset_status": {"status": status}})).await
    }

    /// Everything of this test goes, and nothing of it is left in Cinder.
    pub async fn end(self) -> Result<()> {
        self.volumes.clear();
        self.compute.clear();
        for volume in self.own("volumes").await? {
            let id = volume["id"].as_str().context("no id")?.to_owned();
            self.detach(&id).await?;
        }
        for snapshot in self.own("snapshots").await? {
            self.delete_snapshot(snapshot["id"].as_str().context("no id")?).await?;
        }
        for volume in self.own("volumes").await? {
            self.delete(volume["id"].as_str().context("no id")?).await?;
        }
        let left = self.own("volumes").await?;
        ensure!(left.is_empty(), "left: {left:?}");
        ensure!(self.scratch.mounts().is_empty(), "mounts left: {:?}", self.scratch.mounts());
        Ok(())
    }

    /// Where a path of this test's node is.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join("kubelet").join(name);
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(path)
    }
}
