//! A real NFS server (nfs-ganesha) for tests, started by `tests/servers/nfs/run` in a network namespace of its own. It
//! ends when its owner does, however that ends, for the script watches its standard input.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::script::{Script, possible};

/// A running server.
pub struct Nfs {
    script: Script,
    /// Its address.
    pub address: String,
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
        possible(test, &PROGRAMS)
    }

    /// Starts a server for `3,4` or `4`; `more` are the script's further arguments.
    pub fn start(versions: &str, more: &[&str]) -> Result<Self> {
        let args = |dir: &Path| {
            let mut args = vec![dir.display().to_string(), versions.to_owned()];
            args.extend(more.iter().map(|it| (*it).to_owned()));
            args
        };
        let (script, address) = Script::start("nfs", args)?;
        Ok(Self { script, address })
    }

    /// What it exports, as a directory of this machine.
    pub fn export(&self) -> PathBuf {
        self.script.dir.join("export")
    }

    /// A command to the script: `signal STOP`, `start`, `access RO`, `cut`, `mend`.
    pub fn tell(&self, command: &str) -> Result<()> {
        self.script.tell(command)
    }

    /// A directory of its own below the export, as the share of one test: its path for clients, and on this machine.
    pub fn share(&self, test: &str) -> Result<(String, PathBuf)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let safe: String = test.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let start = safe.len().saturating_sub(40);
        let name = format!("s{}{}", NEXT.fetch_add(1, Ordering::Relaxed), &safe[start..]);
        let dir = self.export().join(&name);
        let made = crate::control::run(&["mkdir", &dir.display().to_string()], &[])?;
        anyhow::ensure!(made.code == 0, "{}", made.err);
        Ok((format!("/export/{name}"), dir))
    }

    /// The share's keys for one version, for [`Nfs::config`]: the controller speaks it, and in a guest, whose kernel mounts,
    /// the node does, too. The server has no lock manager for version 3.
    pub fn version(version: &str) -> String {
        let options = match version {
            _ if !crate::control::is_guest() => String::new(),
            "3" => ", mountOptions: [nfsvers=3, nolock]".to_owned(),
            _ => format!(", mountOptions: [nfsvers={version}]"),
        };
        format!(", nfsVersion: \"{version}\"{options}")
    }

    /// How long calls of a node are repeated: in a guest, whose kernel mounts, a request that was not answered is sent
    /// again after a minute only.
    pub fn patience() -> Duration {
        if crate::control::is_guest() { Duration::from_secs(180) } else { Duration::ZERO }
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
