//! One run against one driver: what it can do, and calls that are repeated as sidecars repeat them.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use csi_proto::v1 as pb;
use owo_colors::OwoColorize as _;
use pb::controller_service_capability::rpc::Type as Controller;
use pb::node_service_capability::rpc::Type as Node;
use pb::plugin_capability::service::Type as Service;
use tonic::{Code, Status};

use super::plan::Site;
use super::state::Notes;
use crate::client::Csi;

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A driver and its capabilities.
pub struct Session {
    pub csi: Csi,
    pub notes: Notes,
    pub driver: String,
    pub node_id: String,
    pub topology: Option<pb::Topology>,
    controller: Vec<Controller>,
    node: Vec<Node>,
}

impl Session {
    /// Asks the driver for its name, capabilities and node.
    pub async fn open(csi: &Csi, notes: Notes) -> Result<Self> {
        let info = csi
            .identity
            .clone()
            .get_plugin_info(csi.request(pb::GetPluginInfoRequest {}))
            .await?
            .into_inner();
        let request = csi.request(pb::GetPluginCapabilitiesRequest {});
        let plugin = csi.identity.clone().get_plugin_capabilities(request).await?.into_inner();
        let places = plugin.capabilities.iter().any(|c| {
            use pb::plugin_capability::Type;
            matches!(&c.r#type, Some(Type::Service(s)) if s.r#type() == Service::VolumeAccessibilityConstraints)
        });
        let request = csi.request(pb::ControllerGetCapabilitiesRequest {});
        let controller =
            csi.controller.clone().controller_get_capabilities(request).await.context("the controller")?;
        let request = csi.request(pb::NodeGetCapabilitiesRequest {});
        let node = csi.node.clone().node_get_capabilities(request).await.context("the node")?;
        let here = csi.node.clone().node_get_info(csi.request(pb::NodeGetInfoRequest {})).await?.into_inner();
        Ok(Self {
            csi: csi.clone(),
            notes,
            driver: info.name,
            node_id: here.node_id,
            topology: here.accessible_topology.filter(|_| places),
            controller: controller.into_inner().capabilities.iter().filter_map(controller_type).collect(),
            node: node.into_inner().capabilities.iter().filter_map(node_type).collect(),
        })
    }

    /// The driver and the node, as far as claims and volumes are for them.
    pub fn site(&self) -> Site {
        let mut labels = self.topology.as_ref().map(|it| it.segments.clone()).unwrap_or_default();
        labels.entry("kubernetes.io/hostname".into()).or_insert_with(|| self.node_id.clone());
        let single_writer = self.controller_can(Controller::SingleNodeMultiWriter);
        Site { driver: self.driver.clone(), labels, single_writer }
    }

    /// Whether the controller can do something.
    pub fn controller_can(&self, what: Controller) -> bool {
        self.controller.contains(&what)
    }

    /// Whether the node can do something.
    pub fn node_can(&self, what: Node) -> bool {
        self.node.contains(&what)
    }

    /// Makes a call, and repeats it while the driver says that it should be repeated, until the time is over. Prints
    /// what was done and how long it took.
    pub async fn step<C, R, T, W>(
        &self,
        what: &str,
        client: &C,
        request: &R,
        call: impl Fn(C, tonic::Request<R>) -> W,
    ) -> Result<T>
    where
        C: Clone,
        R: Clone,
        W: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let (begun, mut pause) = (Instant::now(), Duration::from_millis(50));
        loop {
            match call(client.clone(), self.csi.request(request.clone())).await {
                Ok(answer) => {
                    anstream::eprintln!("{} {what} ({} ms)", "done".green(), begun.elapsed().as_millis());
                    return Ok(answer.into_inner());
                }
                Err(status) if again(&status) && begun.elapsed() < self.csi.timeout() => {
                    anstream::eprintln!("wait {what}: {}", status.message());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(status) => return Err(anyhow::Error::new(status).context(what.to_owned())),
            }
        }
    }
}

/// Codes that external-provisioner and kubelet take for "not ended", and connections that broke: the same call is made
/// again.
fn again(status: &Status) -> bool {
    use std::error::Error as _;
    // Where there is a source, the driver has not answered.
    status.source().is_some()
        || matches!(status.code(), Code::Aborted | Code::Unavailable | Code::DeadlineExceeded)
}

/// Whether a call has ended in a refusal: what it asked for is not there and not being made.
pub fn refused(error: &anyhow::Error) -> bool {
    let status = error.chain().find_map(|cause| cause.downcast_ref::<Status>());
    status.is_some_and(|it| !again(it) && !matches!(it.code(), Code::Cancelled | Code::Unknown))
}

fn controller_type(c: &pb::ControllerServiceCapability) -> Option<Controller> {
    let pb::controller_service_capability::Type::Rpc(rpc) = c.r#type.as_ref()?;
    Some(rpc.r#type())
}

fn node_type(c: &pb::NodeServiceCapability) -> Option<Node> {
    let pb::node_service_capability::Type::Rpc(rpc) = c.r#type.as_ref()?;
    Some(rpc.r#type())
}
