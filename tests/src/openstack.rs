//! Real Keystone, Cinder, Nova and Placement for tests: one set a test process, started by `tests/servers/openstack/run`
//! at the first use.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use provisioners::cinder::{Bare, CinderCloud, Service};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::control;
use crate::network::Network;
use crate::script::{Script, possible};

/// The running services.
pub struct OpenStack {
    script: Script,
    ip: String,
    ports: Value,
    servers: OnceLock<std::result::Result<Vec<String>, String>>,
}

/// How many servers tests share; a guest is one.
fn count() -> usize {
    if control::is_guest() { 1 } else { 4 }
}

impl OpenStack {
    /// The services of this process. `None`, with the reason logged as a skip of `test`: they cannot be run here.
    pub fn shared(test: &str) -> Result<Option<&'static Self>> {
        static SHARED: OnceLock<std::result::Result<OpenStack, String>> = OnceLock::new();
        if !Self::possible(test) {
            return Ok(None);
        }
        let started = SHARED.get_or_init(|| Self::start().map_err(|e| format!("{e:#}")));
        started.as_ref().map(Some).map_err(|e| anyhow::anyhow!("starting OpenStack: {e}"))
    }

    /// Whether they can be run here; if not, the reason is logged as a skip of `test`.
    pub fn possible(test: &str) -> bool {
        if !possible(test, &[("losetup", "mount"), ("python3", "python3")]) {
            return false;
        }
        let installed = home().join("stamp").exists();
        if !installed {
            crate::skip(test, "OpenStack is not installed; `make install-deps` does it, from PyPI");
        }
        installed
    }

    /// A second set, for tests that do it harm, one after the other: it is this test's until the guard is dropped.
    pub async fn harmed(test: &str) -> Result<Option<(MutexGuard<'static, ()>, &'static Self)>> {
        static TURN: Mutex<()> = Mutex::const_new(());
        static HARMED: OnceLock<OpenStack> = OnceLock::new();
        if Self::shared(test)?.is_none() {
            return Ok(None);
        }
        let guard = TURN.lock().await;
        if HARMED.get().is_none() {
            let started = tokio::task::spawn_blocking(Self::start).await??;
            let _ = HARMED.set(started);
        }
        Ok(HARMED.get().map(|it| (guard, it)))
    }

    /// Starts a set of its own.
    pub fn start() -> Result<Self> {
        Self::start_script(None, control::address())
    }

    /// Starts a set in a network name space.
    pub fn start_in(network: &Network) -> Result<Self> {
        Self::start_script(Some(network), &network.there)
    }

    fn start_script(network: Option<&Network>, ip: &str) -> Result<Self> {
        let args = |dir: &Path| vec![home().display().to_string(), dir.display().to_string(), ip.to_owned()];
        let (script, _) = Script::start_in(network, "openstack", args)?;
        let ports = serde_json::from_slice(&std::fs::read(script.dir.join("ports.json"))?)?;
        Ok(Self { script, ip: ip.to_owned(), ports, servers: OnceLock::new() })
    }

    /// A command to the script: `signal cinder KILL`, `start cinder`.
    pub fn tell(&self, command: &str) -> Result<()> {
        self.script.tell(command)
    }

    /// Adds lines to a service's configuration and starts it again.
    pub fn configure(&self, service: &str, lines: &str) -> Result<()> {
        let file = self.script.dir.join(format!("etc/{service}.conf"));
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        std::fs::write(&file, text + lines)?;
        self.tell(&format!("signal {service} KILL"))?;
        self.tell(&format!("start {service}"))
    }

    /// Its clouds.yaml.
    pub fn clouds_file(&self) -> PathBuf {
        self.script.dir.join("clouds.yaml")
    }

    /// The address of `cinder` or `nova`.
    pub fn address(&self, service: &str) -> String {
        format!("{}:{}", self.ip, self.ports[service])
    }

    /// Where the servers' devices are linked.
    pub fn devices(&self, server: &str) -> PathBuf {
        self.script.dir.join("devices").join(server)
    }

    /// Raw requests as `demo` (a project's member) or `admin`. For the runtime that asks first.
    pub fn bare(&self, cloud: &str) -> Bare {
        Bare::new(CinderCloud {
            name: cloud.into(),
            cloud: Some(cloud.into()),
            clouds_file: Some(self.clouds_file()),
            ..CinderCloud::default()
        })
    }

    /// One of the servers that tests share, in turn.
    pub fn node(&'static self) -> Result<String> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let nodes = self.nodes()?;
        Ok(nodes[next % nodes.len()].clone())
    }

    /// The servers that tests share.
    pub fn nodes(&self) -> Result<&[String]> {
        let made = self.servers.get_or_init(|| {
            // A runtime of its own: connections end with the runtime that made them.
            std::thread::scope(|scope| {
                let work = scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    runtime.block_on(async {
                        let mut servers = Vec::new();
                        for i in 0..count() {
                            servers.push(self.server(&format!("node-{i}")).await?);
                        }
                        anyhow::Ok(servers)
                    })
                });
                work.join().map_err(|_| "a panic".to_owned())?.map_err(|e| format!("{e:#}"))
            })
        });
        made.as_deref().map_err(|e| anyhow::anyhow!("making servers: {e}"))
    }

    /// What Cinder has of a driver's `clusterId`: `volumes` or `snapshots`.
    pub async fn owned(&self, what: &str, owner: &str) -> Result<Vec<Value>> {
        let filter = format!("%7B%22volumectl.cluster%22:%22{}%22%7D", owner.replace(' ', "%20"));
        let path = format!("{what}/detail?metadata={filter}");
        let mut answer = self.bare("demo").ask(Service::Volume, &path, None).await?;
        Ok(serde_json::from_value(answer[what].take())?)
    }

    /// How many volumes the project `demo`, which has one at least, may have.
    pub async fn set_quota(&self, volumes: i64) -> Result<()> {
        self.put_quota(&self.quota_path().await?, volumes).await
    }

    async fn put_quota(&self, path: &str, volumes: i64) -> Result<()> {
        let quota = json!({"quota_set": {"volumes": volumes}});
        self.bare("admin").put(Service::Volume, path, quota).await.map(drop)?;
        Ok(())
    }

    /// A quota of as many volumes as there are: Cinder takes none below that, and volumes come and go meanwhile.
    pub async fn fill_quota(&self) -> Result<()> {
        let path = self.quota_path().await?;
        for _ in 0..20 {
            let all = self.bare("admin").ask(Service::Volume, &format!("{path}?usage=true"), None).await?;
            let volumes = &all["quota_set"]["volumes"];
            let count = |what: &str| volumes[what].as_i64().with_context(|| format!("no {what} in {all}"));
            if self.put_quota(&path, count("in_use")? + count("reserved")?).await.is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("the quota was below the usage twenty times")
    }

    async fn quota_path(&self) -> Result<String> {
        let all = self.bare("demo").ask(Service::Volume, "volumes/detail?limit=1", None).await?;
        let project = all["volumes"][0]["os-vol-tenant-attr:tenant_id"].as_str().context("no project")?;
        Ok(format!("os-quota-sets/{project}"))
    }

    /// Makes a server, booted from a volume; its id.
    pub async fn server(&self, name: &str) -> Result<String> {
        let bare = self.bare("demo");
        let flavor = self.flavor(&bare).await?;
        let body = json!({"volume": {"size": 1, "name": format!("{name}-root")}});
        let volume = id(&bare.ask(Service::Volume, "volumes", Some(body)).await?["volume"])?;
        wait_for(&bare, Service::Volume, &format!("volumes/{volume}"), "volume", "available").await?;
        let body = json!({"os-set_bootable": {"bootable": true}});
        bare.ask(Service::Volume, &format!("volumes/{volume}/action"), Some(body)).await?;
        let disk = json!([{"boot_index": 0, "uuid": volume, "source_type": "volume", "destination_type": "volume", "delete_on_termination": true}]);
        let body = json!({"server": {"name": name, "flavorRef": flavor, "networks": "none", "imageRef": "", "block_device_mapping_v2": disk}});
        let server = id(&bare.ask(Service::Compute, "servers", Some(body)).await?["server"])?;
        wait_for(&bare, Service::Compute, &format!("servers/{server}"), "server", "ACTIVE").await?;
        Ok(server)
    }

    async fn flavor(&self, bare: &Bare) -> Result<String> {
        let known = bare.ask(Service::Compute, "flavors", None).await?;
        if let Some(first) = known["flavors"].as_array().and_then(|all| all.first()) {
            return id(first);
        }
        let body = json!({"flavor": {"name": "tiny", "ram": 64, "vcpus": 1, "disk": 0}});
        id(&self.bare("admin").ask(Service::Compute, "flavors", Some(body)).await?["flavor"])
    }

    /// A configuration of the cinder backend on one server, whose files are all below `dir`. `owner` keeps tests apart.
    /// `more` keys of the cloud and `keys` of the backend, each with a comma or on a line of its own.
    pub fn config(&self, owner: &str, server: &str, dir: &Path, more: &str, keys: &str) -> String {
        let d = dir.display();
        // A guest has real disks.
        let devices = if control::is_guest() {
            String::new()
        } else {
            format!("    deviceRoot: {}\n", self.devices(server).display())
        };
        format!(
            "nodeId: node-1\nclusterId: \"{owner}\"\nsocketDir: {d}/sockets\nstateDir: {d}/state\nkubeletDir: {d}/kubelet\n\
             shutdownGraceSeconds: 5\nbackends:\n  - type: cinder\n    clouds: [{{name: main, cloud: demo, cloudsFile: {}{more}}}]\n    \
             instanceId: {server}\n    zone: nova\n{devices}{keys}",
            self.clouds_file().display(),
        )
    }
}

/// Where `tests/servers/openstack/install` has put them.
fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/openstack")
}

/// The id of a thing in an answer.
pub fn id(value: &Value) -> Result<String> {
    value["id"].as_str().map(str::to_owned).with_context(|| format!("no id in {value}"))
}

/// Waits until something has a status.
pub async fn wait_for(bare: &Bare, service: Service, path: &str, key: &str, wanted: &str) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let mut value = bare.ask(service, path, None).await?;
        let status = value[key]["status"].as_str().unwrap_or_default().to_owned();
        if status == wanted {
            return Ok(value[key].take());
        }
        if begun.elapsed() > Duration::from_secs(240) || status.to_lowercase() == "error" {
            bail!("{path} has status {status}, not {wanted}: {}", value[key]["fault"]);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
