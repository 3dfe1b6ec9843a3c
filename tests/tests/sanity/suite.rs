//! One run of csi-sanity: the driver's processes, the program, what it said, and what was left.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::drivers::Process;
use e2e::kubernetes::Api;
use e2e::requests::MIB;
use e2e::scratch::Scratch;

/// The longest that a run may take, in seconds. A service that hangs must not hang the tests.
const LIMIT: &str = "1500";

/// What is run.
pub struct Suite {
    scratch: Scratch,
    config: String,
    parameters: String,
    mutable: String,
    block: bool,
    split: bool,
    asks_nodes: bool,
    size: i64,
}

impl Suite {
    /// A driver by its configuration, with the YAML of a StorageClass's and a VolumeAttributesClass's parameters.
    pub fn new(scratch: Scratch, config: String, parameters: &str, mutable: &str) -> Self {
        let (parameters, mutable) = (parameters.to_owned(), mutable.to_owned());
        Self {
            scratch,
            config,
            parameters,
            mutable,
            block: false,
            split: false,
            asks_nodes: false,
            size: 64 * MIB,
        }
    }

    /// Volumes are raw block devices.
    pub fn block(self) -> Self {
        Self { block: true, ..self }
    }

    /// Controller and node are two processes, as in a cluster.
    pub fn two_processes(self) -> Self {
        Self { split: true, ..self }
    }

    /// The backend asks Kubernetes whether a node exists.
    pub fn asks_nodes(self) -> Self {
        Self { asks_nodes: true, ..self }
    }

    /// The size of volumes in bytes; they grow to twice that.
    pub fn sizes(self, size: i64) -> Self {
        Self { size, ..self }
    }

    /// Runs the suite. A failed spec, and anything that is left then, is an error.
    pub async fn run(mut self, name: &str) -> Result<()> {
        let mut nodes = None;
        if self.asks_nodes {
            let api = Api::start(self.scratch.path(), "node-1").await?;
            self.config.insert_str(0, &api.config());
            nodes = Some(api);
        }
        let mut drivers = self.start()?;
        let mut clients = Vec::new();
        for driver in &mut drivers {
            clients.push(driver.clients().await?);
        }
        let sockets: Vec<PathBuf> = drivers.iter().map(|driver| driver.socket.clone()).collect();
        let ended = self.sanity(&sockets)?;
        println!("{name}: {}", ended.summary);
        let left = self.left(&clients[0]).await;
        drop(nodes);
        for driver in &mut drivers {
            driver.terminate()?;
        }
        let log = || drivers.iter().map(Process::log_tail).collect::<Vec<_>>().join("\n");
        ensure!(
            ended.passed,
            "{name}: {}\n{}\nthe driver's log ends:\n{}",
            ended.summary,
            ended.failures,
            log()
        );
        let mut left = left?;
        left.extend(self.scratch.mounts().iter().map(|mount| format!("the mount {}", mount.display())));
        left.extend(
            self.scratch.loops().iter().map(|(device, file)| format!("{} of {file}", device.display())),
        );
        ensure!(left.is_empty(), "{name} left: {}", left.join(", "));
        Ok(())
    }

    /// The node's process last; its socket and state are its own.
    fn start(&self) -> Result<Vec<Process>> {
        let dir = self.scratch.path();
        if !self.split {
            return Ok(vec![Process::start(dir, &self.config)?]);
        }
        let own = dir.join("node");
        fs::create_dir(&own)?;
        let of_node =
            |key: &str| (format!("{key}: {}/", dir.display()), format!("{key}: {}/", own.display()));
        let mut config = self.config.clone();
        for (from, to) in ["socketDir", "stateDir"].map(of_node) {
            config = config.replace(&from, &to);
        }
        Ok(vec![
            Process::start_as("controller", dir, &self.config)?,
            Process::start_as("node", &own, &config)?,
        ])
    }

    fn sanity(&self, sockets: &[PathBuf]) -> Result<Ended> {
        let program =
            std::env::var_os("CSI_SANITY").context("CSI_SANITY names no csi-sanity; see scripts/sanity")?;
        let dir = self.scratch.path();
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).map(|()| path.display().to_string())
        };
        let kubelet = dir.join("kubelet");
        fs::create_dir_all(&kubelet)?;
        let socket = |i: usize| format!("unix://{}", sockets[i].display());
        let mut arguments = vec![
            format!("--csi.endpoint={}", socket(sockets.len() - 1)),
            format!("--csi.controllerendpoint={}", socket(0)),
            format!("--csi.mountdir={}/mount", kubelet.display()),
            format!("--csi.stagingdir={}/staging", kubelet.display()),
            format!("--csi.testvolumesize={}", self.size),
            format!("--csi.testvolumeexpandsize={}", self.size * 2),
            format!("--csi.testvolumeaccesstype={}", if self.block { "block" } else { "mount" }),
            format!("--csi.testvolumemutableparameters={}", file("mutable.yaml", &self.mutable)?),
            "--csi.testnodevolumeattachlimit".to_owned(),
            "--ginkgo.no-color".to_owned(),
        ];
        if !self.parameters.is_empty() {
            arguments
                .push(format!("--csi.testvolumeparameters={}", file("parameters.yaml", &self.parameters)?));
        }
        let output =
            Command::new("timeout").args(["-k", "10", LIMIT]).arg(program).args(arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Ended::read(&text, output.status.success()))
    }

    /// What the backend still has.
    async fn left(&self, controller: &Clients) -> Result<Vec<String>> {
        let mut c = controller.controller.clone();
        let volumes = c.list_volumes(pb::ListVolumesRequest::default()).await?.into_inner().entries;
        let volumes = volumes.into_iter().filter_map(|e| Some(format!("the volume {}", e.volume?.volume_id)));
        let snapshots = c.list_snapshots(pb::ListSnapshotsRequest::default()).await?.into_inner().entries;
        let snapshots =
            snapshots.into_iter().filter_map(|e| Some(format!("the snapshot {}", e.snapshot?.snapshot_id)));
        Ok(volumes.chain(snapshots).collect())
    }
}

/// What csi-sanity said.
struct Ended {
    passed: bool,
    summary: String,
    failures: String,
}

impl Ended {
    fn read(text: &str, success: bool) -> Self {
        let lines_with = |words: &str| text.lines().filter(|l| l.contains(words)).collect::<Vec<_>>();
        let ran = lines_with("Specs in").last().map(|l| l.trim().to_owned());
        let counts = lines_with(" Passed").last().map(|l| l.trim().to_owned());
        let whole = ran.is_some() && counts.is_some();
        let end = || {
            text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let failures = lines_with("[FAIL]");
        Self {
            passed: success && whole,
            summary: [ran, counts].into_iter().flatten().collect::<Vec<_>>().join(" "),
            failures: if failures.is_empty() { end() } else { Self::told(text, &failures) },
        }
    }

    /// The failed specs, and what was expected where it failed first.
    fn told(text: &str, failures: &[&str]) -> String {
        let first = text.find("[FAILED]").map_or("", |at| &text[at..]);
        let first: Vec<_> = first.lines().take(12).collect();
        let mut names: Vec<_> = failures.iter().map(|l| l.trim()).collect();
        names.sort_unstable();
        names.dedup();
        format!("{}\n{}", names.join("\n"), first.join("\n"))
    }
}
