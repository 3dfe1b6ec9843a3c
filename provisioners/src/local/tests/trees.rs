use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, getxattr, mkfifoat, mknodat, setxattr};

use super::super::copytree::{copy_in_rounds, copy_tree};
use super::super::remove::remove_tree;
use super::*;

struct Tree {
    dir: TempDir,
}

impl Tree {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("from")).unwrap();
        Self { dir }
    }

    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    fn copy(&self) -> Result<()> {
        copy_tree(&Ctx::new(), &self.dir.path().join("from"), &self.dir.path().join("to")).map(drop)
    }
}

#[test]
fn everything_that_makes_a_file_is_kept() {
    let tree = Tree::new();
    std::fs::create_dir(tree.from("sub")).unwrap();
    std::fs::write(tree.from("sub/file"), "data").unwrap();
    std::os::unix::fs::chown(tree.from("sub/file"), Some(1000), Some(2000)).unwrap();
    std::fs::set_permissions(tree.from("sub/file"), PermissionsExt::from_mode(0o4751)).unwrap();
    setxattr(tree.from("sub/file"), "user.note", b"kept", XattrFlags::empty()).unwrap();
    std::fs::hard_link(tree.from("sub/file"), tree.from("again")).unwrap();
    symlink("/nowhere/at all", tree.from("link")).unwrap();
    std::os::unix::fs::lchown(tree.from("link"), Some(5), Some(6)).unwrap();
    mkfifoat(CWD, tree.from("pipe"), Mode::from_raw_mode(0o640)).unwrap();
    mknodat(CWD, tree.from("null"), FileType::CharacterDevice, Mode::RUSR, 0x103).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.from("socket")).unwrap();
    std::fs::set_permissions(tree.from("sub"), PermissionsExt::from_mode(0o1730)).unwrap();
    std::os::unix::fs::chown(tree.from("sub"), Some(7), Some(8)).unwrap();
    tree.copy().unwrap();

    for path in ["", "sub", "sub/file", "link", "pipe", "null"] {
        let (a, b) = (tree.from(path).symlink_metadata().unwrap(), tree.to(path).symlink_metadata().unwrap());
        let facts = |m: &std::fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), m.rdev());
        assert_eq!(facts(&a), facts(&b), "{path}");
    }
    let file = tree.to("sub/file").metadata().unwrap();
    assert_eq!((file.ino(), file.nlink()), (tree.to("again").metadata().unwrap().ino(), 2));
    let mut value = [0_u8; 16];
    let size = getxattr(tree.to("sub/file"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..size], b"kept");
    assert_eq!(std::fs::read(tree.to("sub/file")).unwrap(), b"data");
    assert_eq!(std::fs::read_link(tree.to("link")).unwrap(), Path::new("/nowhere/at all"));
    assert!(tree.to("pipe").symlink_metadata().unwrap().file_type().is_fifo());
    assert!(!tree.to("socket").exists());
}

#[test]
fn holes_stay_holes_and_links_are_not_followed() {
    let tree = Tree::new();
    let file = std::fs::File::create(tree.from("sparse")).unwrap();
    file.write_all_at(b"end", 64 << 20).unwrap();
    let secret = tree.dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("key"), "secret").unwrap();
    symlink(&secret, tree.from("way-out")).unwrap();
    tree.copy().unwrap();
    let meta = tree.to("sparse").metadata().unwrap();
    assert_eq!(meta.len(), (64 << 20) + 3);
    assert!(meta.blocks() * 512 < 1 << 20);
    assert!(tree.to("way-out").is_symlink());
}

#[test]
fn names_of_any_bytes_and_empty_directories_are_copied() {
    use std::os::unix::ffi::OsStrExt;
    let tree = Tree::new();
    let name = std::ffi::OsStr::from_bytes(b"\xff\n \\");
    std::fs::create_dir(tree.from("x").with_file_name(name)).unwrap();
    std::fs::write(tree.from("empty"), "").unwrap();
    tree.copy().unwrap();
    assert!(tree.to("x").with_file_name(name).is_dir());
    assert_eq!(tree.to("empty").metadata().unwrap().len(), 0);
}

#[test]
fn a_tree_that_changes_is_copied_anew_and_refused_when_it_never_rests() {
    let tree = Tree::new();
    std::fs::create_dir(tree.from("sub")).unwrap();
    std::fs::write(tree.from("sub/busy"), "0").unwrap();
    let (from, to) = (tree.dir.path().join("from"), tree.dir.path().join("to"));
    let changes: [fn(&Tree, u32); 4] = [
        |tree, n| std::fs::write(tree.from("sub/busy"), n.to_string()).unwrap(),
        |tree, n| std::fs::write(tree.from(&format!("sub/new{n}")), "x").unwrap(),
        |tree, n| std::fs::rename(tree.from("sub/busy"), tree.from(&format!("sub/moved{n}"))).unwrap_or(()),
        |tree, n| std::fs::set_permissions(tree.from("sub"), PermissionsExt::from_mode(0o700 + n)).unwrap(),
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut rounds = 0;
        copy_in_rounds(&Ctx::new(), &from, &to, || {
            rounds += 1;
            if rounds == 1 {
                change(&tree, rounds);
            }
        })
        .unwrap();
        assert_eq!(rounds, 2, "change {at}");
        assert_eq!(names(&tree.from("sub")), names(&tree.to("sub")));
    }
    let mut rounds = 0;
    let result = copy_in_rounds(&Ctx::new(), &from, &to, || {
        rounds += 1;
        std::fs::write(tree.from("sub/last"), rounds.to_string()).unwrap();
    });
    assert_eq!(rounds, 3);
    refused(result, "refused", "changed while it was copied");
}

#[test]
fn a_tree_too_deep_is_refused_and_removed() {
    let tree = Tree::new();
    let deep = tree.from(&vec!["d"; 210].join("/"));
    std::fs::create_dir_all(deep).unwrap();
    refused(tree.copy(), "refused", "more than 200 directories deep");
    remove_tree(&tree.dir.path().join("to")).unwrap();
    assert!(!tree.to("").exists());
}

#[test]
fn a_copy_can_be_stopped() {
    let tree = Tree::new();
    std::fs::write(tree.from("file"), "x").unwrap();
    let ctx = Ctx::new();
    ctx.stop();
    let result = copy_tree(&ctx, &tree.dir.path().join("from"), &tree.dir.path().join("to"));
    refused(result, "unavailable", "ended safely");
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn what_is_mounted_within_is_neither_copied_nor_removed() {
    let tree = Tree::new();
    std::fs::create_dir(tree.from("mnt")).unwrap();
    let precious = tree.dir.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "x").unwrap();
    if let Err(error) = rustix::mount::mount_bind(&precious, tree.from("mnt")) {
        eprintln!("skip: bind mounts are not possible here: {error}");
        return;
    }
    let guard = Mounted(tree.from("mnt"));
    refused(tree.copy(), "refused", "something is mounted there");
    refused(remove_tree(&tree.dir.path().join("from")), "refused", "something is mounted within it");
    assert!(precious.join("file").exists());
    drop(guard);
    remove_tree(&tree.dir.path().join("from")).unwrap();
    assert!(precious.join("file").exists());
}

#[test]
fn removing_what_is_not_there_is_fine_and_links_are_not_directories() {
    let tree = Tree::new();
    remove_tree(&tree.to("none")).unwrap();
    symlink(tree.from(""), tree.from("self")).unwrap();
    assert!(remove_tree(&tree.from("self")).is_err());
    assert!(tree.from("").exists());
}
