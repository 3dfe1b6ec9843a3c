//! Calls that are repeated as sidecars and kubelet do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use tonic::{Code, Response, Status};

use crate::report::Report;
use crate::world::World;

/// No answer may take longer than this, whatever the servers do.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long a call is repeated.
const PATIENCE: Duration = Duration::from_secs(240);
/// After this long a client that is said to have an image open is one that Ceph has not forgotten.
const GHOST: Duration = Duration::from_secs(60);

/// One backend's services.
pub struct Caller {
    pub world: Arc<World>,
    pub backend: &'static str,
    /// The node's id.
    pub node: String,
    report: Arc<Report>,
    clients: Clients,
}

impl Caller {
    pub async fn new(world: &Arc<World>, report: &Arc<Report>, backend: &'static str) -> Result<Self> {
        let clients = Clients::lazy(&world.socket(backend))?;
        let (world, report) = (world.clone(), report.clone());
        let mut it = Self { world, backend, node: String::new(), report, clients };
        let ask = |c: Clients| async move { c.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await };
        it.node = it.call("NodeGetInfo", ask).await?.node_id;
        Ok(it)
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Makes a call until it succeeds.
    pub async fn call<T, F>(&self, name: &'static str, make: impl Fn(Clients) -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (begun, mut pause, mut shaken) = (Instant::now(), Duration::from_millis(100), false);
        loop {
            let asked = Instant::now();
            let answer = {
                let _cinder = match self.backend {
                    "cinder" => Some(self.world.cinder.read().await),
                    _ => None,
                };
                tokio::time::timeout(DEADLINE, make(self.clients.clone())).await
            };
            let Ok(answer) = answer else { bail!("{} {name}: no answer in {DEADLINE:?}", self.backend) };
            self.report.call(self.backend, name, asked.elapsed(), answer.is_ok());
            match answer {
                Ok(answer) => return Ok(answer.into_inner()),
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
