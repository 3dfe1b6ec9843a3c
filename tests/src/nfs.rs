//! A real NFS server (nfs-ganesha) for tests, started by `tests/servers/nfs/run` in a network namespace of its own. It
//! ends when its owner does, however that ends, for the script watches its standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, ensure};

/// A running server.
pub struct Nfs {
    dir: PathBuf,
    /// Its address.
    pub address: String,
    lines: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _child: Child,
}

/// What this needs and its Debian package.
const PROGRAMS: [(&str, &str); 4] = [
    ("ganesha.nfsd", "nfs-ganesha and nfs-ganesha-vfs"),
    ("rpcbind", "rpcbind"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
];

impl Nfs {
    /// The server of this process, which speaks versions 3 and 4. `None`, with the reason logged as a skip of `test`: it
    /// cannot be run here.
    pub fn shared(test: &str) -> Result<Option<&'static Self>> {
        static SHARED: OnceLock<std::result::Result<Nfs, String>> = OnceLock::new();
        if !Self::possible(test) {
            return Ok(None);
        }
        let started = SHARED.get_or_init(|| Self::start("3,4", &[]).map_err(|e| format!("{e:#}")));
        started.as_ref().map(Some).map_err(|e| anyhow::anyhow!("starting an NFS server: {e}"))
    }

    /// Whether a server can be run here; if not, the reason is logged as a skip of `test`.
    pub fn possible(test: &str) -> bool {
        let missing = |(program, package): &(&str, &str)| {
            let found = crate::has_program(test, program);
            if !found {
                eprintln!("{program} is in the Debian package {package}");
            }
            !found
        };
        crate::is_root(test) && !PROGRAMS.iter().any(missing)
    }

    /// Starts a server for `3,4` or `4`; `more` are the script's further arguments.
    pub fn start(versions: &str, more: &[&str]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("volumectl-nfs-{}-{number}", std::process::id()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/nfs/run");
        let mut child = Command::new(&script)
            .arg(&dir)
            .arg(versions)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", script.display()))?;
        let input = child.stdin.take().context("no input")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let address = line.trim().strip_prefix("ready ").map(str::to_owned);
        let address = address.with_context(|| format!("the server did not start: {line}"))?;
        Ok(Self { dir, address, lines: Mutex::new((input, output)), _child: child })
    }

    /// What it exports, as a directory of this machine.
    pub fn export(&self) -> PathBuf {
        self.dir.join("export")
    }

    /// A command to the script: `signal STOP`, `start`, `access RO`, `cut`, `mend`.
    pub fn tell(&self, command: &str) -> Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(lines.0, "{command}")?;
        let mut answer = String::new();
        lines.1.read_line(&mut answer)?;
        ensure!(answer.trim() == "ok", "{command}: {answer}");
        Ok(())
    }

    /// A directory of its own below the export, as the share of one test: its path for clients, and on this machine.
    pub fn share(&self, test: &str) -> Result<(String, PathBuf)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let safe: String = test.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let start = safe.len().saturating_sub(40);
        let name = format!("s{}{}", NEXT.fetch_add(1, Ordering::Relaxed), &safe[start..]);
        let dir = self.export().join(&name);
        std::fs::create_dir(&dir)?;
        Ok((format!("/export/{name}"), dir))
    }

    /// A configuration of the nfs backend with one share, whose files are all below `dir`. Nodes bind the share's
    /// directory on this machine, whose kernel may have no NFS. `more` is added to the share's keys, such as
    /// `nfsVersion: "3"`, each with a comma before it.
    pub fn config(&self, dir: &Path, share: &str, more: &str) -> Result<String> {
        let (d, address) = (dir.display(), &self.address);
        let helper = crate::drivers::binary("csi-driver")?;
        Ok(format!(
            "nodeId: node-1\nclusterId: test\nsocketDir: {d}/sockets\nstateDir: {d}/state\nkubeletDir: {d}/kubelet\n\
             shutdownGraceSeconds: 5\nhelperProgram: {}\nbackends:\n  - type: nfs\n    sweepSeconds: 2\n    \
             callTimeoutSeconds: 5\n    shares: [{{name: main, server: \"{address}\", share: {share}{more}}}]\n",
            helper.display()
        ))
    }
}
