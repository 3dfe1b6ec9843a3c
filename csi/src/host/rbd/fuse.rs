//! qemu-storage-daemon with its rbd driver: the image appears as a file by a FUSE export, and a loop device makes a
//! block device of it. The daemon is in a session of its own and lives on when this process ends.
//!
//! ```text
//! <mapping>/image          the file, a FUSE mount on itself
//! <mapping>/qmp.sock       the daemon's monitor
//! <mapping>/pid            the daemon's process id
//! ```
//!
//! Monitors and key are in no directory: the daemon reads them from a file without a name, its standard input, which ends
//! with the processes that have it open.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provisioners::{Ctx, Error, RbdImage, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::json;

use super::super::outside::{self, Outside};
use super::super::runner::Tools;
use super::super::{device, loopdev, mounts};
use super::{noted, qmp};

/// How long the daemon may take to end after each step of the ladder.
const ENDS: Duration = Duration::from_secs(5);
/// How long the kernel keeps a FUSE file's attributes: a grown size shows after it.
const ATTRIBUTES: Duration = Duration::from_secs(5);

fn image_file(dir: &Path) -> PathBuf {
    dir.join("image")
}

/// The loop device of a mapping, if its daemon lives.
pub fn device(dir: &Path) -> Result<Option<PathBuf>> {
    if daemon(dir).is_none() || !is_mounted(dir)? {
        return Ok(None);
    }
    attached(dir)
}

/// The loop device over a mapping's file: as noted, or, where an earlier driver has mapped it, by the file.
fn attached(dir: &Path) -> Result<Option<PathBuf>> {
    match noted::read(dir)? {
        Some(device) => Ok(Some(device)),
        // Known by the number of the FUSE file system: its daemon, which may stand still, is not asked.
        None => match mounts::on(&image_file(dir))?.last() {
            Some(mount) => loopdev::find_on(mount.device, &image_file(dir)),
            None => Ok(None),
        },
    }
}

/// The mapping's directory that a loop device is over, if it is one of ours.
pub fn dir_of(state: &Path, device: &Path) -> Result<Option<PathBuf>> {
    let entries = match fs::read_dir(state) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|e| Error::io(format!("reading {}", state.display()), e))?,
    };
    for entry in entries {
        let dir = entry.map_err(|e| Error::io(format!("reading {}", state.display()), e))?.path();
        if dir.is_dir() && attached(&dir)?.as_deref() == Some(device) {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// What is wrong with a mapping that is in use: its daemon has died, so all that is read or written fails. `None`: it
/// lives, or nobody uses what is left.
pub fn problem(dir: &Path) -> Result<Option<String>> {
    if daemon(dir).is_some() {
        return Ok(None);
    }
    let Some(device) = attached(dir)? else { return Ok(None) };
    let users = users(&device)?;
    Ok((!users.is_empty()).then(|| {
        format!(
            "its qemu-storage-daemon has died, so {} gives I/O errors on {}; delete the pods that use it, so that it is \
             unmounted and can be attached again",
            device.display(),
            users.join(", ")
        )
    }))
}

/// Where a device's file system is mounted, and where its node is bound.
fn users(device: &Path) -> Result<Vec<String>> {
    let mounts = device::mounts(device)?.into_iter().map(|m| m.target.into_owned());
    Ok(mounts.chain(device::binds(device)?).map(|target| target.display().to_string()).collect())
}

fn is_mounted(dir: &Path) -> Result<bool> {
    Ok(!mounts::on(&image_file(dir))?.is_empty())
}

/// The daemon's process, if it lives and is the one of this mapping.
fn daemon(dir: &Path) -> Option<Pid> {
    let noted = fs::read_to_string(dir.join("pid")).ok().and_then(|text| text.trim().parse().ok());
    match noted {
        Some(pid) => is_daemon(pid, dir).then(|| Pid::from_raw(pid)).flatten(),
        // It writes its number once it has connected; a driver that was killed before leaves one without.
        None => {
            let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
            let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            pids.find(|pid| is_daemon(*pid, dir)).and_then(Pid::from_raw)
        }
    }
}

/// Process numbers are given again, so the program and its arguments are looked at.
fn is_daemon(pid: i32, dir: &Path) -> bool {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    // A zombie has no command line.
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
    let own = dir.join("pid");
    // The kernel keeps 15 bytes of a name.
    name.starts_with(b"qemu-storage-da")
        && arguments.windows(2).any(|two| two == [b"--pidfile", own.as_os_str().as_encoded_bytes()])
}

/// Signals the daemon, and nobody who got its number meanwhile.
fn signal(dir: &Path, pid: Pid, signal: Signal) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if is_daemon(pid.as_raw_nonzero().get(), dir) {
        let _ = pidfd_send_signal(process, signal);
    }
}

/// What was left of a mapping that was interrupted.
pub enum Left {
    /// No daemon.
    Nothing,
    /// The daemon had come so far that it can be gone on with: the device.
    Device(PathBuf),
    /// A daemon that was ended now.
    Ended,
}

/// Goes on with a mapping that was interrupted, or ends its daemon.
pub fn resume(ctx: &Ctx, dir: &Path, read_only: bool) -> Result<Left> {
    if daemon(dir).is_none() {
        return Ok(Left::Nothing);
    }
    if is_mounted(dir)? && dir.join("pid").exists() {
        return attach(dir, read_only).map(Left::Device);
    }
    unmap(ctx, dir, None)?;
    Ok(Left::Ended)
}

fn attach(dir: &Path, read_only: bool) -> Result<PathBuf> {
    let (device, _) = loopdev::attach(&image_file(dir), read_only, loopdev::OURS)?;
    noted::write(dir, &device)?;
    Ok(device)
}

/// What starts daemons.
pub struct Start<'a> {
    /// The node's programs.
    pub tools: &'a Tools,
    /// Where a daemon runs, so that it outlives this driver's container.
    pub outside: &'a Outside,
    /// qemu-storage-daemon.
    pub program: &'a Path,
}

