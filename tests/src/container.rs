//! csi-driver in a container, as the manifests have it: root file system, mount name space and cgroups of its own,
//! 256 MiB of memory, kubelet's directory and the state directory bound with propagation.
//!
//! containerd and runc are Debian's (`scripts/install-deps`); pods' mounts are on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::drivers::binary;
use crate::scratch::devices_below;

/// What starts containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// `runc` alone.
    Runc,
    /// containerd with its shim, which ends a container its own way.
    Containerd,
}

/// How the manifest of a backend runs the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manifest {
    /// `deploy/local`: process numbers of its own.
    Local,
    /// `deploy/rbd`: the machine's process numbers, network and cgroups.
    Rbd,
}

/// What is done to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGTERM, and SIGKILL for what is left.
    Stop,
    /// SIGKILL of the driver.
    Kill,
    /// SIGKILL of all that is in the container.
    KillAll,
}

/// A place for containers of one driver, and the one that runs.
pub struct Place {
    runtime: Runtime,
    manifest: Manifest,
    dir: PathBuf,
    config: PathBuf,
    work: tempfile::TempDir,
    daemon: Option<std::process::Child>,
    running: Option<String>,
    next: u32,
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/container/usr")
}

/// A program of the runtimes: as it was unpacked, or as it is installed.
fn program(name: &str) -> Option<PathBuf> {
    let dirs = [tools().join("bin"), tools().join("sbin"), "/usr/bin".into(), "/usr/sbin".into()];
    dirs.iter().map(|dir| dir.join(name)).find(|path| path.exists())
}

/// Whether containers can be run here; when not, the test is skipped.
pub fn possible(test: &str) -> bool {
    for name in ["runc", "containerd", "ctr", "containerd-shim-runc-v2"] {
        if program(name).is_none() {
            crate::skip(test, &format!("{name} is not installed"));
            return false;
        }
    }
    let overlay = fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("overlay"));
    if !overlay {
        crate::skip(test, "the kernel has no overlay");
    }
    overlay && crate::is_root(test)
}

