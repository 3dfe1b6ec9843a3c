//! The servers, and the driver with all four backends as a process that can be killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use csi_driver::config::Config;
use e2e::ceph::Ceph;
use e2e::clients::Clients;
use e2e::control;
use e2e::drivers::{Process, backends_of, local_config};
use e2e::kubernetes::Api;
use e2e::nfs::Nfs;
use e2e::openstack::OpenStack;
use e2e::scratch::Scratch;
use provisioners::cinder::Service;
use serde_json::json;

use crate::foreign::Foreign;

/// In the order of the configuration.
pub const BACKENDS: [&str; 4] = ["local", "rbd", "nfs", "cinder"];
/// Whose the volumes are.
pub const OWNER: &str = "soak";
/// Storage daemons of the Ceph cluster.
pub const OSDS: u32 = 2;

pub struct World {
    pub ceph: Ceph,
    pub nfs: Nfs,
    /// The NFS share, as a directory of the machine below.
    pub share: PathBuf,
    pub cloud: &'static OpenStack,
    pub scratch: Scratch,
    /// Set when a pod has failed.
    pub stopped: AtomicBool,
    /// Held by requests to Cinder; its restart waits for them, for neither it nor Nova goes on with what they were at.
    pub cinder: tokio::sync::RwLock<()>,
    /// Held by calls that have been interrupted for long: their driver and its children live until they are done.
    pub lives: tokio::sync::RwLock<()>,
    /// Held by whoever harms or heals servers.
    pub servers: Mutex<()>,
    /// What nobody may touch.
    pub foreign: Foreign,
    config: String,
    sockets: Vec<PathBuf>,
    driver: Mutex<Process>,
    /// A second controller beside the driver, as a rolling update and a lost leader election make them.
    second: Mutex<Process>,
    _nodes: Api,
}

/// Which backends the second controller has: a local volume is its own node's.
pub const SHARED: [&str; 3] = ["rbd", "nfs", "cinder"];

/// Where the second controller has its files.
fn second_dir(scratch: &Scratch) -> PathBuf {
    scratch.path().join("second")
}

impl World {
    /// `None`: it cannot be here, and why is logged as a skip.
    pub async fn start() -> Result<Option<Self>> {
        let Some(cloud) = OpenStack::shared("soak")? else { return Ok(None) };
        if !Nfs::possible("soak") {
            return Ok(None);
        }
        let (ceph, nfs) =
            tokio::task::spawn_blocking(|| anyhow::Ok((Ceph::start(OSDS)?, Nfs::start("3,4", &[])?)))
                .await??;
        // Ceph fences a killed client whose lock it takes away; not for an hour here, so that the end can be seen.
        ceph.run("ceph", &["config", "set", "mon", "mon_osd_blocklist_default_expire", "30"])?;
        let scratch = Scratch::new()?;
        scratch.own_root("ext4", 3 << 30)?;
        let nodes = Api::start(scratch.path(), "node-1").await?;
        let (share, there) = nfs.share("soak")?;
        let dir = scratch.path();
        let rbd = ceph.config("soak", dir, "    callTimeoutSeconds: 10\n")?;
        let server = cloud.node()?;
        let cinder = cloud.config(OWNER, &server, dir, "", "");
        let shared = backends_of(&rbd.text)?.to_owned()
            + backends_of(&nfs.config(dir, &share, "")?)?
            + backends_of(&cinder)?;
        let config = nodes.config() + &local_config(dir, "") + &shared;
        let parsed = Config::parse(&config).map_err(|e| anyhow::anyhow!("{e}"))?;
        let sockets = parsed.backends.into_iter().map(|backend| backend.socket).collect();
        let foreign = Foreign::plant(&ceph, &format!("rbd/{}", rbd.namespace), &there, dir)?;
        let driver = Mutex::new(Process::start(dir, &config)?);
        let beside = second_dir(&scratch);
        std::fs::create_dir(&beside)?;
        let (head, _) = local_config(&beside, "")
            .split_once("backends:\n")
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .context("no backends")?;
        let second = nodes.config() + &head + "backends:\n" + &shared;
        let second = Mutex::new(Process::start_as("controller", &beside, &second)?);
        let it = Self {
            ceph,
            nfs,
            share: there,
            cloud,
            scratch,
            stopped: AtomicBool::new(false),
            cinder: tokio::sync::RwLock::new(()),
            lives: tokio::sync::RwLock::new(()),
            servers: Mutex::new(()),
            foreign,
            config,
            sockets,
            driver,
            second,
            _nodes: nodes,
        };
        for backend in BACKENDS {
            Clients::ready(&it.socket(backend)).await.with_context(|| it.log_tail())?;
        }
        Ok(Some(it))
    }

