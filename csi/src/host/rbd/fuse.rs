//! qemu-storage-daemon with its rbd driver: the image appears as a file by a FUSE export, and a loop device makes a
//! block device of it. The daemon is in a session of its own and lives on when this process ends.
//!
//! ```text
//! <mapping>/image          the file, a FUSE mount on itself
//! <mapping>/qmp.sock       the daemon's monitor
//! <mapping>/pid            the daemon's process id
//! <mapping>/ceph.conf      monitors and key, for the moment in which the daemon connects
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use provisioners::{Ctx, Error, RbdImage, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::super::runner::Tools;
use super::super::{loopdev, mounts};
use super::qmp;

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
    loopdev::find(&image_file(dir))
}

/// The mapping's directory that a loop device is over, if it is one of ours.
pub fn dir_of(state: &Path, device: &Path) -> Result<Option<PathBuf>> {
    let all = loopdev::all()?;
    let file = all.into_iter().find(|(own, _)| own == device).map(|(_, file)| file);
    // The kernel names the file as the root of the FUSE mount; the mount says where that is.
    let Some(file) = file else { return Ok(None) };
    if let Some(dir) = file.parent().filter(|dir| dir.parent() == Some(state)) {
        return Ok(Some(dir.to_owned()));
    }
    let Ok(entries) = fs::read_dir(state) else { return Ok(None) };
    for entry in entries.flatten() {
        let dir = entry.path();
        if is_mounted(&dir)?
            && loopdev::find(&image_file(&dir)).is_ok_and(|own| own.as_deref() == Some(device))
        {
            return Ok(Some(dir));
        }
    }
    Ok(None)
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

fn is_daemon(pid: i32, dir: &Path) -> bool {
    // A zombie has no command line.
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let own = dir.join("pid");
    line.split(|byte| *byte == 0).any(|argument| argument == own.as_os_str().as_encoded_bytes())
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
        return loopdev::attach(&image_file(dir), read_only).map(Left::Device);
    }
    unmap(ctx, dir, None)?;
    Ok(Left::Ended)
}

/// Maps an image: starts the daemon, and attaches a loop device to its file.
pub fn map(
    tools: &Tools,
    ctx: &Ctx,
    program: &Path,
    dir: &Path,
    image: &RbdImage,
    read_only: bool,
) -> Result<PathBuf> {
    unmap(ctx, dir, None)?;
    let conf = write_conf(dir, image)?;
    let started = start(tools, ctx, program, dir, image, read_only);
    // The key is needed no more: the daemon has connected, or has failed.
    let removed = fs::remove_file(&conf).map_err(|e| Error::io(format!("removing {}", conf.display()), e));
    let attached = started.and(removed).and_then(|()| loopdev::attach(&image_file(dir), read_only));
    attached.inspect_err(|_| {
        if let Err(error) = unmap(ctx, dir, None) {
            tracing::warn!(%error, "clearing up after a failed mapping");
        }
    })
}

/// Monitors and key in a file that only we can read: an argument would show in /proc.
fn write_conf(dir: &Path, image: &RbdImage) -> Result<PathBuf> {
    let path = dir.join("ceph.conf");
    let doing = |e| Error::io(format!("writing {}", path.display()), e);
    let _ = fs::remove_file(&path);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(doing)?;
    let key = image.key.as_ref().map(provisioners::SecretText::reveal).unwrap_or_default();
    let text = format!(
        "[global]\nmon_host = {}\nkey = {key}\nkeyring = /dev/null\nlog_to_stderr = false\nadmin_socket =\nlog_file =\n",
        image.mon_host
    );
    io::Write::write_all(&mut file, text.as_bytes()).map_err(doing)?;
    Ok(path)
}

fn start(
    tools: &Tools,
    ctx: &Ctx,
    program: &Path,
    dir: &Path,
    image: &RbdImage,
    read_only: bool,
) -> Result<()> {
    let file = image_file(dir);
    File::create(&file).map_err(|e| Error::io(format!("making {}", file.display()), e))?;
    let namespace =
        if image.namespace.is_empty() { String::new() } else { format!(",namespace={}", image.namespace) };
    let path = |name: &str| dir.join(name).display().to_string();
    let arguments = [
        "--daemonize".to_owned(),
        "--pidfile".to_owned(),
        path("pid"),
        "--blockdev".to_owned(),
        format!(
            "driver=rbd,node-name=disk,pool={},image={}{namespace},conf={},user={},cache.direct=on,discard=unmap,read-only={}",
            image.pool,
            image.image,
            path("ceph.conf"),
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
    ];
    let arguments: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    let output = tools.run_at(ctx, "qemu-storage-daemon", program, &arguments)?;
    if output.code == Some(0) {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "mapping {}/{}: {} (is qemu-block-extra installed, of the same version?)",
        image.pool,
        image.image,
        output.failure("qemu-storage-daemon")
    )))
}

/// Takes a mapping away, what of it there is: the loop device, the daemon, the mount.
pub fn unmap(ctx: &Ctx, dir: &Path, device: Option<&Path>) -> Result<()> {
    let found = match device {
        Some(device) => Some(device.to_owned()),
        None if daemon(dir).is_some() && is_mounted(dir)? => loopdev::find(&image_file(dir))?,
        None => None,
    };
    if let Some(device) = found {
        loopdev::detach(&device)?;
    }
    if let Some(pid) = daemon(dir) {
        stop(dir, pid)?;
    }
    mounts::unmount_all(ctx, &image_file(dir))?;
    for name in ["pid", "qmp.sock", "image", "ceph.conf"] {
        let _ = fs::remove_file(dir.join(name));
    }
    Ok(())
}

/// Asks the daemon to end, then tells it, then kills it.
fn stop(dir: &Path, pid: Pid) -> Result<()> {
    let asked = qmp::command(&dir.join("qmp.sock"), "quit", &json!({}));
    if asked.is_err() {
        let _ = kill_process(pid, Signal::TERM);
    }
    for signal in [Signal::TERM, Signal::KILL, Signal::KILL] {
        let begun = Instant::now();
        while begun.elapsed() < ENDS {
            if daemon(dir).is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = kill_process(pid, signal);
    }
    Err(Error::Unavailable(format!(
        "qemu-storage-daemon (process {}) does not end, not even killed: its cluster does not answer; repeat the call",
        pid.as_raw_nonzero()
    )))
}

/// Clears a mapping whose daemon has died, if nothing uses its device; whether it did.
pub fn clear_dead(dir: &Path) -> Result<bool> {
    if daemon(dir).is_some() {
        return Ok(false);
    }
    let own = image_file(dir);
    let device = loopdev::all()?.into_iter().find(|(_, file)| *file == own).map(|(device, _)| device);
    if let Some(device) = device {
        if !super::super::device::mounts(&device)?.is_empty()
            || !super::super::device::binds(&device)?.is_empty()
        {
            return Ok(false);
        }
        loopdev::detach(&device)?;
    }
    mounts::unmount_all(&Ctx::new(), &own)?;
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
