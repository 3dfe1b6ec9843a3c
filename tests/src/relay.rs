//! A socket before the driver's: each call is passed on, and something is done to the driver before it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use axum::body::Body;
use axum::http::{Request, Response};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

/// What is done before a call, which is named as `/csi.v1.Node/NodeStageVolume`.
pub type Before = Arc<dyn Fn(&str) -> Result<()> + Send + Sync>;

/// The relay; it ends when this is dropped.
pub struct Relay {
    /// Its socket.
    pub socket: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// Listens at `socket` and passes on to `driver`.
    pub fn start(socket: &Path, driver: &Path, before: Before) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let driver = driver.to_owned();
        let pass = move |request: Request<Body>| pass(driver.clone(), before.clone(), request);
        let routes = tonic::service::Routes::from(axum::Router::new().fallback(pass));
        let serve =
            Server::builder().add_routes(routes).serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move { drop(serve.await) });
        Ok(Self { socket: socket.to_owned(), task })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What went wrong here is told as a status, so that a test fails with its words.
async fn pass(driver: PathBuf, before: Before, request: Request<Body>) -> Response<Body> {
    match try_pass(&driver, before, request).await {
        Ok(response) => response,
        Err(error) => tonic::Status::data_loss(format!("the relay: {error:#}"))
            .into_http::<tonic::body::Body>()
            .map(Body::new),
    }
}

async fn try_pass(driver: &Path, before: Before, request: Request<Body>) -> Result<Response<Body>> {
    let call = request.uri().path().to_owned();
    tokio::task::spawn_blocking(move || before(&call)).await??;
    let mut channel: Channel = ready(driver).await?;
    let answer = tonic::client::GrpcService::call(&mut channel, request.map(tonic::body::Body::new)).await?;
    Ok(answer.map(Body::new))
}

/// A connection to a driver that may just be starting.
async fn ready(driver: &Path) -> Result<Channel> {
    crate::clients::Clients::ready(driver).await?;
    let mut channel = Endpoint::from_shared(format!("unix:{}", driver.display()))?.connect().await?;
    std::future::poll_fn(|context| {
        tonic::client::GrpcService::<tonic::body::Body>::poll_ready(&mut channel, context)
    })
    .await?;
    Ok(channel)
}
