//! A real Ceph cluster for tests: one a test process, started by `tests/servers/ceph/run` at the first use.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::control;
use crate::network::Network;
use crate::script::{Script, possible};

/// A running cluster.
pub struct Ceph {
    script: Script,
}

/// What this needs and its Debian package.
const PROGRAMS: [(&str, &str); 6] = [
    ("ceph-mon", "ceph-mon"),
    ("ceph-mgr", "ceph-mgr"),
    ("ceph-osd", "ceph-osd"),
    ("rbd", "ceph-common"),
    ("jq", "jq"),
    ("setsid", "util-linux"),
];

impl Ceph {
    /// The cluster of this process. `None`, with the reason logged as a skip of `test`: it cannot be run here.
    pub fn shared(test: &str) -> Result<Option<&'static Self>> {
        static SHARED: OnceLock<std::result::Result<Ceph, String>> = OnceLock::new();
        if !Self::possible(test) {
            return Ok(None);
        }
        // A guest has two cores of an emulator beside it.
        let osds = if control::is_guest() { 1 } else { 3 };
        let started = SHARED.get_or_init(|| Self::start(osds).map_err(|e| format!("{e:#}")));
        started.as_ref().map(Some).map_err(|e| anyhow::anyhow!("starting Ceph: {e}"))
    }

    /// A cluster of one OSD for one test, which harms it. `None` as for [`Ceph::shared`].
    pub async fn own(test: &str) -> Result<Option<Self>> {
        if !Self::possible(test) {
            return Ok(None);
        }
        tokio::task::spawn_blocking(|| Self::start(1)).await?.map(Some)
    }

    /// Starts a cluster of some OSDs on loopback, or where guests reach it.
    pub fn start(osds: u32) -> Result<Self> {
        Self::start_at(osds, control::address())
    }

    /// Starts a cluster of some OSDs on an address of this machine.
    pub fn start_at(osds: u32, address: &str) -> Result<Self> {
        Self::start_script(None, osds, address)
    }

    /// Starts a cluster of one OSD in a network name space.
    pub fn start_in(network: &Network) -> Result<Self> {
        Self::start_script(Some(network), 1, &network.there)
    }

    fn start_script(network: Option<&Network>, osds: u32, address: &str) -> Result<Self> {
        let args = |dir: &Path| vec![dir.display().to_string(), osds.to_string(), address.to_owned()];
        let (script, _) = Script::start_in(network, "ceph", args)?;
        Ok(Self { script })
    }

    /// Whether a cluster can be run here; if not, the reason is logged as a skip of `test`.
    pub fn possible(test: &str) -> bool {
        possible(test, &PROGRAMS)
    }

    /// Its ceph.conf, with the administrator's keyring.
    pub fn conf(&self) -> PathBuf {
        self.script.dir.join("ceph.conf")
    }

    /// The monitors' addresses.
    pub fn monitors(&self) -> Result<String> {
        let text = std::fs::read_to_string(self.conf())?;
        let line = text.lines().find_map(|line| line.strip_prefix("mon_host = "));
        Ok(line.context("no mon_host")?.to_owned())
    }

    /// A command to the script: `signal osd.0 STOP`, `start mon.a`, `healthy`.
    pub fn tell(&self, command: &str) -> Result<()> {
        self.script.tell(command)
    }

    /// Kills the first OSDs and starts them again, one after the other.
    pub fn restart_osds(&self, osds: u32) -> Result<()> {
        for osd in 0..osds {
            self.tell(&format!("signal osd.{osd} KILL"))?;
            self.tell(&format!("start osd.{osd}"))?;
            self.tell("healthy")?;
        }
        Ok(())
    }

    /// Runs `ceph` or `rbd` as the administrator; its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let conf = self.conf().display().to_string();
        let argv = [&["timeout", "60", program, "--conf", &conf], args].concat();
        let ended = control::run(&argv, &[])?;
        if ended.code != 0 {
            bail!("{program} {args:?}: exit code {}: {}", ended.code, ended.err);
        }
        Ok(ended.out)
    }

    /// Runs volumectl against the cluster; exit code, standard output and error.
    pub fn volumectl(&self, args: &[&str]) -> Result<(i32, String, String)> {
        self.volumectl_with(Path::new("/nonexistent"), args)
    }

    /// The same with a kubeconfig.
    pub fn volumectl_with(&self, kubeconfig: &Path, args: &[&str]) -> Result<(i32, String, String)> {
        let output = std::process::Command::new(crate::drivers::binary("volumectl")?)
            .args(args)
            .env("CEPH_CONF", self.conf())
            .env("KUBECONFIG", kubeconfig)
            .output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
    }

    /// `ceph ...` with the answer in JSON.
    pub fn ask(&self, args: &[&str]) -> Result<serde_json::Value> {
        let text = self.run("ceph", &[args, &["-f", "json"]].concat())?;
        // `osd blocklist ls` answers two lists, one after the other.
        let mut values = serde_json::Deserializer::from_str(&text).into_iter();
        values.next().context("no answer")?.with_context(|| format!("the answer to ceph {args:?}"))
    }

    /// Makes a pool for one test, of a name that no other has.
    pub fn pool(&self, test: &str) -> Result<String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let safe: String = test.chars().filter(char::is_ascii_alphanumeric).take(20).collect();
        let name = format!("t{}-{safe}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.run("ceph", &["osd", "pool", "create", &name, "8", "8"])?;
        self.run("ceph", &["osd", "pool", "application", "enable", &name, "rbd"])?;
        Ok(name)
    }

    /// Removes a pool with all that is in it.
    pub fn remove_pool(&self, name: &str) -> Result<()> {
        self.run("ceph", &["osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it"]).map(drop)
    }
}

