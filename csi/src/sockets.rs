//! Unix sockets: private from the first moment, put in place by a rename that replaces nothing, and removed by nobody
//! else than the process that bound them. A stale one is removed only when nobody answers on it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, Stat, fchmod};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

/// So many callers can wait to be let in.
const BACKLOG: i32 = 1024;
/// A driver that was killed while it started a helper: until that helper's execve(2), it has the socket open, too.
const LEFT_OPEN: Duration = Duration::from_secs(2);
/// How often a socket is bound again whose place another process took first.
const TRIES: usize = 3;

/// A bound socket; its file is removed when this is dropped, if it is still the one that was bound.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
    file: Pinned,
}

impl Socket {
    /// Binds `path` with mode 0600, making its directory (0750) if need be. Fails when another process answers there,
    /// or when something that is no socket is in the way.
    pub(crate) async fn bind(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            make_dir(dir).with_context(|| format!("making the directory {}", dir.display()))?;
        }
        for _ in 0..TRIES {
            remove_stale(path).await?;
            match listen(path) {
                Ok((listener, file)) => {
                    return Ok(Self { path: path.to_owned(), listener: Some(listener), file });
                }
                // Another process was quicker: it is looked at.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("binding the socket {}", path.display()));
                }
            }
        }
        bail!("{}: other processes bind this socket, too; stop them", path.display())
    }

    /// The socket's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the listener; the file stays this value's to remove.
    pub(crate) fn take(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        match remove_if(&self.path, &self.file) {
            Ok(true) => {}
            Ok(false) => tracing::info!(
                path = %self.path.display(),
                "the socket is not the one that this process bound; it was left to its owner"
            ),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
            }
        }
    }
}

/// A file by device and inode, held open so that the inode's number is not given to another file meanwhile.
#[derive(Debug)]
struct Pinned(OwnedFd);

impl Pinned {
    fn new(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(Self)
    }

    fn stat(&self) -> Result<Stat, Errno> {
        rustix::fs::fstat(&self.0)
    }

    /// Whether this is what a path names now.
    fn is_at(&self, path: &Path) -> Result<bool, Errno> {
        let own = self.stat()?;
        match rustix::fs::lstat(path) {
            Ok(there) => Ok((there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Removes a file if it is the one that is meant; whether it was. What took its place between the look and the act is
/// put back: it is moved to a name of its own, looked at again, and only then removed.
fn remove_if(path: &Path, file: &Pinned) -> io::Result<bool> {
    if !file.is_at(path)? {
        return Ok(false);
    }
    let aside = beside(path);
    match rustix::fs::rename(path, &aside) {
        Err(Errno::NOENT) => return Ok(false),
        other => other?,
    }
    if file.is_at(&aside)? {
        rustix::fs::unlink(&aside)?;
        return Ok(true);
    }
    rustix::fs::renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE)?;
    Ok(false)
}

/// A name in the same directory that nobody else uses, not longer than `csi.sock`.
fn beside(path: &Path) -> PathBuf {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    path.with_file_name(format!(".{}", &unique[..7]))
}

/// Binds a socket under another name, and moves it to its path when it listens and is known by its inode. The file
/// gets the mode that the socket has when it is bound (Linux). The umask would do as well, but it is the whole
/// process's, and other threads make files meanwhile.
fn listen(path: &Path) -> io::Result<(UnixListener, Pinned)> {
    // Refused here if the path is too long, not after the work.
    SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    let draft = beside(path);
    net::bind(&socket, &SocketAddrUnix::new(&draft)?)?;
    let placed = net::listen(&socket, BACKLOG).and_then(|()| {
        let file = Pinned::new(&draft)?;
        rustix::fs::renameat_with(CWD, &draft, CWD, path, RenameFlags::NOREPLACE)?;
        Ok(file)
    });
    let file = placed.inspect_err(|_| {
        let _ = rustix::fs::unlink(&draft);
    })?;
    Ok((UnixListener::from_std(socket.into())?, file))
}

fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)
}

async fn remove_stale(path: &Path) -> Result<()> {
    let looking = || format!("looking at the socket {}", path.display());
    let file = match Pinned::new(path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.with_context(looking)?,
    };
    if FileType::from_raw_mode(file.stat().with_context(looking)?.st_mode) != FileType::Socket {
        bail!(
            "{} is not a socket; it was left as it is. Remove it or configure another socket",
            path.display()
        );
    }
    if answers(path).await? {
        bail!("another process answers on {}; it was left as it is. Stop it first", path.display());
    }
    tracing::info!(path = %path.display(), "removing a stale socket: nobody answers on it");
    // What is there now, if it is another one, is looked at when the place turns out to be taken.
    let removed = remove_if(path, &file).map(drop);
    removed.with_context(|| format!("removing the stale socket {}", path.display()))
}

/// Whether somebody has the socket open, and keeps it open.
async fn answers(path: &Path) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < LEFT_OPEN {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(false),
            // Somebody else has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // Closed by its owner before it let us in: what is there now is looked at.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("finding out who owns the socket {}", path.display()));
            }
            Ok(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_and_gone_after_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/csi.sock");
        let socket = Socket::bind(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    /// A driver that still drains when its successor has bound the socket anew.
    #[tokio::test]
    async fn c14_a_dying_driver_leaves_its_successors_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let mut old = Socket::bind(&path).await.unwrap();
        drop(old.take());
        let new = Socket::bind(&path).await.unwrap();
        drop(old);
        assert!(UnixStream::connect(&path).await.is_ok(), "the successor cannot be reached");
        drop(new);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[tokio::test]
    async fn c14_drivers_that_start_at_once_do_not_take_the_socket_from_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        for _ in 0..3 {
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            let (a, b) = tokio::join!(Socket::bind(&path), Socket::bind(&path));
            assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
            assert!(UnixStream::connect(&path).await.is_ok());
        }
    }

    #[tokio::test]
    async fn what_took_the_files_place_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&path, "old").unwrap();
        let old = Pinned::new(&path).unwrap();
        std::fs::write(&other, "new").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(!remove_if(&path, &old).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the dead socket's file is still there");
        Socket::bind(&path).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_driver_leaves_open_for_a_moment_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let left = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(left);
        });
        Socket::bind(&path).await.unwrap();
        ends.join().unwrap();
    }

    #[tokio::test]
    async fn a_living_socket_and_a_file_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let _living = Socket::bind(&path).await.unwrap();
        assert!(Socket::bind(&path).await.unwrap_err().to_string().contains("another process answers"));
        assert!(UnixStream::connect(&path).await.is_ok());

        let file = dir.path().join("notes.txt");
        std::fs::write(&file, "keep").unwrap();
        assert!(Socket::bind(&file).await.unwrap_err().to_string().contains("not a socket"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "keep");
    }
}
