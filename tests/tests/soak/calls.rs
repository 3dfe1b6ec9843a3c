//! Calls that are repeated as sidecars and kubelet do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use tonic::{Code, Response, Status};

use crate::report::Report;
use crate::world::World;

/// By when the driver is asked to answer, done or not, as kubelet and the sidecars do.
pub const ANSWER: Duration = Duration::from_secs(100);
/// No answer may take longer than this, whatever the servers do.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long a call is repeated.
const PATIENCE: Duration = Duration::from_secs(300);
/// After this long the driver and its children are let alone: a disk that the server does not vouch for is read whole
/// before it is formatted, and a driver that is killed while it reads begins again.
const STARVED: Duration = Duration::from_secs(100);
/// After this long a client that is said to have an image open is one that Ceph has not forgotten.
const GHOST: Duration = Duration::from_secs(60);

/// How the driver begins to say what an operator may do about a device that it does not format.
pub const GIVE_UP: &str = "or give up what is there: `";

/// One backend's services.
pub struct Caller {
    pub world: Arc<World>,
    pub backend: &'static str,
    /// The node's id.
    pub node: String,
    report: Arc<Report>,
    clients: Clients,
    /// Those of the second controller.
    second: Option<Clients>,
    /// Whose turn it is to be asked.
    turn: AtomicU32,
}

impl Caller {
    pub async fn new(world: &Arc<World>, report: &Arc<Report>, backend: &'static str) -> Result<Self> {
        let clients = Clients::lazy(&world.socket(backend))?;
        let second = world.second_socket(backend).map(|socket| Clients::lazy(&socket)).transpose()?;
        let (world, report) = (world.clone(), report.clone());
        let mut it =
            Self { world, backend, node: String::new(), report, clients, second, turn: AtomicU32::new(0) };
        let ask = |c: Clients| async move { c.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await };
        it.node = it.call("NodeGetInfo", ask).await?.node_id;
        Ok(it)
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Asks the driver, the second controller, or both at once where the call is a controller's: what both answer must
    /// be the same.
    async fn ask<T, F>(&self, name: &str, make: impl Fn(Clients) -> F) -> Result<T, Status>
    where
        T: PartialEq,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let second = self.second.as_ref().filter(|_| !name.starts_with("Node")).cloned();
        match (second, self.turn.fetch_add(1, Ordering::Relaxed) % 4) {
            (Some(second), 1) => make(second).await.map(Response::into_inner),
            (Some(second), 3) => {
                let (one, other) = tokio::join!(make(self.clients.clone()), make(second));
                match (one.map(Response::into_inner), other.map(Response::into_inner)) {
                    (Ok(one), Ok(other)) if one != other => {
                        Err(Status::data_loss(format!("{name}: two controllers answered differently")))
                    }
                    (Ok(answer), Err(status)) | (Err(status), Ok(answer)) if may_repeat(&status) => {
                        Ok(answer)
                    }
                    (Err(status), Ok(_)) => Err(status),
                    (one, _) => one,
                }
            }
            _ => make(self.clients.clone()).await.map(Response::into_inner),
        }
    }

    /// Makes a call until it succeeds.
    pub async fn call<T, F>(&self, name: &'static str, make: impl Fn(Clients) -> F) -> Result<T>
    where
        T: PartialEq,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (begun, mut pause, mut shaken) = (Instant::now(), Duration::from_millis(100), false);
        let mut spared = None;
        loop {
            if begun.elapsed() > STARVED && spared.is_none() {
                spared = Some(self.world.lives.read().await);
            }
            let asked = Instant::now();
            let answer = {
                let _cinder = match self.backend {
                    "cinder" => Some(self.world.cinder.read().await),
                    _ => None,
                };
                tokio::time::timeout(DEADLINE, self.ask(name, &make)).await
            };
            let Ok(answer) = answer else { bail!("{} {name}: no answer in {DEADLINE:?}", self.backend) };
            self.report.call(self.backend, name, asked.elapsed(), answer.is_ok());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(status) if status.message().contains(GIVE_UP) => bail!("{name}: {}", status.message()),
                Err(status) if may_repeat(&status) && begun.elapsed() < PATIENCE => {
                    if self.world.is_stopped() {
                        bail!("{} {name}: another pod has failed", self.backend);
                    }
                    if status.code() == Code::FailedPrecondition
                        && self.backend == "rbd"
                        && begun.elapsed() > GHOST
                        && !shaken
                    {
                        println!("soak: {name}: {}", status.message());
                        self.world.forget_ghosts().await?;
                        shaken = true;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
                Err(status) => bail!("{} {name}, tried for {:?}: {status}", self.backend, begun.elapsed()),
            }
        }
    }
}

/// Everything but what says that the call itself is wrong.
fn may_repeat(status: &Status) -> bool {
    use Code::{
        AlreadyExists, DataLoss, Internal, InvalidArgument, NotFound, OutOfRange, PermissionDenied,
        Unauthenticated, Unimplemented,
    };
    let wrong = [
        AlreadyExists,
        DataLoss,
        Internal,
        InvalidArgument,
        NotFound,
        OutOfRange,
        PermissionDenied,
        Unauthenticated,
        Unimplemented,
    ];
    // A connection that was cut by the driver's death can be of these kinds, too.
    let cut = ["transport error", "broken pipe", "h2 protocol error", "error reading a body", "connection"];
    !wrong.contains(&status.code()) || cut.iter().any(|words| status.message().contains(words))
}
