//! The Identity service.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use csi_proto::v1 as pb;
use pb::identity_server::Identity;
use provisioners::{Error, Part, Provisioner, Result};
use tonic::{Request, Response, Status};

use crate::capabilities;
use crate::driver::{Service, open};

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
                manifest: manifest(&*self.backend.provisioner),
            })
        };
        self.answer("GetPluginInfo", request.metadata(), "", work).await
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<pb::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<pb::GetPluginCapabilitiesResponse>, Status> {
        let capabilities = capabilities::plugin(&self.backend);
        let work = async { Ok(pb::GetPluginCapabilitiesResponse { capabilities }) };
        self.answer("GetPluginCapabilities", request.metadata(), "", work).await
    }

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let (metadata, _) = open(request);
        let work = async { Ok(pb::ProbeResponse { ready: Some(self.probe_backend().await?) }) };
        self.answer("Probe", &metadata, "", work).await
    }
}

/// A question to a backend.
type Look = Pin<Box<dyn Future<Output = Vec<Part>> + Send>>;

/// How many lines of what waits for an administrator are told; all are counted.
const LINES: usize = 10;

/// What kind of driver it is, and what waits for an administrator.
fn manifest(provisioner: &dyn Provisioner) -> BTreeMap<String, String> {
    let mut manifest = BTreeMap::from([("backend".to_owned(), provisioner.kind().to_owned())]);
    let mut lines = provisioner.attention();
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    if !lines.is_empty() {
        manifest.insert("attention".to_owned(), lines.join("\n"));
    }
    manifest
}

impl Service {
    /// How each part of what this process serves is: the backend's for a controller, the node's kernel and programs for
    /// a node. A node does not ask the backend, so a thousand nodes do not load it. [`None`]: not known yet.
    pub async fn readiness(&self) -> Option<Vec<Part>> {
        self.health.check(self.look()).await
    }

    /// [`Service::readiness`], however long the backend takes.
    pub async fn examined(&self) -> Vec<Part> {
        self.health.wait(self.look()).await
    }

    fn look(&self) -> impl FnOnce() -> Look {
        let driver = self.0.clone();
        let look = async move {
            let kind = driver.backend.provisioner.kind();
            if driver.mode.node()
                && let Err(error) = driver.host.check(kind)
            {
                return vec![Part { name: "this node".into(), state: Err(error) }];
            }
            if driver.mode.controller() { driver.backend.provisioner.parts().await } else { Vec::new() }
        };
        move || Box::pin(look)
    }

    /// Whether this process can serve anything; `false`: that is not known yet, as the specification has it of a plugin
    /// that is starting. If it cannot, it is FAILED_PRECONDITION ("Probe Errors"), whatever the cause.
    pub async fn probe_backend(&self) -> Result<bool> {
        let Some(parts) = self.readiness().await else { return Ok(false) };
        if serves(&parts) {
            return Ok(true);
        }
        let problems: Vec<String> = parts.iter().filter_map(problem).collect();
        Err(Error::Refused(format!("not ready: {}", problems.join("; "))))
    }
}

/// Whether anything can be served: one part is well, or there is none that could fail.
pub fn serves(parts: &[Part]) -> bool {
    parts.is_empty() || parts.iter().any(|part| part.state.is_ok())
}

/// What is wrong with a part.
pub fn problem(part: &Part) -> Option<String> {
    let error = part.state.as_ref().err()?;
    let error = provisioners::plain(&error.to_string());
    Some(if part.name.is_empty() { error } else { format!("{}: {error}", part.name) })
}
