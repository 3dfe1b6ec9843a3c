//! The driver as a process of its own, as optimised as it is shipped.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::scratch::Scratch;

/// The driver as an optimised process, killed when this is dropped.
pub struct Driver {
    child: Child,
    socket: PathBuf,
}

impl Driver {
    /// Starts it with a configuration whose sockets are in `scratch`; `kind` is its backend's.
    pub fn start(scratch: &Scratch, config: &str, kind: &str) -> Result<Self> {
        let file = scratch.path().join("driver.yaml");
        std::fs::write(&file, config)?;
        let child = Command::new(program()?)
            .arg("--config")
            .arg(&file)
            .args(["--log", "warn"])
            .stdin(Stdio::null())
            .spawn()
            .context("starting csi-driver")?;
        Ok(Self { child, socket: scratch.path().join(format!("sockets/{kind}.csi.volumectl.io.sock")) })
    }

    /// Clients of it, once it answers.
    pub async fn clients(&self) -> Result<Clients> {
        loop {
            // Connecting again and again costs less than a sleep would hide.
            if let Ok(clients) = Clients::lazy(&self.socket)
                && clients.identity.clone().probe(pb::ProbeRequest {}).await.is_ok()
            {
                return Ok(clients);
            }
        }
    }

    /// Resident memory in MiB (proc_pid_status(5), VmRSS).
    pub fn memory(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The optimised program: benches are built beside it.
fn program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let path = here.ancestors().nth(2).context("no target directory")?.join("csi-driver");
    ensure!(
        path.exists(),
        "{} is not there; run `cargo build --release -p csi-driver` first",
        path.display()
    );
    Ok(path)
}