    pub fn socket(&self, backend: &str) -> PathBuf {
        let index = BACKENDS.iter().position(|name| *name == backend).unwrap_or(0);
        self.sockets[index].clone()
    }

    /// The second controller's socket for a backend that it has, too.
    pub fn second_socket(&self, backend: &str) -> Option<PathBuf> {
        let socket = self.socket(backend);
        let name = socket.file_name()?;
        SHARED.contains(&backend).then(|| second_dir(&self.scratch).join("sockets").join(name))
    }

    fn driver(&self) -> MutexGuard<'_, Process> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pid(&self) -> u32 {
        self.driver().pid()
    }

    pub fn log_tail(&self) -> String {
        self.driver().log_tail()
    }

    /// Prints what the kernel said last and who is fenced, before later troubles cover it; the driver's whole log is kept
    /// where the scratch is (`KEEP_SCRATCH`).
    pub fn show_trouble(&self) {
        let kernel =
            Command::new("dmesg").output().map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
        let kernel = kernel.unwrap_or_default();
        let lines: Vec<_> = kernel.lines().filter(|line| !line.contains("socket ")).collect();
        println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        let fences = self.ceph.run("ceph", &["--connect-timeout", "5", "osd", "blocklist", "ls"]);
        println!("fences: {fences:?}");
        let log = self.scratch.path().join("driver.log");
        if let Err(error) = std::fs::copy(log, control::server_dir().join("driver.log")) {
            println!("the driver's log is not kept: {error}");
        }
    }

    /// SIGKILL, and a new process.
    pub fn restart(&self) -> Result<()> {
        let mut driver = self.driver();
        driver.kill()?;
        *driver = Process::start(self.scratch.path(), &self.config)?;
        Ok(())
    }

    /// A successor while the driver's last calls end.
    pub fn hand_over(&self) -> Result<()> {
        self.driver().hand_over(self.scratch.path(), &self.config)
    }

    /// SIGTERM to both; the exit codes.
    pub fn terminate(&self) -> Result<[Option<i32>; 2]> {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        Ok([self.driver().terminate()?, second.terminate()?])
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The file that fills a root or a share.
    pub fn filling(root: &Path) -> String {
        root.join(".filling").display().to_string()
    }

    /// Waits until Cinder and Nova have ended what drivers that were killed have asked for; not for ever.
    pub async fn cinder_is_at_rest(&self) -> Result<bool> {
        for _ in 0..100 {
            let mut all = self.cloud.owned("volumes", OWNER).await?;
            all.extend(self.cloud.owned("snapshots", OWNER).await?);
            let rests = |it: &serde_json::Value| it["status"] == "available" || it["status"] == "in-use";
            tokio::time::sleep(Duration::from_millis(300)).await;
            if all.iter().all(rests) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Does what the driver tells an operator to do about a device that it does not format.
    pub async fn give_up(&self, command: &str) -> Result<()> {
        match command.split(' ').collect::<Vec<_>>().as_slice() {
            ["rbd", arguments @ ..] => self.ceph.run("rbd", arguments).map(drop),
            ["echo", code, ">", path] => Ok(std::fs::write(path, code)?),
            ["openstack", "volume", "set", "--property", property, id] => {
                let (key, value) = property.split_once('=').context("no value")?;
                let body = json!({"metadata": {key: value}});
                let cloud = self.cloud.bare("demo");
                cloud.ask(Service::Volume, &format!("volumes/{id}/metadata"), Some(body)).await?;
                Ok(())
            }
            _ => bail!("not understood"),
        }
    }

    /// All servers well again.
    pub async fn heal(self: &Arc<Self>) -> Result<()> {
        self.cloud.set_quota(crate::faults::NO_QUOTA).await?;
        self.ceph.run("ceph", &["osd", "pool", "set-quota", "rbd", "max_objects", "0"])?;
        control::run(&["rm", "-f", &Self::filling(&self.share)], &[])?;
        let _ = std::fs::remove_file(Self::filling(&self.scratch.path().join("volumes")));
        self.forget_ghosts().await
    }

    /// Starts the storage daemons anew: see the crash test's function of this name.
    pub async fn forget_ghosts(self: &Arc<Self>) -> Result<()> {
        let it = self.clone();
        tokio::task::spawn_blocking(move || {
            let _alone = it.servers.lock().unwrap_or_else(PoisonError::into_inner);
            it.ceph.restart_osds(OSDS)
        })
        .await?
    }
}