impl Start<'_> {
    /// Maps an image: starts the daemon, and attaches a loop device to its file.
    pub fn map(&self, ctx: &Ctx, dir: &Path, image: &RbdImage, read_only: bool) -> Result<PathBuf> {
        unmap(ctx, dir, None)?;
        let attached = self.start(ctx, dir, image, read_only).and_then(|()| attach(dir, read_only));
        attached.inspect_err(|_| {
            if let Err(error) = unmap(ctx, dir, None) {
                tracing::warn!(%error, "clearing up after a failed mapping");
            }
        })
    }

    fn start(&self, ctx: &Ctx, dir: &Path, image: &RbdImage, read_only: bool) -> Result<()> {
        let file = image_file(dir);
        File::create(&file).map_err(|e| Error::io(format!("making {}", file.display()), e))?;
        let (program, mut all) = self.outside.wrap(self.program);
        all.extend(arguments(dir, image, read_only).into_iter().map(Into::into));
        let all: Vec<_> = all.iter().map(AsRef::as_ref).collect();
        let output = self.tools.run_at(ctx, "qemu-storage-daemon", &program, &all, conf(image)?.into())?;
        if output.code != Some(0) {
            return Err(Error::Unavailable(format!(
                "mapping {}/{}: {} ({})",
                image.pool,
                image.image,
                output.failure("qemu-storage-daemon"),
                super::newer_key(image).unwrap_or("is qemu-block-extra installed, of the same version?")
            )));
        }
        if let (Some(pid), Err(problem)) = (daemon(dir), self.outside.check())
            && !outside::is_outside(pid.as_raw_nonzero().get())
        {
            tracing::warn!(
                image = image.image,
                problem,
                "the volume's qemu-storage-daemon ends with this container"
            );
        }
        Ok(())
    }
}

/// Monitors and key in a file that no directory has (memfd_create(2)): an argument would show in /proc, and a file would
/// stay where a driver is killed.
fn conf(image: &RbdImage) -> Result<File> {
    let doing = |e| Error::io("handing the key to qemu-storage-daemon", e);
    let mut file: File = memfd_create("ceph.conf", MemfdFlags::CLOEXEC).map_err(|e| doing(e.into()))?.into();
    let key = image.key.as_ref().map(provisioners::SecretText::reveal).unwrap_or_default();
    let text = format!(
        "[global]\nmon_host = {}\nkey = {key}\nkeyring = /dev/null\nlog_to_stderr = false\nadmin_socket =\nlog_file =\n",
        image.mon_host
    );
    io::Write::write_all(&mut file, text.as_bytes()).map_err(doing)?;
    Ok(file)
}

