use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use super::*;

/// The modules that walk trees in which users can exchange any name.
const WALKS: [&str; 7] = [
    "provisioners/src/tree.rs",
    "provisioners/src/local/walk.rs",
    "provisioners/src/local/copytree.rs",
    "provisioners/src/local/remove.rs",
    "provisioners/src/local/xattrs.rs",
    "provisioners/src/nfs/local.rs",
    "csi/src/host/ownership.rs",
];

/// Calls that take a path and look at, change or open what is there at that moment.
const BY_PATH: [&str; 24] = [
    "fs::read(",
    "fs::read_dir",
    "fs::read_to_string",
    "fs::read_link",
    "fs::write",
    "fs::metadata",
    "fs::symlink_metadata",
    "fs::remove",
    "fs::rename",
    "fs::copy",
    "fs::hard_link",
    "fs::create_dir",
    "fs::canonicalize",
    "fs::set_permissions",
    "fs::exists",
    "fs::chown",
    "fs::lchown",
    "File::open",
    "File::create",
    "OpenOptions",
    ".exists()",
    ".is_symlink(), ",
    "walkdir",
    "glob::",
];

/// Calls that walk, or that give a file other rights, by a path: in all code beside those modules each is listed here, with
/// what vouches for its path.
const TREES: [&str; 6] =
    ["read_dir(", "remove_dir_all(", "set_permissions(", "fs::copy(", "chmod(", "chown("];

/// File, call, how often. What a call names in sysfs or procfs literally needs no line.
const VOUCHED: &[(&str, &str, usize)] = &[
    // The driver's own directory of records.
    ("provisioners/src/local/list.rs", "read_dir(", 1),
    // The driver's own state directory.
    ("provisioners/src/nfs/learnt.rs", "read_dir(", 1),
    // By a descriptor.
    ("provisioners/src/local/create.rs", "chmod(", 1),
    ("provisioners/src/local/create.rs", "chown(", 1),
    ("csi/src/host/stage.rs", "chmod(", 1),
    // sysfs and procfs.
    ("provisioners/src/cinder/limit.rs", "read_dir(", 1),
    ("provisioners/src/cinder/iso.rs", "read_dir(", 1),
    ("provisioners/src/cinder/disks.rs", "read_dir(", 1),
    ("csi/src/host/rbd/krbd.rs", "read_dir(", 1),
    ("csi/src/host/condition.rs", "read_dir(", 2),
    // Kubelet's own directory of pods.
    ("csi/src/host/orphans.rs", "read_dir(", 1),
    // The driver's own state directory, and procfs.
    ("provisioners/src/cinder/notes.rs", "read_dir(", 1),
    ("csi/src/host/freeze/marker.rs", "read_dir(", 1),
    ("csi/src/host/staged.rs", "read_dir(", 1),
    ("csi/src/host/mounts.rs", "read_dir(", 1),
    ("csi/src/host/rbd/fuse.rs", "read_dir(", 1),
    ("csi/src/host/rbd/mod.rs", "read_dir(", 1),
    ("csi/src/host/rbd/mod.rs", "remove_dir_all(", 1),
    ("csi/src/host/users.rs", "read_dir(", 2),
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A source's lines without comments and without its tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !name.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

#[test]
fn trees_of_users_are_walked_by_descriptors_only() {
    for file in WALKS {
        let code = code(&workspace().join(file));
        for call in BY_PATH {
            assert!(
                !code.contains(call),
                "{file} calls {call}: a user may have exchanged the name; open and use the inode"
            );
        }
    }
}

#[test]
fn a_new_walk_by_path_must_say_what_vouches_for_its_path() {
    let (root, mut all) = (workspace(), Vec::new());
    for dir in ["provisioners/src/local", "provisioners/src/nfs", "provisioners/src/cinder", "csi/src/host"] {
        sources(&root.join(dir), &mut all);
    }
    let mut found = Vec::new();
    for path in &all {
        let file = path.strip_prefix(&root).unwrap().to_str().unwrap();
        if WALKS.contains(&file) {
            continue;
        }
        let code = code(path);
        for call in TREES {
            let kernel = ["(\"/proc", "(\"/sys"]
                .map(|at| code.matches(&format!("{}{at}", call.trim_end_matches('('))).count());
            let count = code.matches(call).count() - kernel.iter().sum::<usize>();
            if count > 0 {
                found.push((file.to_owned(), call, count));
            }
        }
    }
    for (file, call, count) in &found {
        let allowed = VOUCHED.iter().find(|(f, c, _)| f == file && c == call).map_or(0, |(.., n)| *n);
        let what = "walk by crate::tree, or list it with what vouches for its path";
        assert!(*count <= allowed, "{file} has {count} calls of {call}, {allowed} are known: {what}");
    }
}

#[test]
fn a_directory_deeper_than_any_path_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let top = open_top(dir.path()).unwrap();
    let (mut at, mut path) = (top.try_clone().unwrap(), PathBuf::new());
    let name = std::ffi::CString::new("d".repeat(200)).unwrap();
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
        at = open_below(&at, &name).unwrap().unwrap();
        path.push(OsStr::from_bytes(name.to_bytes()));
    }
    let found = open_deep(&top, &path).unwrap().unwrap();
    assert_eq!(found.metadata().unwrap().ino(), at.metadata().unwrap().ino());
    assert!(open_deep(&top, &path.join("no")).unwrap().is_none());
    std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
    assert!(open_deep(&top, Path::new("link")).unwrap().is_none());
}
