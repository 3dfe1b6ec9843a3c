//! The driver under test: in this process, or as a process that can be killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use csi_driver::cli::Mode;
use csi_driver::config::Config;
use csi_driver::metrics::Metrics;
use csi_driver::registry;
use csi_driver::server::Server;
use tokio::sync::oneshot;

use crate::clients::Clients;

/// A configuration of the local backend whose files are all below `dir`; `more` is added to the backend's keys.
pub fn local_config(dir: &Path, more: &str) -> String {
    let dir = dir.display();
    // The driver may run in the test's process, which is not its own helper.
    let helper =
        binary("csi-driver").map(|path| format!("helperProgram: {}\n", path.display())).unwrap_or_default();
    format!(
        "nodeId: node-1\nclusterId: test\nsocketDir: {dir}/sockets\nstateDir: {dir}/state\nkubeletDir: {dir}/kubelet\n\
         shutdownGraceSeconds: 5\n{helper}backends:\n  - type: local\n    roots: {{default: {dir}/volumes}}\n{more}"
    )
}

/// The part of a configuration that is about its backends.
pub fn backends_of(config: &str) -> Result<&str> {
    config.split_once("backends:\n").map(|(_, rest)| rest).context("no backends")
}

/// The driver in this process, on its real socket.
pub struct InProcess {
    /// Its first backend's socket.
    pub socket: PathBuf,
    metrics: Metrics,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<Result<()>>>,
}

impl InProcess {
    /// Starts it with a configuration text.
    pub async fn start(config: &str) -> Result<Self> {
        let config = Config::parse(config).map_err(|e| anyhow::anyhow!("config{e}"))?;
        let metrics = Metrics::new();
        let drivers = registry::drivers(&config, Mode::All, &metrics).map_err(|e| anyhow::anyhow!(e))?;
        let sockets = config.backends.iter().map(|b| b.socket.clone());
        let grace = Duration::from_secs(config.shutdown_grace_seconds);
        let drivers = drivers.into_iter().zip(sockets).collect();
        let server = Server::bind(drivers, None, metrics.clone(), grace).await?;
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async move {
            let _ = stopped.await;
        }));
        let socket = config.backends[0].socket.clone();
        Ok(Self { socket, metrics, stop: Some(stop), task: Some(task) })
    }

    /// Clients of it.
    pub async fn clients(&self) -> Result<Clients> {
        Clients::ready(&self.socket).await
    }

    /// The values that it shows of one metric, each with its labels.
    pub fn metric(&self, name: &str) -> Result<Vec<String>> {
        let text = self.metrics.encode()?;
        Ok(text.lines().filter(|line| line.starts_with(name)).map(str::to_owned).collect())
    }

    /// Stops it and waits for its end.
    pub async fn stop(mut self) -> Result<()> {
        drop(self.stop.take());
        match self.task.take() {
            Some(task) => task.await?,
            None => Ok(()),
        }
    }
}

/// The driver as a process of its own; killed on drop.
pub struct Process {
    child: Child,
    /// Its first backend's socket.
    pub socket: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts it with a configuration text that is written to `dir`, logs going to a file there.
    pub fn start(dir: &Path, config: &str) -> Result<Self> {
        Self::start_as("all", dir, config)
    }

    /// The same with a `--mode`.
    pub fn start_as(mode: &str, dir: &Path, config: &str) -> Result<Self> {
        let file = dir.join("driver.yaml");
        fs::write(&file, config)?;
        let socket = Config::load(&file)?.backends[0].socket.clone();
        let log = dir.join("driver.log");
        let out = fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let child = Command::new(binary("csi-driver")?)
            .args(["--mode".as_ref(), mode.as_ref(), "--config".as_ref(), file.as_os_str()])
            .args(["--log", "info,csi_driver=debug,provisioners=debug"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .context("starting csi-driver")?;
        Ok(Self { child, socket, log })
    }

    /// Clients of it, once it is ready.
    pub async fn clients(&mut self) -> Result<Clients> {
        match Clients::ready(&self.socket).await {
            Ok(clients) => Ok(clients),
            Err(error) => {
                bail!("{error}; driver: {:?}; its log ends: {}", self.child.try_wait()?, self.log_tail())
            }
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits until the kernel has buried it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; returns the exit code.
    pub fn terminate(&mut self) -> Result<Option<i32>> {
        self.ask_to_end()?;
        Ok(self.child.wait()?.code())
    }

    /// SIGTERM, without waiting.
    pub fn ask_to_end(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
    }

    /// SIGTERM, and at once a successor beside the one that lets its last calls end; as often as it gives way to that.
    pub fn hand_over(&mut self, dir: &Path, config: &str) -> Result<()> {
        self.ask_to_end()?;
        let mut next = Self::start(dir, config)?;
        loop {
            let ended = self.child.try_wait()?.is_some();
            if next.child.try_wait()?.is_some() {
                next = Self::start(dir, config)?;
            } else if ended {
                *self = next;
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A program of this workspace, built with the profile of the running test.
pub fn binary(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let dir = here.ancestors().nth(2).context("the test has no target directory")?;
    let path = dir.join(name);
    if !path.exists() {
        bail!(
            "{} is not there: build it first (cargo build --workspace), as `make test` does",
            path.display()
        );
    }
    Ok(path)
}
