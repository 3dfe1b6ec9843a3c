//! The driver's process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use csi_proto::v1 as pb;

use super::Rows;
use crate::client::Csi;

/// How long it may take to become ready.
const START: Duration = Duration::from_secs(10);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(120);

pub(super) struct Driver {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Driver {
    /// Writes a configuration, starts the program and waits for its Probe.
    pub async fn start(program: Option<&Path>, dir: &Path, rows: &mut Rows) -> Result<Self> {
        let program = find(program)?;
        let (config, log, socket) = (dir.join("driver.yaml"), dir.join("driver.log"), dir.join("csi.sock"));
        let base = dir.display();
        let text = format!(
            "nodeId: demo-node\nclusterId: demo\nstateDir: {base}/state\nkubeletDir: {base}/kubelet\nbackends:\n  \
             - type: local\n    socket: {base}/csi.sock\n    roots: {{default: {base}/volumes}}\n"
        );
        fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
        let begun = Instant::now();
        let child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut driver = Self { child, socket, log };
        driver.ready(begun).await?;
        rows.add("start the driver", begun.elapsed(), format!("{} answers Probe", name(&program)));
        Ok(driver)
    }

    async fn ready(&mut self, begun: Instant) -> Result<()> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("csi-driver ended at once ({status}): {}", self.log_tail());
            }
            if let Ok(csi) = self.connect().await
                && let Ok(answer) = csi.identity.clone().probe(csi.request(pb::ProbeRequest {})).await
                && answer.get_ref().ready.unwrap_or(true)
            {
                return Ok(());
            }
            if begun.elapsed() > START {
                bail!("csi-driver is not ready after {} s: {}", START.as_secs(), self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn connect(&self) -> Result<Csi> {
        Csi::connect(&self.socket.display().to_string(), CALL).await
    }

    /// SIGTERM, and its exit code must be 0.
    pub fn stop(&mut self, rows: &mut Rows) -> Result<()> {
        let begun = Instant::now();
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )?;
        let status = self.child.wait()?;
        rows.add("stop the driver", begun.elapsed(), format!("SIGTERM, {status}"));
        if !status.success() {
            bail!("csi-driver did not stop cleanly: {status}");
        }
        Ok(())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(program: &Path) -> String {
    program.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn find(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let beside = std::env::current_exe()?.with_file_name("csi-driver");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("csi-driver"));
    std::iter::once(beside).chain(on_path).find(|p| p.is_file()).context(
        "csi-driver is neither beside volumectl nor on PATH; build it (cargo build --release) or give --driver",
    )
}
