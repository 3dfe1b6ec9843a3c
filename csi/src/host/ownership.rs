//! CSI `volume_mount_group`: the files of a volume belong to a group, as kubelet does it for `fsGroup`.
//!
//! Pods write in the tree meanwhile, so no name is trusted twice: a file is opened below its directory without touching it
//! (O_PATH), and what is looked at and changed is that inode.

use std::ffi::{CStr, OsStr};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use provisioners::tree::{fd_path, is_dot, open_deep, open_node, open_top};
use provisioners::{Ctx, Error, Result};
use rustix::fs::{AtFlags, Dir, Gid, Mode, chmod, chownat};
use rustix::io::Errno;

const GROUP_RW: u32 = 0o060;
const GROUP_X: u32 = 0o010;
const SETGID: u32 = 0o2000;

/// Gives everything below `root` to the group: readable and writable for it, new files in directories inherit it.
/// The root comes last and is what tells that all was done, so a call that was interrupted is taken up again, and one
/// that is repeated costs a single stat. Symbolic links are not followed, other file systems not entered, and what is
/// removed meanwhile is no error.
pub fn give_to_group(ctx: &Ctx, root: &Path, gid: u32) -> Result<()> {
    let failed = |path: &Path, e: io::Error| {
        Error::io(format!("giving {} to group {gid}", root.join(path).display()), e)
    };
    let top = open_top(root).map_err(|e| failed(Path::new(""), e))?;
    let meta = top.metadata().map_err(|e| failed(Path::new(""), e))?;
    let bits = SETGID | GROUP_RW | GROUP_X;
    if meta.gid() == gid && meta.mode() & bits == bits {
        return Ok(());
    }
    ctx.stage(format!("giving the files to group {gid}"));
    // Paths, not descriptors: a tree may be deeper than a process may have files open.
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        ctx.check()?;
        if let Some(dir) = open_deep(&top, &path).map_err(|e| failed(&path, e))? {
            directory(&dir, &path, gid, &mut left).map_err(|e| failed(&path, e))?;
        }
    }
    change(&top, &meta, gid).map_err(|e| failed(Path::new(""), e))
}

/// Changes what is in a directory, and adds the directories among that to those that are left.
fn directory(dir: &File, path: &Path, gid: u32, left: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = Dir::read_from(dir)?;
    while let Some(entry) = entries.read() {
        let entry = match entry {
            // The directory itself was removed.
            Err(Errno::NOENT | Errno::STALE) => return Ok(()),
            other => other?,
        };
        let name = entry.file_name();
        if !is_dot(name) && give(dir, name, gid)? {
            left.push(path.join(OsStr::from_bytes(name.to_bytes())));
        }
    }
    Ok(())
}

/// Changes one entry; whether it is a directory to go into.
fn give(dir: &File, name: &CStr, gid: u32) -> io::Result<bool> {
    let node = match open_node(dir, name) {
        // Something is mounted there.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => return Ok(false),
        other => other?,
    };
    let Some(node) = node else { return Ok(false) };
    let changed = node.metadata().and_then(|meta| change(&node, &meta, gid).map(|()| meta.is_dir()));
    match changed {
        Err(error) if error.raw_os_error() == Some(Errno::STALE.raw_os_error()) => Ok(false),
        other => other,
    }
}

