//! `volumectl` and a driver of the local backend.

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::drivers::{Process, binary, local_config};
use e2e::scratch::Scratch;
use serde_json::Value;

/// A driver of the local backend, and a directory that is empty at the end.
pub struct Bench {
    pub driver: Process,
    pub scratch: Scratch,
}

impl Bench {
    pub async fn new(test: &str) -> Result<Option<Self>> {
        if !e2e::is_root(test) {
            return Ok(None);
        }
        let scratch = Scratch::new()?;
        let mut driver = Process::start(scratch.path(), &local_config(scratch.path(), ""))?;
        driver.clients().await?;
        Ok(Some(Self { driver, scratch }))
    }

    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("volumectl")?);
        command.current_dir(self.scratch.path()).env("CSI_ENDPOINT", &self.driver.socket).args(args);
        Ok(command)
    }

    pub fn run(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args)?.output()?)
    }

    /// Runs it in the background, without its output.
    pub fn spawn(&self, args: &[&str]) -> Result<Child> {
        Ok(self.command(args)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    }

    /// Runs it with a standard input.
    pub fn piped(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(args)?;
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn()?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// Runs it; it must fail with a code. What it says.
    pub fn fails(&self, args: &[&str], code: i32) -> Result<String> {
        let output = self.run(args)?;
        let words = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(code), "{args:?}: {}: {words}", output.status);
        Ok(words)
    }

    /// Runs it; it must succeed. Its standard output.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{args:?}: {words}; driver: {}", self.driver.log_tail());
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())?)?)
    }

    pub fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// Nothing of a test is left: no volume, snapshot, mount or device.
    pub fn nothing_left(&self) -> Result<()> {
        ensure!(self.json(&["csi", "list"])? == Value::Array(Vec::new()));
        ensure!(self.json(&["csi", "snapshot", "list"])? == Value::Array(Vec::new()));
        ensure!(self.scratch.mounts().is_empty(), "{:?}", self.scratch.mounts());
        ensure!(self.scratch.loops().is_empty(), "{:?}", self.scratch.loops());
        Ok(())
    }
}
