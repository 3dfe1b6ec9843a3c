//! A script of `tests/servers` that runs a server: it prints a line when that is ready, then reads commands, and ends
//! when its standard input does, so also when the test is killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::control;
use crate::network::Network;

/// A running script.
pub struct Script {
    /// The server's directory, which the script removes at its end.
    pub dir: PathBuf,
    process: Process,
}

enum Process {
    Here {
        lines: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
        _child: Child,
    },
    /// On the machine below this guest, with its number there.
    Below(Value),
}

impl Script {
    /// Starts `tests/servers/<name>/run`; `args` is given the server's new directory. Returns what its line says after
    /// `ready`.
    pub fn start(name: &str, args: impl FnOnce(&Path) -> Vec<String>) -> Result<(Self, String)> {
        Self::start_in(None, name, args)
    }

    /// The same in a network name space of its own.
    pub fn start_in(
        network: Option<&Network>,
        name: &str,
        args: impl FnOnce(&Path) -> Vec<String>,
    ) -> Result<(Self, String)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = control::server_dir().join(format!("volumectl-{name}-{}-{number}", std::process::id()));
        let args = args(&dir);
        let (process, line) = if control::is_guest() {
            let answer = control::ask(&json!({"do": "start", "name": name, "args": args}))?;
            (Process::Below(answer["id"].clone()), answer["ready"].as_str().unwrap_or_default().to_owned())
        } else {
            Self::start_here(network, name, &args)?
        };
        let ready = line.trim().strip_prefix("ready").map(|rest| rest.trim().to_owned());
        let ready = ready.with_context(|| format!("the {name} server did not start: {line}"))?;
        Ok((Self { dir, process }, ready))
    }

    fn start_here(network: Option<&Network>, name: &str, args: &[String]) -> Result<(Process, String)> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers").join(name).join("run");
        let mut command = network.map_or_else(|| Command::new(&script), |it| it.command(&script));
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", script.display()))?;
        let input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok((Process::Here { lines: Mutex::new((input, output)), _child: child }, line))
    }

    /// A command to the script.
    pub fn tell(&self, command: &str) -> Result<()> {
        let mut answer = String::new();
        match &self.process {
            Process::Here { lines, .. } => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                writeln!(lines.0, "{command}")?;
                lines.1.read_line(&mut answer)?;
            }
            Process::Below(id) => {
                let told = control::ask(&json!({"do": "tell", "id": id, "line": command}))?;
                told["answer"].as_str().unwrap_or_default().clone_into(&mut answer);
            }
        }
        ensure!(answer.trim() == "ok", "{command}: {answer}");
        Ok(())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Process::Below(id) = &self.process {
            let _ = control::ask(&json!({"do": "stop", "id": id}));
        }
    }
}

/// Whether root runs this, and all programs are there; if not, the reason is logged as a skip of `test`. Each program
/// comes with its Debian package.
pub fn possible(test: &str, programs: &[(&str, &str)]) -> bool {
    let missing = |(program, package): &(&str, &str)| {
        let found = crate::has_program(test, program);
        if !found {
            eprintln!("{program} is in the Debian package {package}");
        }
        !found
    };
    crate::is_root(test) && !programs.iter().any(missing)
}
