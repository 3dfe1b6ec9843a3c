//! Unix sockets: private from the first moment, and a stale one removed only when nobody answers on it.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, fchmod};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

/// So many callers can wait to be let in.
const BACKLOG: i32 = 1024;
/// A driver that was killed while it started a helper: until that helper's execve(2), it has the socket open, too.
const LEFT_OPEN: Duration = Duration::from_secs(2);

/// A bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Binds `path` with mode 0600, making its directory (0750) if need be. Fails when another process answers there,
    /// or when something that is no socket is in the way.
    pub(crate) async fn bind(path: &Path) -> Result<Self> {
        if let Some(dir) = path.parent() {
            make_dir(dir).with_context(|| format!("making the directory {}", dir.display()))?;
        }
        remove_stale(path).await?;
        let listener = listen(path).with_context(|| format!("binding the socket {}", path.display()))?;
        Ok(Self { path: path.to_owned(), listener: Some(listener) })
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
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}

/// The socket's file gets the mode that the socket has when it is bound (Linux). The umask would do as well, but it is
/// the whole process's, and other threads make files meanwhile.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::from_raw_mode(0o600))?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)
}

async fn remove_stale(path: &Path) -> Result<()> {
    let meta = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("looking at the socket {}", path.display()))?,
    };
    if !meta.file_type().is_socket() {
        bail!(
            "{} is not a socket; it was left as it is. Remove it or configure another socket",
            path.display()
        );
    }
    if answers(path).await? {
        bail!("another process answers on {}; it was left as it is. Stop it first", path.display());
    }
    tracing::info!(path = %path.display(), "removing a stale socket: nobody answers on it");
    std::fs::remove_file(path).with_context(|| format!("removing the stale socket {}", path.display()))
}

/// Whether somebody has the socket open, and keeps it open.
async fn answers(path: &Path) -> Result<bool> {
    let begun = Instant::now();
    while begun.elapsed() < LEFT_OPEN {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(false),
            other => other.with_context(|| format!("finding out who owns the socket {}", path.display()))?,
        };
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
