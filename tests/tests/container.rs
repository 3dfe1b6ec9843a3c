//! In real containers (`make test-container`): the node's part of the contract suite, while the container is stopped,
//! killed, killed with all that is in it, or replaced by a newer one before every call to the node.

#[path = "container/local.rs"]
mod local;
#[path = "container/rbd.rs"]
mod rbd;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::container::{End, Manifest, Place, Runtime};
use e2e::contract::Subject;
use e2e::relay::Relay;
use e2e::scratch::Scratch;

/// A driver in a container, and a relay that does something to it before each call to the node.
pub struct World {
    /// The container.
    pub place: Arc<Mutex<Place>>,
    /// The driver's own socket.
    pub socket: PathBuf,
    relay: Relay,
}

impl World {
    /// Starts both. `socket` is the driver's socket's name.
    pub fn start(
        runtime: Runtime,
        manifest: Manifest,
        scratch: &Scratch,
        config: &str,
        socket: &str,
    ) -> Result<Self> {
        let place = Arc::new(Mutex::new(Place::new(runtime, manifest, scratch.path(), config)?));
        let socket = scratch.path().join("sockets").join(socket);
        let (it, turn) = (place.clone(), Mutex::new(0));
        let before = move |call: &str| {
            if !call.starts_with("/csi.v1.Node/Node") || call.ends_with("NodeGetInfo") {
                return Ok(());
            }
            let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            *turn += 1;
            let mut place = it.lock().unwrap_or_else(PoisonError::into_inner);
            place.check_devices()?;
            match *turn % 4 {
                0 => place.again(End::Stop),
                1 => place.again(End::Kill),
                2 => place.replace(),
                _ => place.again(End::KillAll),
            }
        };
        let relay = Relay::start(&scratch.path().join("relay.sock"), &socket, Arc::new(before))?;
        Ok(Self { place, socket, relay })
    }

    /// Clients whose calls to the node find another container each.
    pub async fn clients(&self) -> Result<Clients> {
        match Clients::ready(&self.relay.socket).await {
            Ok(clients) => Ok(clients),
            Err(error) => anyhow::bail!("{error:#}; {}", self.place().log()),
        }
    }

    /// The container, for a test that does something to it.
    pub fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for World {
    /// The relay's task may have its part of the place for longer.
    fn drop(&mut self) {
        self.place().close();
    }
}

/// A subject of the contract suite.
pub async fn subject(
    world: World,
    scratch: Scratch,
    capability: pb::VolumeCapability,
    size: i64,
) -> Result<Subject> {
    Ok(Subject::new(world.clients().await?, scratch, capability, size, world))
}
