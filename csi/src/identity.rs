//! The Identity service.

use csi_proto::v1 as pb;
use pb::identity_server::Identity;
use provisioners::Result;
use tonic::{Request, Response, Status};

use crate::capabilities;
use crate::driver::{Driver, Service, open};

#[tonic::async_trait]
impl Identity for Service {
    async fn get_plugin_info(
        &self,
        request: Request<pb::GetPluginInfoRequest>,
    ) -> Result<Response<pb::GetPluginInfoResponse>, Status> {
        let work = async {
            Ok(pb::GetPluginInfoResponse {
                name: self.name.clone(),
                vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
                manifest: [("backend".to_owned(), self.backend.provisioner.kind().to_owned())].into(),
            })
        };
        self.answer("GetPluginInfo", request.metadata(), "", work).await
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<pb::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<pb::GetPluginCapabilitiesResponse>, Status> {
        let capabilities = capabilities::plugin(&self.backend, self.mode);
        let work = async { Ok(pb::GetPluginCapabilitiesResponse { capabilities }) };
        self.answer("GetPluginCapabilities", request.metadata(), "", work).await
    }

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let (metadata, _) = open(request);
        let work = async {
            self.probe_backend().await?;
            Ok(pb::ProbeResponse { ready: Some(true) })
        };
        self.answer("Probe", &metadata, "", work).await
    }
}

impl Driver {
    /// Whether this process can serve: the backend for a controller, the node's kernel and programs for a node.
    /// A node does not ask the backend, so a thousand nodes do not load it. Not healthy is FAILED_PRECONDITION by the
    /// specification ("Probe Errors"), whatever the cause.
    pub async fn probe_backend(&self) -> Result<()> {
        let ask = || async {
            if self.mode.controller() {
                self.backend.provisioner.check().await?;
            }
            if self.mode.node() { self.host.check() } else { Ok(()) }
        };
        let not_healthy = |e: provisioners::Error| provisioners::Error::Refused(format!("not ready: {e}"));
        self.health.check(ask).await.map_err(not_healthy)
    }
}
