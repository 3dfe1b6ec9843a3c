//! Targets: absolute, without `..`, and without a symbolic link that could lead a mount elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use provisioners::{Ctx, Error, Result};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, ResolveFlags, flock, openat2};
use rustix::io::Errno;

use super::mounts;

/// Checks and makes targets. Kubelet's own directory may be (or be reached by) a symbolic link: it is resolved once.
#[derive(Debug, Clone)]
pub struct Paths {
    kubelet: PathBuf,
    real: PathBuf,
}

/// What a target should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, for file systems.
    Directory,
    /// A file, for block devices.
    File,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::File => "file",
        }
    }
}

impl Paths {
    /// `kubelet` is kubelet's directory as it names it in requests.
    pub fn new(kubelet: &Path) -> Self {
        let real = kubelet.canonicalize().unwrap_or_else(|_| kubelet.to_owned());
        Self { kubelet: kubelet.to_owned(), real }
    }

    /// Kubelet's directory without symbolic links.
    pub fn real_kubelet(&self) -> &Path {
        &self.real
    }

    /// The path without symbolic links. One on the way: [`Error::Invalid`] that names it. What does not exist yet is
    /// no obstacle.
    pub fn resolve(&self, field: &str, path: &Path) -> Result<PathBuf> {
        if path.components().any(|c| matches!(c, Component::ParentDir)) || !path.is_absolute() {
            let problem = format!("{} must be absolute and without \"..\"", path.display());
            return Err(Error::invalid(field, problem));
        }
        if let Some(long) = path.components().find(|c| c.as_os_str().len() > 255) {
            let problem =
                format!("the component {:.40}… has more than 255 bytes", long.as_os_str().to_string_lossy());
            return Err(Error::invalid(field, problem));
        }
        let path = match path.strip_prefix(&self.kubelet) {
            Ok(rest) => self.real.join(rest),
            Err(_) => path.components().collect(),
        };
        // What is mounted there is no link, and looking at it could hang with its server.
        let mounted = !mounts::on(&path)?.is_empty();
        let looked = if mounted { path.parent().unwrap_or(&path) } else { &path };
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if openat2(CWD, looked, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).err() == Some(Errno::NOTDIR)
        {
            let problem = format!("{}: something on the way is not a directory", path.display());
            return Err(Error::invalid(field, problem));
        }
        // The walk names the link that the kernel found, and does the kernel's work where openat2(2) is missing.
        refuse_links(field, looked)?;
        Ok(path)
    }
}

/// Makes the target unless it is there; a target of the other kind is left alone and refused.
pub fn make(field: &str, path: &Path, kind: Kind) -> Result<()> {
    let doing = || format!("{field}: making {}", path.display());
    let made = match kind {
        Kind::Directory => fs::DirBuilder::new().mode(0o750).create(path),
        Kind::File => {
            use std::os::unix::fs::OpenOptionsExt as _;
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
        }
    };
    match made {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => is_kind(field, path, kind),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let problem =
                format!("{}: the directory it is in does not exist; make that first", path.display());
            Err(Error::invalid(field, problem))
        }
        Err(error) => Err(Error::io(doing(), error)),
    }
}

/// Checks that what is at the path is of the kind.
fn is_kind(field: &str, path: &Path, kind: Kind) -> Result<()> {
    let meta =
        fs::symlink_metadata(path).map_err(|e| Error::io(format!("{field}: {}", path.display()), e))?;
    let right = match kind {
        Kind::Directory => meta.is_dir(),
        // A published block device shows as the device that is mounted on the file.
        Kind::File => !meta.is_dir() && !meta.is_symlink(),
    };
    if right {
        return Ok(());
    }
    let problem = format!("{} exists and is not a {}; it was left as it is", path.display(), kind.name());
    Err(Error::invalid(field, problem))
}

/// Removes a target that nothing is mounted on: an empty directory or an empty file. Gone already is fine; anything
/// with content is left alone and refused.
pub fn remove_target(path: &Path) -> Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| Error::io(format!("target_path: {}", path.display()), e))?,
    };
    let removed = if meta.is_dir() {
        fs::remove_dir(path)
    } else if meta.is_file() && meta.len() == 0 {
        fs::remove_file(path)
    } else {
        return Err(Error::Refused(format!(
            "target_path: {} is not an empty directory or file, and nothing is mounted there; it was left as it is",
            path.display()
        )));
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(Error::Refused(format!(
            "target_path: nothing is mounted on {}, but it has content that is not the volume's; move it away",
            path.display()
        ))),
        other => other.map_err(|e| Error::io(format!("removing {}", path.display()), e)),
    }
}

