//! What a test in a guest asks of the machine below it: see `tests/servers/kernel/stage.py`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// The machine's address as guests see it; servers have to listen there.
pub const MACHINE: &str = "10.77.0.1";

/// Whether this process runs in a guest.
pub fn is_guest() -> bool {
    std::env::var_os("GUEST_CONTROL").is_some()
}

/// The address that servers listen on.
pub fn address() -> &'static str {
    if is_guest() { MACHINE } else { "127.0.0.1" }
}

/// Where servers have their directories: in a guest the one that it shares with the machine.
pub fn server_dir() -> PathBuf {
    std::env::var_os("GUEST_SHARE").map_or_else(std::env::temp_dir, PathBuf::from)
}

/// A request to the machine, and its answer.
pub fn ask(request: &Value) -> Result<Value> {
    let address = std::env::var("GUEST_CONTROL").context("this is no guest")?;
    let mut stream = TcpStream::connect(&address).with_context(|| format!("connecting to {address}"))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Value = serde_json::from_str(&line).with_context(|| format!("the answer to {request}"))?;
    match answer["error"].as_str() {
        Some(error) => bail!("{request}: {error}"),
        None => Ok(answer),
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; -1: it was killed.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// Runs a program on the machine that has the servers: from a guest, or here.
pub fn run(argv: &[&str], env: &[(&str, &str)]) -> Result<Ended> {
    if is_guest() {
        let env: serde_json::Map<_, _> = env.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let answer = ask(&json!({"do": "run", "argv": argv, "env": env}))?;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let code = answer["code"].as_i64().and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
        return Ok(Ended { code, out: text("out"), err: text("err") });
    }
    let (program, arguments) = argv.split_first().context("no program")?;
    let output = Command::new(program)
        .args(arguments)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    })
}

/// A second guest, with a shell; its power is cut when this is dropped.
pub struct Second(());

impl Second {
    /// Boots it.
    pub fn boot() -> Result<Self> {
        ask(&json!({"do": "boot"})).map(|_| Self(()))
    }

    /// Runs a line of shell in it. What it prints, if it succeeds.
    pub fn shell(&self, line: &str) -> Result<String> {
        let answer = ask(&json!({"do": "shell", "line": line}))?;
        let text = answer["out"].as_str().unwrap_or_default();
        if answer["code"] != 0 {
            bail!("{line}: exit code {}: {text}", answer["code"]);
        }
        Ok(text.to_owned())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = ask(&json!({"do": "kill"}));
    }
}

/// A disk of the guest; it is unplugged when this is dropped.
pub struct Disk {
    id: String,
}

impl Disk {
    /// Plugs an empty one, as Nova has QEMU do it. `bus`: `virtio` or `scsi`; `size` in bytes.
    pub fn plug(id: &str, serial: &str, bus: &str, size: u64) -> Result<Self> {
        ask(&json!({"do": "plug", "id": id, "serial": serial, "bus": bus, "size": size}))?;
        Ok(Self { id: id.to_owned() })
    }

    /// Plugs one whose content is a file of the shared directory.
    pub fn with_file(id: &str, bus: &str, file: &Path) -> Result<Self> {
        ask(&json!({"do": "plug", "id": id, "serial": id, "bus": bus, "file": file.display().to_string()}))?;
        Ok(Self { id: id.to_owned() })
    }

    /// Makes it larger, in bytes.
    pub fn grow(&self, size: u64) -> Result<()> {
        ask(&json!({"do": "grow", "id": self.id, "size": size})).map(drop)
    }

    /// Takes it away and waits until the kernel has let it go.
    pub fn unplug(self) -> Result<()> {
        ask(&json!({"do": "unplug", "id": self.id})).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = ask(&json!({"do": "unplug", "id": self.id}));
    }
}
