//! The sockets served until told to stop, then drained.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use csi_proto::v1 as pb;
use provisioners::Feature;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;

use crate::driver::Service;
use crate::http::{self, Pages};
use crate::metrics::Metrics;
use crate::sockets::Socket;

/// What is served, and how it ends.
pub struct Server {
    drivers: Vec<(Service, Socket)>,
    http: Option<TcpListener>,
    pages: Pages,
    grace: Duration,
}

impl Server {
    /// Binds every socket; nothing is served yet.
    pub async fn bind(
        drivers: Vec<(Service, std::path::PathBuf)>,
        http: Option<SocketAddr>,
        metrics: Metrics,
        grace: Duration,
    ) -> Result<Self> {
        let mut bound = Vec::new();
        for (driver, path) in drivers {
            bound.push((driver, Socket::bind(&path).await?));
        }
        let http = match http {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .with_context(|| format!("httpAddress: binding {address}"))?,
            ),
            None => None,
        };
        let private = http.as_ref().is_some_and(|l| l.local_addr().is_ok_and(|at| at.ip().is_loopback()));
        let services = bound.iter().map(|(driver, _)| driver.clone()).collect();
        let serving = Arc::new(AtomicBool::new(false));
        let pages = Pages { metrics, drivers: Arc::new(services), serving, private };
        Ok(Self { drivers: bound, http, pages, grace })
    }

    /// Where the HTTP pages are, when they are served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|l| l.local_addr().ok())
    }

    /// Serves until `stop` is ready; then accepts no more, lets running calls end within the grace period, and
    /// returns. Operations whose callers have gone are waited for, too.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<()> {
        let (tell, told) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (driver, socket) in &mut self.drivers {
            let listener =
                socket.take().ok_or_else(|| anyhow!("the socket of {} was taken twice", driver.name))?;
            tracing::info!(driver = %driver.name, socket = %socket.path().display(), "serving");
            tasks.spawn(serve(driver.clone(), listener, told.clone()));
        }
        if let Some(listener) = self.http.take() {
            tracing::info!(address = %listener.local_addr()?, "serving /metrics, /healthz and /readyz");
            let app = http::router(self.pages.clone());
            let stopped = wait(told.clone());
            tasks.spawn(async move { Ok(axum::serve(listener, app).with_graceful_shutdown(stopped).await?) });
        }
        self.pages.serving.store(true, Ordering::Release);
        tracing::info!("ready");
        let failed = tokio::select! {
            () = stop => None,
            ended = tasks.join_next() => Some(ended),
        };
        self.pages.serving.store(false, Ordering::Release);
        tell.send_replace(true);
        self.drain(tasks).await;
        match failed {
            None => Ok(()),
            Some(ended) => Err(anyhow!("a server ended by itself: {ended:?}")),
        }
    }

    async fn drain(&self, mut tasks: JoinSet<Result<()>>) {
        tracing::info!(grace_seconds = self.grace.as_secs(), "stopping: no new calls, running ones may end");
        let operations = async {
            let mut left = 0;
            for (driver, _) in &self.drivers {
                left += driver.flights.drain(self.grace).await;
            }
            left
        };
        let calls = tokio::time::timeout(self.grace, async { while tasks.join_next().await.is_some() {} });
        let (left, _) = tokio::join!(operations, calls);
        if left > 0 {
            tracing::warn!(
                operations = left,
                "stopped with operations unfinished; a repeat of the call heals them"
            );
        } else {
            tracing::info!("stopped; nothing was running");
        }
    }
}

async fn wait(mut told: watch::Receiver<bool>) {
    // An error means that the sender is gone: stop as well.
    let _ = told.wait_for(|stop| *stop).await;
}

async fn serve(driver: Service, listener: UnixListener, told: watch::Receiver<bool>) -> Result<()> {
    use pb::controller_server::ControllerServer;
    use pb::group_controller_server::GroupControllerServer;
    use pb::identity_server::IdentityServer;
    use pb::node_server::NodeServer;
    use pb::snapshot_metadata_server::SnapshotMetadataServer;
    let (controller, node) = (driver.mode.controller(), driver.mode.node());
    let groups = controller && driver.backend.has(Feature::GroupSnapshots);
    let blocks = controller && driver.backend.has(Feature::ChangedBlocks);
    let name = driver.name.clone();
    tonic::transport::Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_optional_service(controller.then(|| ControllerServer::new(driver.clone())))
        .add_optional_service(groups.then(|| GroupControllerServer::new(driver.clone())))
        .add_optional_service(blocks.then(|| SnapshotMetadataServer::new(driver.clone())))
        .add_optional_service(node.then(|| NodeServer::new(driver)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), wait(told))
        .await
        .with_context(|| format!("serving {name}"))
}
