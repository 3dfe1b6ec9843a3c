//! Four backends in one driver, each on a server of its own that can be killed, stopped and cut off.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use csi_driver::config::Config;
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::clients::Clients;
use e2e::drivers::{Process, backends_of, local_config};
use e2e::network::Network;
use e2e::nfs::Nfs;
use e2e::openstack::OpenStack;
use e2e::requests as ask;
use e2e::run;
use e2e::scratch::Scratch;

/// In the order of the configuration.
pub const BACKENDS: [&str; 4] = ["local", "rbd", "nfs", "cinder"];
/// Cinder's sizes are whole GiB.
pub const SIZE: i64 = 1 << 30;
/// How long the driver waits for a server that does not answer: far longer than any call of the others may take.
const PATIENCE: &str = "callTimeoutSeconds: 90\n";

const CEPH: [&str; 3] = ["mon.a", "mgr.x", "osd.0"];
const CLOUD: [&str; 3] = ["keystone", "cinder", "nova"];

/// What is dropped first ends first.
pub struct World {
    pub driver: Process,
    pub nodes: Vec<String>,
    sockets: Vec<PathBuf>,
    pub scratch: Scratch,
    ceph: Ceph,
    nfs: Nfs,
    cloud: OpenStack,
    ceph_network: Network,
    cloud_network: Network,
}

/// All servers at once, on threads of their own.
async fn servers() -> Result<(Ceph, Nfs, OpenStack, Network, Network)> {
    let cloud = tokio::task::spawn_blocking(|| {
        let network = Network::new()?;
        anyhow::Ok((OpenStack::start_in(&network)?, network))
    });
    let rest = tokio::task::spawn_blocking(|| {
        let network = Network::new()?;
        anyhow::Ok((Ceph::start_in(&network)?, Nfs::start("3,4", &[])?, network))
    });
    let ((cloud, cloud_network), (ceph, nfs, ceph_network)) = (cloud.await??, rest.await??);
    Ok((ceph, nfs, cloud, ceph_network, cloud_network))
}

impl World {
    /// `None`: it cannot be run here, and why is logged as a skip.
    pub async fn start(test: &str) -> Result<Option<Self>> {
        if !(OpenStack::possible(test) && Nfs::possible(test) && Ceph::possible(test)) {
            return Ok(None);
        }
        let (ceph, nfs, cloud, ceph_network, cloud_network) = servers().await?;
        let server = cloud.server("node").await?;
        let scratch = Scratch::new()?;
        scratch.own_root("ext4", 8 << 30)?;
        let config = Self::config(&scratch, &ceph, &nfs, &cloud, &server)?;
        let parsed = Config::parse(&config).map_err(|e| anyhow::anyhow!("{e}"))?;
        let sockets: Vec<_> = parsed.backends.into_iter().map(|backend| backend.socket).collect();
        let driver = Process::start(scratch.path(), &config)?;
        let mut it = Self {
            driver,
            nodes: Vec::new(),
            sockets,
            scratch,
            ceph,
            nfs,
            cloud,
            ceph_network,
            cloud_network,
        };
        for name in BACKENDS {
            let mut node = it.ready(name).await?.node;
            let info = node.node_get_info(pb::NodeGetInfoRequest {}).await?.into_inner();
            it.nodes.push(info.node_id);
        }
        Ok(Some(it))
    }

    fn config(scratch: &Scratch, ceph: &Ceph, nfs: &Nfs, cloud: &OpenStack, server: &str) -> Result<String> {
        let dir = scratch.path();
        let (share, there) = nfs.share("neighbours")?;
        let patience = format!("    {PATIENCE}");
        let rbd = ceph.config("neighbours", dir, &patience)?.text;
        let daemon = rbd.lines().find(|line| line.starts_with("qemuStorageDaemon")).unwrap_or_default();
        let nfs = nfs.config(dir, &share, &format!(", localPath: {}", there.display()))?;
        let cinder = cloud.config("neighbours", server, dir, "", &patience);
        Ok(format!(
            "{daemon}\n{}{}{}{}",
            local_config(dir, ""),
            backends_of(&rbd)?,
            backends_of(&nfs)?.replace("callTimeoutSeconds: 5\n", PATIENCE),
            backends_of(&cinder)?
        ))
    }

    pub fn index(name: &str) -> usize {
        BACKENDS.iter().position(|it| *it == name).unwrap_or(0)
    }

    /// Clients on a connection of their own.
    pub fn clients(&self, name: &str) -> Result<Clients> {
        Clients::lazy(&self.sockets[Self::index(name)])
    }

    /// Clients, once Probe says ready.
    pub async fn ready(&self, name: &str) -> Result<Clients> {
        let ready = Clients::ready(&self.sockets[Self::index(name)]).await;
        ready.with_context(|| self.driver.log_tail())
    }

    pub fn capability(name: &str) -> pb::VolumeCapability {
        // Growing a mounted ext4 asks for a capability that this process may lack.
        ask::mount(if name == "nfs" { "" } else { "xfs" })
    }

    pub fn create_request(name: &str, volume: &str) -> pb::CreateVolumeRequest {
        ask::create(volume, SIZE, Self::capability(name))
    }

    /// A path below kubelet's directory, which is made.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join("kubelet").join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    fn root(&self) -> String {
        self.scratch.path().join("volumes").display().to_string()
    }

    fn each(&self, order: &str, of: &str) -> Result<()> {
        match of {
            "rbd" => CEPH.iter().try_for_each(|it| self.ceph.tell(&order.replace('_', it))),
            _ => CLOUD.iter().try_for_each(|it| self.cloud.tell(&order.replace('_', it))),
        }
    }

    /// Does harm to a backend's server.
    pub fn harm(&self, name: &str, harm: Harm) -> Result<()> {
        match (name, harm) {
            ("local", _) => run(&["fsfreeze", "-f", &self.root()]).map(drop),
            ("nfs", Harm::Stopped) => self.nfs.tell("signal STOP"),
            ("nfs", Harm::CutOff) => self.nfs.tell("cut"),
            ("nfs", Harm::Killed) => self.nfs.tell("signal KILL"),
            ("rbd", Harm::CutOff) => self.ceph_network.cut(),
            (_, Harm::CutOff) => self.cloud_network.cut(),
            (_, Harm::Stopped) => self.each("signal _ STOP", name),
            (_, Harm::Killed) => self.each("signal _ KILL", name),
        }
    }

    /// Ends it.
    pub fn heal(&self, name: &str, harm: Harm) -> Result<()> {
        match (name, harm) {
            ("local", _) => run(&["fsfreeze", "-u", &self.root()]).map(drop),
            ("nfs", Harm::Stopped) => self.nfs.tell("signal CONT"),
            ("nfs", Harm::CutOff) => self.nfs.tell("mend"),
            ("nfs", Harm::Killed) => self.nfs.tell("start"),
            ("rbd", Harm::CutOff) => self.ceph_network.mend(),
            (_, Harm::CutOff) => self.cloud_network.mend(),
            (_, Harm::Stopped) => self.each("signal _ CONT", name),
            (_, Harm::Killed) => self.each("start _", name),
        }
    }
}

/// What is done to a server.
#[derive(Debug, Clone, Copy)]
pub enum Harm {
    /// SIGSTOP of all its processes; a file system is frozen.
    Stopped,
    /// No packet gets through, in either direction.
    CutOff,
    /// SIGKILL of all its processes.
    Killed,
}

impl Drop for World {
    fn drop(&mut self) {
        // Nothing is unmounted or removed below a frozen file system.
        let _ = run(&["fsfreeze", "-u", &self.root()]);
    }
}
