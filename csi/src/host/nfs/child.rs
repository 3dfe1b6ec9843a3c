//! The helper's side: `csi-driver node-helper task` reads one task, does it, and says how it went;
//! `csi-driver node-helper session` mounts a share and does a controller's calls in it.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use provisioners::Ctx;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::super::{mounts, options, ownership};
use super::readback;

/// What a helper is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Mounts a share.
    Mount { server: String, share: String, target: PathBuf, options: Vec<String> },
    /// Binds a directory below a mount, reached without any symbolic link, to a target.
    Bind { base: PathBuf, dir: String, target: PathBuf, read_only: bool },
    /// Takes one mount off a path.
    Unmount { path: PathBuf, how: How },
    /// Waits until the server has all that was written to a share.
    Sync { path: PathBuf },
    /// Statistics, which also tell whether the server answers.
    Look { path: PathBuf },
    /// Gives all files to a group.
    Give { path: PathBuf, gid: u32 },
}

impl fmt::Display for Task {
    /// What it does and where: what hangs in the kernel is counted by that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { server, share, .. } => write!(f, "mounts {server}:{share}"),
            Self::Bind { base, .. } => write!(f, "binds directories of {}", base.display()),
            Self::Unmount { path, how } => write!(f, "unmounts {} ({how:?})", path.display()),
            Self::Sync { path } => write!(f, "has the server take what was written to {}", path.display()),
            Self::Look { path } => write!(f, "looks at {}", path.display()),
            Self::Give { path, .. } => write!(f, "gives {} to a group", path.display()),
        }
    }
}

/// How something is unmounted. Force ends all that is under way on the file system (umount2(2), MNT_FORCE), also for others
/// who have mounted it, and with it what was written and the server does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    Plain,
    Force,
    Lazy,
}

/// What statfs(2) says; zeros of tasks that ask for none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Numbers {
    pub total: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
    /// What the administrator should know of a mount.
    pub note: Option<String>,
}

/// Why a task failed.
#[derive(Debug, Serialize, Deserialize)]
pub enum Trouble {
    /// The kernel's answer.
    Errno(i32),
    /// It did not end in this time and was killed.
    Slow(Duration),
    /// It cannot be done as it was asked; what to change.
    Refused(String),
    /// Something else.
    Text(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(number) => write!(f, "{}", Errno::from_raw_os_error(*number)),
            Self::Slow(limit) => write!(f, "not done in {} s", limit.as_secs()),
            Self::Refused(text) | Self::Text(text) => f.write_str(text),
        }
    }
}

impl From<Errno> for Trouble {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno.raw_os_error())
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or_else(|| Self::Text(error.to_string()), Self::Errno)
    }
}

/// Runs as the helper if the arguments say so; the exit code then.
pub fn run(arguments: &[String]) -> Option<i32> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["node-helper", "task"] => Some(task()),
        ["node-helper", "session", share] => Some(session(share)),
        _ => None,
    }
}

fn task() -> i32 {
    let mut text = Vec::new();
    let read = io::stdin().read_to_end(&mut text).map_err(Trouble::from);
    let task = read.and_then(|_| serde_json::from_slice(&text).map_err(|e| Trouble::Text(e.to_string())));
    let answer = serde_json::to_vec(&task.and_then(act)).unwrap_or_default();
    i32::from(io::stdout().write_all(&answer).is_err())
}

/// Mounts the share that its argument names below a directory in memory, and serves calls in it.
fn session(share: &str) -> i32 {
    let root = Path::new("/tmp");
    let mounted = serde_json::from_str(share).map_err(|e| e.to_string()).and_then(|task| match task {
        Task::Mount { server, share, options, .. } => mount(&server, &share, root, &options)
            .map(drop)
            .map_err(|trouble| format!("mounting {server}:{share}: {trouble}")),
        Task::Bind { base, .. } => {
            bind(&base, "", root, false).map_err(|trouble| format!("binding {}: {trouble}", base.display()))
        }
        _ => Err("not a share".to_owned()),
    });
    let served = provisioners::nfs::serve(root, &mounted, &mut io::stdin().lock(), &mut io::stdout().lock());
    i32::from(served.is_err())
}

fn act(task: Task) -> Result<Numbers, Trouble> {
    match task {
        Task::Mount { server, share, target, options } => {
            let note = mount(&server, &share, &target, &options)?;
            return Ok(Numbers { note, ..Numbers::default() });
        }
        Task::Bind { base, dir, target, read_only } => bind(&base, &dir, &target, read_only)?,
        Task::Unmount { path, how } => {
            let flags = match how {
                How::Plain => UnmountFlags::empty(),
                How::Force => UnmountFlags::FORCE,
                How::Lazy => UnmountFlags::DETACH,
            };
            rustix::mount::unmount(&path, flags | UnmountFlags::NOFOLLOW)?;
        }
        Task::Sync { path } => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::syncfs(openat(CWD, &path, flags, Mode::empty())?)?;
        }
        Task::Look { path } => return look(&path),
        Task::Give { path, gid } => {
            ownership::give_to_group(&Ctx::new(), &path, gid).map_err(|e| Trouble::Text(e.to_string()))?;
        }
    }
    Ok(Numbers::default())
}