/// qemu-storage-daemon as `scripts/install-deps` has unpacked it; `None`: the installed one is good.
pub fn storage_daemon() -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/qemu/qemu-storage-daemon");
    unpacked.canonicalize().ok()
}

/// A driver for one test: its configuration with a namespace of its own in the pool rbd, and its own cluster id.
pub struct RbdConfig {
    /// The RADOS namespace.
    pub namespace: String,
    /// The text.
    pub text: String,
}

impl Ceph {
    /// A configuration of the rbd backend for one test, whose files are all below `dir`; `more` is added to the
    /// backend's keys, indented by four.
    pub fn config(&self, test: &str, dir: &Path, more: &str) -> Result<RbdConfig> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let safe: String = test.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let start = safe.len().saturating_sub(24);
        let namespace = format!("n{}{}", NEXT.fetch_add(1, Ordering::Relaxed), &safe[start..]);
        self.run("rbd", &["namespace", "create", &format!("rbd/{namespace}")])?;
        let text = self.config_in(dir, "rbd", &namespace, &namespace, more);
        Ok(RbdConfig { namespace, text })
    }

    /// The same for a pool and namespace that exist; `owner` is the driver's cluster id.
    pub fn config_in(&self, dir: &Path, pool: &str, namespace: &str, owner: &str, more: &str) -> String {
        let (conf, d) = (self.conf(), dir.display());
        let daemon =
            storage_daemon().map(|p| format!("qemuStorageDaemon: {}\n", p.display())).unwrap_or_default();
        let mounter = if control::is_guest() { "" } else { "    mounter: fuse\n" };
        let namespace =
            if namespace.is_empty() { String::new() } else { format!(", radosNamespace: {namespace}") };
        format!(
            "nodeId: node-1\nclusterId: {owner}\nsocketDir: {d}/sockets\nstateDir: {d}/state\n\
             kubeletDir: {d}/kubelet\nshutdownGraceSeconds: 5\n{daemon}backends:\n  - type: rbd\n{mounter}    \
             clusters: [{{clusterID: ceph, cephConf: {}, pools: [{pool}]{namespace}}}]\n{more}",
            conf.display()
        )
    }
}
