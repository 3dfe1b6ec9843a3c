//! A client of one CSI socket.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use csi_proto::v1 as pb;
use pb::controller_client::ControllerClient;
use pb::group_controller_client::GroupControllerClient;
use pb::identity_client::IdentityClient;
use pb::node_client::NodeClient;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// The four services over one connection, and the time that a call may take. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Csi {
    /// Identity.
    pub identity: IdentityClient<Channel>,
    /// Controller.
    pub controller: ControllerClient<Channel>,
    /// GroupController.
    pub group: GroupControllerClient<Channel>,
    /// Node.
    pub node: NodeClient<Channel>,
    timeout: Duration,
}

impl Csi {
    /// Connects to `unix:///path`, `unix:/path` or `/path`.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Self> {
        let path = path(endpoint)?;
        let channel = Endpoint::from_shared(format!("unix:{path}"))?
            .connect_timeout(timeout)
            .connect()
            .await
            .with_context(|| {
                format!("no CSI driver answers on {path}; is it running, and is this its socket?")
            })?;
        Ok(Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            group: GroupControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
            timeout,
        })
    }

    /// A request with this client's time limit, which the driver is told (`grpc-timeout`).
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// How long a call may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

fn path(endpoint: &str) -> Result<&str> {
    let path = endpoint.strip_prefix("unix:").unwrap_or(endpoint);
    // unix:///path has an empty authority.
    let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
    if !path.starts_with('/') {
        bail!(crate::errors::Usage(format!(
            "--endpoint {endpoint:?}: write unix:///path/to/csi.sock or its absolute path"
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_paths_of_sockets() {
        for good in ["unix:///run/csi.sock", "unix:/run/csi.sock", "/run/csi.sock"] {
            assert_eq!(path(good).unwrap(), "/run/csi.sock");
        }
        for bad in ["tcp://1.2.3.4:5", "csi.sock", "unix:csi.sock", ""] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