fn look(path: &Path) -> Result<Numbers, Trouble> {
    // stat(2) asks the server for the directory itself, statfs(2) for the export.
    rustix::fs::stat(path)?;
    let fs = rustix::fs::statvfs(path)?;
    Ok(Numbers {
        total: fs.f_blocks * fs.f_frsize,
        free: fs.f_bfree * fs.f_frsize,
        available: fs.f_bavail * fs.f_frsize,
        files: fs.f_files,
        files_free: fs.f_ffree,
        note: None,
    })
}

fn bind(base: &Path, dir: &str, target: &Path, read_only: bool) -> Result<(), Trouble> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = openat(CWD, base, flags, Mode::empty())?;
    let inside = if dir.is_empty() { "." } else { dir };
    // A user of the volume above could have put a link there.
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let source = openat2(&top, inside, flags, Mode::empty(), stay)?;
    let path = format!("/proc/self/fd/{}", source.as_raw_fd());
    rustix::mount::mount_bind(path.as_str(), target)?;
    if read_only && let Err(error) = mounts::make_read_only(target) {
        let _ = rustix::mount::unmount(target, UnmountFlags::NOFOLLOW);
        return Err(Trouble::Text(error.to_string()));
    }
    Ok(())
}

/// Mounts a share as mount.nfs(8) does: all addresses of the server, and, where the options do not say, the versions of
/// the protocol from the newest. A word on those that could not be used although they are spoken.
fn mount(server: &str, share: &str, target: &Path, options: &[String]) -> Result<Option<String>, Trouble> {
    let (flags, data) = options::parse(options).map_err(|e| Trouble::Text(e.to_string()))?;
    let plain = server.trim_start_matches('[').trim_end_matches(']');
    let source = if plain.contains(':') { format!("[{plain}]:{share}") } else { format!("{server}:{share}") };
    let addresses: Vec<IpAddr> = (plain, 0).to_socket_addrs()?.map(|address| address.ip()).collect();
    let given = data.iter().any(|option| option.starts_with("vers=") || option.starts_with("nfsvers="));
    let versions: &[Option<&str>] = if given { &[None] } else { &[Some("4.2"), Some("4.1"), Some("3")] };
    let mount = |version: Option<&str>| {
        let mut last = Trouble::Text(format!("{server} has no address"));
        for address in &addresses {
            match mount_one(&source, target, flags, &data, *address, version) {
                Ok(()) => return Ok(()),
                Err(errno) => last = errno.into(),
            }
        }
        Err(last)
    };
    let unmount = || Ok(rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)?);
    let mounted = readback::first_that_reads(versions, mount, || readback::reads(target), unmount);
    mounted.map_err(|trouble| explained(trouble, &data))
}

/// What a refused mount may be about, beside the server.
fn explained(trouble: Trouble, data: &[String]) -> Trouble {
    let has = |options: &[&str]| data.iter().any(|option| options.contains(&option.as_str()));
    let is = |errno: Errno| matches!(trouble, Trouble::Errno(number) if number == errno.raw_os_error());
    if is(Errno::INVAL) {
        return options::refused("nfs", data).map_or(trouble, Trouble::Refused);
    }
    if is(Errno::CONNREFUSED) && has(&["vers=3", "nfsvers=3"]) && !has(&["nolock", "local_lock=all"]) {
        return Trouble::Text(
            "connection refused; see whether the server runs and can be reached. Version 3 also needs rpcbind and rpc.statd on this node (Debian: nfs-common), or the mount option nolock"
                .into(),
        );
    }
    trouble
}

fn mount_one(
    source: &str,
    target: &Path,
    flags: MountFlags,
    data: &[String],
    address: IpAddr,
    version: Option<&str>,
) -> Result<(), Errno> {
    let mut data = data.to_vec();
    data.extend(version.map(|version| format!("vers={version}")));
    if !data.iter().any(|option| option.starts_with("addr=")) {
        data.push(format!("addr={address}"));
    }
    let has = |word: &str| data.iter().any(|option| option.starts_with(word));
    // A share with two security contexts is two mounts to the kernel (nfs(5), "nosharecache").
    if has("context=") && !has("nosharecache") {
        data.push("nosharecache".into());
    }
    let four = data.iter().any(|option| option.starts_with("vers=4") || option.starts_with("nfsvers=4"));
    if !four && !data.iter().any(|option| option.starts_with("mountproto=")) {
        // The kernel takes the family of mountd's address from this word.
        data.push(if address.is_ipv6() { "mountproto=tcp6" } else { "mountproto=tcp" }.into());
    }
    let text = std::ffi::CString::new(data.join(",")).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(source, target, if four { "nfs4" } else { "nfs" }, flags, text.as_c_str())
}
