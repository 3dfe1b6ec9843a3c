//! CSI `volume_mount_group`: the files of a volume belong to a group, as kubelet does it for `fsGroup`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use provisioners::{Ctx, Error, Result};
use rustix::fs::{AtFlags, CWD, Gid, chownat};

const GROUP_RW: u32 = 0o060;
const GROUP_X: u32 = 0o010;
const SETGID: u32 = 0o2000;

/// Gives everything below `root` to the group: readable and writable for it, new files in directories inherit it.
/// The root comes last and is what tells that all was done, so a call that was interrupted is taken up again, and one
/// that is repeated costs a single stat. Symbolic links are not followed, other file systems not entered.
pub fn give_to_group(ctx: &Ctx, root: &Path, gid: u32) -> Result<()> {
    let top = stat(root)?;
    let bits = SETGID | GROUP_RW | GROUP_X;
    if top.gid() == gid && top.mode() & bits == bits {
        return Ok(());
    }
    ctx.stage(format!("giving the files to group {gid}"));
    let mut left = vec![root.to_path_buf()];
    while let Some(dir) = left.pop() {
        ctx.check()?;
        let entries = fs::read_dir(&dir).map_err(|e| Error::io(format!("reading {}", dir.display()), e))?;
        for entry in entries {
            let path = entry.map_err(|e| Error::io(format!("reading {}", dir.display()), e))?.path();
            let meta = stat(&path)?;
            if meta.dev() != top.dev() {
                continue;
            }
            change(&path, &meta, gid)?;
            if meta.is_dir() {
                left.push(path);
            }
        }
    }
    change(root, &top, gid)
}

fn stat(path: &Path) -> Result<fs::Metadata> {
    fs::symlink_metadata(path).map_err(|e| Error::io(format!("looking at {}", path.display()), e))
}

fn change(path: &Path, meta: &fs::Metadata, gid: u32) -> Result<()> {
    let doing = || format!("giving {} to group {gid}", path.display());
    if meta.gid() != gid {
        let group = Some(Gid::from_raw(gid));
        chownat(CWD, path, None, group, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Error::io(doing(), e))?;
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
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| Error::io(doing(), e))
}

#[cfg(test)]
mod tests {
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
}