/// Removes the file with the key that an earlier driver has left, which was killed while it mapped the image.
pub fn remove_key(dir: &Path) -> Result<()> {
    let path = dir.join("ceph.conf");
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}, which has a key", path.display()), e))
        }
        _ => Ok(()),
    }
}

fn arguments(dir: &Path, image: &RbdImage, read_only: bool) -> Vec<String> {
    let namespace =
        if image.namespace.is_empty() { String::new() } else { format!(",namespace={}", image.namespace) };
    let path = |name: &str| dir.join(name).display().to_string();
    vec![
        "--daemonize".to_owned(),
        "--pidfile".to_owned(),
        path("pid"),
        "--blockdev".to_owned(),
        format!(
            "driver=rbd,node-name=disk,pool={},image={}{namespace},conf=/proc/self/fd/0,user={},cache.direct=on,discard=unmap,read-only={}",
            image.pool,
            image.image,
            image.user,
            if read_only { "on" } else { "off" }
        ),
        "--export".to_owned(),
        format!(
            "type=fuse,id=export,node-name=disk,mountpoint={},writable={},growable=off",
            path("image"),
            if read_only { "off" } else { "on" }
        ),
        "--chardev".to_owned(),
        format!("socket,path={},server=on,wait=off,id=monitor", path("qmp.sock")),
        "--monitor".to_owned(),
        "chardev=monitor".to_owned(),
    ]
}

/// Takes a mapping away, what of it there is: the loop device, the daemon, the mount.
pub fn unmap(ctx: &Ctx, dir: &Path, device: Option<&Path>) -> Result<()> {
    let found = match device {
        Some(device) => Some(device.to_owned()),
        None => attached(dir)?,
    };
    if let Some(device) = found {
        // Of a daemon that is dead nothing new can be told: then it is what it was when it was found.
        loopdev::detach(&device, || Ok(!matches!(attached(dir), Ok(Some(now)) if now != device)))?;
    }
    if let Some(pid) = daemon(dir) {
        stop(dir, pid)?;
    }
    mounts::unmount_all(ctx, &image_file(dir))?;
    for name in ["pid", "qmp.sock", "image", "ceph.conf", "device.json"] {
        let _ = fs::remove_file(dir.join(name));
    }
    Ok(())
}

/// Asks the daemon to end, then tells it, then kills it.
fn stop(dir: &Path, pid: Pid) -> Result<()> {
    let asked = qmp::command(&dir.join("qmp.sock"), "quit", &json!({}));
    if asked.is_err() {
        signal(dir, pid, Signal::TERM);
    }
    for next in [Signal::TERM, Signal::KILL, Signal::KILL] {
        let begun = Instant::now();
        while begun.elapsed() < ENDS {
            if daemon(dir).is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        signal(dir, pid, next);
    }
    Err(Error::Unavailable(format!(
        "qemu-storage-daemon (process {}) does not end, not even killed: its cluster does not answer; repeat the call",
        pid.as_raw_nonzero()
    )))
}

/// Clears a mapping whose daemon has died and that nobody uses; whether it did.
pub fn clear_dead(dir: &Path) -> Result<bool> {
    if daemon(dir).is_some() {
        return Ok(false);
    }
    if let Some(device) = attached(dir)? {
        if !users(&device)?.is_empty() {
            return Ok(false);
        }
        loopdev::detach(&device, || Ok(attached(dir)?.as_ref() == Some(&device)))?;
    }
    mounts::unmount_all(&Ctx::new(), &image_file(dir))?;
    Ok(true)
}

/// Has the daemon, the file and the loop device show the image's new size. Never makes the image smaller.
pub fn grow(dir: &Path, device: &Path, size: Option<u64>) -> Result<()> {
    let file = image_file(dir);
    let length = || fs::metadata(&file).map(|meta| meta.len());
    let has = length().map_err(|e| Error::io(format!("looking at {}", file.display()), e))?;
    if let Some(size) = size.filter(|size| *size > has) {
        let arguments = json!({"node-name": "disk", "size": size});
        qmp::command(&dir.join("qmp.sock"), "block_resize", &arguments)?;
        let begun = Instant::now();
        while length().is_ok_and(|now| now < size) && begun.elapsed() < ATTRIBUTES {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    loopdev::grow(device)
}