fn run(program: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{} {args:?}: {}: {}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn tool(name: &str, args: &[&str]) -> Result<String> {
    run(&program(name).with_context(|| format!("no {name}"))?, args)
}

impl Place {
    /// A place whose driver has its files in `dir`, which is made a mount that spreads.
    pub fn new(runtime: Runtime, manifest: Manifest, dir: &Path, config: &str) -> Result<Self> {
        let path = dir.display().to_string();
        run(Path::new("/bin/mount"), &["--bind", &path, &path])?;
        run(Path::new("/bin/mount"), &["--make-shared", &path])?;
        for name in ["kubelet", "state", "volumes", "sockets"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let file = dir.join("driver.yaml");
        fs::write(&file, config)?;
        let work = tempfile::Builder::new().prefix("volumectl-container-").tempdir()?;
        let mut place = Self {
            runtime,
            manifest,
            dir: dir.into(),
            config: file,
            work,
            daemon: None,
            running: None,
            next: 0,
        };
        if runtime == Runtime::Containerd {
            place.start_containerd()?;
        }
        place.start()?;
        Ok(place)
    }

    fn start_containerd(&mut self) -> Result<()> {
        let work = self.work.path();
        let config = work.join("containerd.toml");
        fs::write(
            &config,
            format!(
                "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = \"{0}/containerd.sock\"\n",
                work.display()
            ),
        )?;
        let log = fs::File::create(work.join("containerd.log"))?;
        let path = [tools().join("bin"), tools().join("sbin")].map(|dir| dir.display().to_string()).join(":");
        let mut command = Command::new(program("containerd").context("no containerd")?);
        command.arg("--config").arg(&config).env("PATH", format!("{path}:/usr/sbin:/usr/bin:/sbin:/bin"));
        self.daemon = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?);
        self.until("containerd answers", |it| it.ctr(&["version"]).is_ok())
    }

    fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !holds(self) {
            ensure!(begun.elapsed() < Duration::from_secs(30), "not in time: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.work.path().join("containerd.sock").display().to_string();
        tool("ctr", &[&["--address", &socket], args].concat())
    }

    fn runc(&self, args: &[&str]) -> Result<String> {
        let root = self.work.path().join("runc").display().to_string();
        tool("runc", &[&["--root", &root], args].concat())
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.work.path().join(id)
    }

    /// Starts a new container, which is another one than all before.
    pub fn start(&mut self) -> Result<()> {
        let id = format!("{}-{}", self.work.path().file_name().unwrap_or_default().display(), self.next);
        self.next += 1;
        let bundle = self.bundle(&id);
        let layer = bundle.join("layer");
        fs::create_dir_all(bundle.join("rootfs"))?;
        fs::create_dir_all(&layer)?;
        run(Path::new("/bin/mount"), &["-t", "tmpfs", "layer", &layer.display().to_string()])?;
        for name in ["upper", "work"] {
            fs::create_dir(layer.join(name))?;
        }
        let options = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", layer.display());
        let rootfs = bundle.join("rootfs").display().to_string();
        run(Path::new("/bin/mount"), &["-t", "overlay", "-o", &options, "overlay", &rootfs])?;
        let spec = bundle.join("config.json");
        fs::write(&spec, serde_json::to_vec(&self.spec(&id, Path::new(&rootfs))?)?)?;
        self.running = Some(id.clone());
        match self.runtime {
            Runtime::Runc => {
                // What runc leaves open must not keep the test's pipes open.
                let log = fs::File::options().append(true).create(true).open(self.dir.join("driver.log"))?;
                let root = self.work.path().join("runc");
                let mut command = Command::new(program("runc").context("no runc")?);
                command.arg("--root").arg(root).args(["run", "--detach", "--bundle"]).arg(&bundle).arg(&id);
                let status = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status()?;
                ensure!(status.success(), "runc run: {status}; {}", self.log());
            }
            Runtime::Containerd => {
                let spec = spec.display().to_string();
                self.ctr(&["run", "--detach", "--null-io", "--config", &spec, &id])?;
            }
        }
        Ok(())
    }

    fn spec(&self, id: &str, rootfs: &Path) -> Result<Value> {
        let bind = |source: &str, target: &str, spread: &str| json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", spread, "rw"]});
        let at = |name: &str| self.dir.join(name).display().to_string();
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            bind("/dev", "/dev", "rprivate"),
        ];
        let mut namespaces = vec!["mount", "ipc", "uts"];
        match self.manifest {
            Manifest::Rbd => {
                mounts.push(bind("/sys", "/sys", "rprivate"));
                mounts.push(bind("/sys/fs/cgroup", "/sys/fs/cgroup", "rprivate"));
            }
            Manifest::Local => {
                mounts.push(json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"}));
                namespaces.push("pid");
            }
        }
        mounts.push(bind(&at("sockets"), &at("sockets"), "rprivate"));
        for name in ["kubelet", "state", "volumes"] {
            mounts.push(bind(&at(name), &at(name), "rshared"));
        }
        let capabilities = crate::capabilities::own()?;
        Ok(json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [binary("csi-driver")?, "--config", self.config, "--log", "info,csi_driver=debug"],
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                "cwd": "/",
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            },
            "root": {"path": rootfs},
            "mounts": mounts,
            "linux": {
                "cgroupsPath": format!("/volumectl-test/{id}"),
                "rootfsPropagation": "rshared",
                "resources": {
                    "memory": {"limit": 256 << 20},
                    "devices": [{"allow": true, "access": "rwm"}],
                },
                "namespaces": namespaces.iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>(),
            },
        }))
    }

    /// Ends the running container, and starts a new one.
    pub fn again(&mut self, end: End) -> Result<()> {
        let id = self.running.take().context("none is running")?;
        self.end(&id, end)?;
        self.start()
    }

    /// Starts a newer container beside the running one, which is stopped then.
    pub fn replace(&mut self) -> Result<()> {
        let old = self.running.take().context("none is running")?;
        self.start()?;
        self.end(&old, End::Stop)
    }

    /// Stops the running container, and starts none.
    pub fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |id| self.end(&id, End::Stop))
    }

    fn end(&self, id: &str, end: End) -> Result<()> {
        let signal = if end == End::Stop { "SIGTERM" } else { "SIGKILL" };
        let all: &[&str] = if end == End::KillAll { &["--all"] } else { &[] };
        match self.runtime {
            Runtime::Runc => {
                let _ = self.runc(&[&["kill"], all, &[id, signal]].concat());
                self.until("the driver ends", |it| {
                    it.runc(&["state", id]).map_or(true, |text| text.contains("\"stopped\""))
                })?;
                self.runc(&["delete", "--force", id])?;
            }
            Runtime::Containerd => {
                let _ = self.ctr(&[&["task", "kill", "--signal", signal], all, &[id]].concat());
                self.until("the driver ends", |it| {
                    it.ctr(&["task", "ls"]).is_ok_and(|text| {
                        !text.lines().any(|line| line.contains(id) && line.contains("RUNNING"))
                    })
                })?;
                let _ = self.ctr(&["task", "rm", "--force", id]);
                self.ctr(&["container", "rm", id])?;
            }
        }
        self.tear_down(id)
    }

    /// The root file system goes away, as a runtime has it go.
    fn tear_down(&self, id: &str) -> Result<()> {
        let bundle = self.bundle(id);
        for name in ["rootfs", "layer"] {
            run(Path::new("/bin/umount"), &[&bundle.join(name).display().to_string()])?;
        }
        Ok(fs::remove_dir_all(bundle)?)
    }

    /// The end of the driver's log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("driver.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// No file has two loop devices.
    pub fn check_devices(&self) -> Result<()> {
        let devices = devices_below(&self.dir);
        let mut files: Vec<_> = devices.iter().map(|(_, file)| file).collect();
        files.sort();
        files.dedup();
        if files.len() < devices.len() {
            bail!("a file has two loop devices: {devices:?}");
        }
        Ok(())
    }
}

impl Place {
    /// Ends everything, once.
    pub fn close(&mut self) {
        if let Some(id) = self.running.take()
            && let Err(error) = self.end(&id, End::KillAll)
        {
            eprintln!("ending the container {id}: {error:#}; {}", self.log());
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.close();
    }
}