/// Changes an inode that is held open. Set-id bits stay as they are, as with kubelet: the owner is not changed, and the
/// group's members are whom the file was given to.
fn change(node: &File, meta: &Metadata, gid: u32) -> io::Result<()> {
    if meta.gid() != gid {
        chownat(node, c"", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
    }
    if meta.is_symlink() {
        return Ok(());
    }
    // chown(2) clears set-id bits, so the mode comes second.
    let mut mode = meta.mode() & 0o7777 | GROUP_RW;
    if meta.is_dir() {
        mode |= SETGID | GROUP_X;
    } else if mode & 0o100 != 0 {
        mode |= GROUP_X;
    }
    Ok(chmod(fd_path(node), Mode::from_raw_mode(mode))?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn files_directories_and_links_get_the_group() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: ownership needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (sub, file, link) =
            (dir.path().join("sub"), dir.path().join("sub/file"), dir.path().join("link"));
        fs::create_dir(&sub).unwrap();
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        let before = fs::metadata("/etc/passwd").unwrap().gid();
        give_to_group(&Ctx::new(), dir.path(), 4242).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().gid(), 4242);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o660);
        assert_eq!(fs::metadata(&sub).unwrap().mode() & 0o2070, 0o2070);
        assert_eq!(fs::symlink_metadata(&link).unwrap().gid(), 4242);
        assert_eq!(fs::metadata("/etc/passwd").unwrap().gid(), before, "the link was not followed");
    }

    #[test]
    fn a_root_that_is_right_already_is_not_walked() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: ownership needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        give_to_group(&Ctx::new(), dir.path(), 4242).unwrap();
        let later = dir.path().join("later");
        fs::write(&later, "x").unwrap();
        std::os::unix::fs::chown(&later, None, Some(0)).unwrap();
        give_to_group(&Ctx::new(), dir.path(), 4242).unwrap();
        assert_eq!(fs::metadata(&later).unwrap().gid(), 0);
    }

    /// A pod exchanges a file of its own and a link to one outside, as fast as it can.
    #[test]
    fn a_name_that_is_exchanged_for_a_link_meanwhile_leads_nowhere() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: ownership needs root");
            return;
        }
        let (volume, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(outside.path().join("dir")).unwrap();
        let inside = outside.path().join("dir/file");
        fs::write(&inside, "x").unwrap();
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o600)).unwrap();
        for (i, kind) in (0..64).zip(["file", "dir"].into_iter().cycle()) {
            let at = |name: &str| volume.path().join(format!("{kind}-{i}-{name}"));
            if kind == "dir" {
                fs::create_dir(at("a")).unwrap();
                fs::write(at("a").join("file"), "x").unwrap();
                std::os::unix::fs::symlink(outside.path().join("dir"), at("b")).unwrap();
            } else {
                fs::write(at("a"), "x").unwrap();
                fs::set_permissions(at("a"), fs::Permissions::from_mode(0o4777)).unwrap();
                std::os::unix::fs::symlink(&secret, at("b")).unwrap();
            }
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use rustix::fs::{CWD, RenameFlags, renameat_with};
                while !done.load(Ordering::Relaxed) {
                    for i in 0..64 {
                        let kind = if i % 2 == 0 { "file" } else { "dir" };
                        let at = |name: &str| volume.path().join(format!("{kind}-{i}-{name}"));
                        renameat_with(CWD, at("a"), CWD, at("b"), RenameFlags::EXCHANGE).unwrap();
                    }
                }
            });
            for round in 0..300 {
                give_to_group(&Ctx::new(), volume.path(), 4242 + round).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        for path in [&secret, &inside] {
            let meta = fs::metadata(path).unwrap();
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o600, 0), "{} was changed", path.display());
        }
    }

    #[test]
    fn deep_trees_pipes_and_files_that_vanish_are_no_obstacle() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skip: ownership needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_path_buf();
        // Deeper than the 1024 descriptors that a process may have.
        (0..1500).for_each(|_| deep.push("d"));
        fs::create_dir_all(&deep).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, deep.join("pipe"), rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let path = dir.path().join("comes-and-goes");
                while !done.load(Ordering::Relaxed) {
                    fs::create_dir_all(path.join("x")).unwrap();
                    fs::remove_dir_all(&path).unwrap();
                }
            });
            for round in 0..5 {
                give_to_group(&Ctx::new(), dir.path(), 4242 + round).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::symlink_metadata(deep.join("pipe")).unwrap().gid(), 4246);
    }
}