/// Whether nothing is at a path, not even a symbolic link. What cannot be looked at is an error.
pub fn is_absent(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(Error::io(format!("looking at {}", path.display()), error)),
    }
}

/// Locks a directory of ours until the file is dropped, against all processes (flock(2)), waiting no longer than the call
/// may.
pub fn lock_in_time(ctx: &Ctx, dir: &Path) -> Result<fs::File> {
    loop {
        if let Some(file) = try_lock(dir)? {
            return Ok(file);
        }
        ctx.check()?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same without any wait; `None`: another has it.
pub fn try_lock(dir: &Path) -> Result<Option<fs::File>> {
    let doing = || format!("locking {}", dir.display());
    let file = fs::File::open(dir).map_err(|e| Error::io(doing(), e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(Error::io(doing(), errno)),
    }
}

/// Walks from the root and names the first symbolic link.
fn refuse_links(field: &str, path: &Path) -> Result<()> {
    let mut walked = PathBuf::new();
    for component in path.components() {
        walked.push(component.as_os_str());
        match fs::symlink_metadata(&walked) {
            Ok(meta) if meta.is_symlink() => {
                let name: &OsStr = component.as_os_str();
                let problem = format!(
                    "{} is a symbolic link (component {:?}); a mount must not be led elsewhere",
                    walked.display(),
                    name.to_string_lossy()
                );
                return Err(Error::invalid(field, problem));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(format!("{field}: {}", walked.display()), error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_named_and_kubelets_own_directory_may_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("disk/kubelet/pods")).unwrap();
        symlink(root.join("disk/kubelet"), root.join("kubelet")).unwrap();
        symlink("/etc", root.join("disk/kubelet/pods/evil")).unwrap();
        let paths = Paths::new(&root.join("kubelet"));
        let good = paths.resolve("target_path", &root.join("kubelet/pods/a/b")).unwrap();
        assert_eq!(good, root.join("disk/kubelet/pods/a/b"));
        for bad in ["kubelet/pods/evil", "kubelet/pods/evil/passwd"] {
            let error = paths.resolve("target_path", &root.join(bad)).unwrap_err().to_string();
            assert!(
                error.starts_with("target_path: ") && error.contains("evil is a symbolic link"),
                "{error}"
            );
        }
        let error = Paths::new(Path::new("/nowhere")).resolve("x", &root.join("kubelet/pods")).unwrap_err();
        assert!(
            error.to_string().contains("symbolic link"),
            "outside kubelet's directory no link is allowed: {error}"
        );
    }

    #[test]
    fn climbing_and_long_names_are_refused() {
        let paths = Paths::new(Path::new("/var/lib/kubelet"));
        for bad in ["/a/../b", "a/b", &format!("/{}", "x".repeat(256))] {
            assert_eq!(paths.resolve("p", Path::new(bad)).unwrap_err().label(), "invalid", "{bad}");
        }
    }

    #[test]
    fn the_wrong_kind_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
        fs::write(&file, "mine").unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(
            make("target_path", &file, Kind::Directory).unwrap_err().to_string().contains("not a directory")
        );
        assert!(make("target_path", &folder, Kind::File).unwrap_err().to_string().contains("not a file"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    }

    #[test]
    fn only_what_is_empty_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (full, empty, file) =
            (dir.path().join("full"), dir.path().join("empty"), dir.path().join("file"));
        fs::create_dir_all(full.join("data")).unwrap();
        fs::create_dir(&empty).unwrap();
        fs::write(&file, "data").unwrap();
        assert_eq!(remove_target(&full).unwrap_err().label(), "refused");
        assert_eq!(remove_target(&file).unwrap_err().label(), "refused");
        remove_target(&empty).unwrap();
        remove_target(&empty).unwrap();
        assert!(full.join("data").exists() && file.exists() && !empty.exists());
    }
}
