//! How a mounted file system is: what the kernel says of it, not what was noted.

use std::fs;
use std::path::{Path, PathBuf};

use provisioners::Condition;

use super::loopdev;
use super::mountinfo::Mount;

/// What is said of a file system that the kernel has shut down.
pub const SHUT_DOWN: &str = "the kernel has shut the file system down after an error; see the kernel's log, then unstage \
                             and stage the volume so that it is checked";

/// Its condition. The first trouble that is found is told.
pub fn condition(mount: &Mount<'_>) -> Condition {
    condition_by(Path::new("/sys"), mount)
}

fn condition_by(sys: &Path, mount: &Mount<'_>) -> Condition {
    let trouble = frozen_in_error(mount).or_else(|| counted(sys, mount)).or_else(|| without_file(mount));
    trouble.map_or_else(Condition::healthy, Condition::abnormal)
}

/// What its options tell: it was shut down (`shutdown`), or made read only by the kernel and not by who mounted it. Newer
/// kernels leave `rw` in ext4's options and add `emergency_ro`.
fn frozen_in_error(mount: &Mount<'_>) -> Option<String> {
    let has = |option: &str| mount.super_options.split(',').any(|o| o == option);
    if has("shutdown") {
        return Some(SHUT_DOWN.to_owned());
    }
    let read_only = has("emergency_ro") || (mount.is_super_read_only() && !mount.has_option("ro"));
    read_only.then(|| {
        "the kernel has made the file system read only, usually after an I/O error; see the kernel's log, \
         then unstage and stage the volume so that it is checked"
            .to_owned()
    })
}

/// Errors that the file system has counted since it was last checked (ext4), or since ever (btrfs).
fn counted(sys: &Path, mount: &Mount<'_>) -> Option<String> {
    match &*mount.fs_type {
        "ext4" => {
            let (major, minor) = mount.device;
            let device = fs::read_link(sys.join(format!("dev/block/{major}:{minor}"))).ok()?;
            let dir = sys.join("fs/ext4").join(device.file_name()?);
            let read = |name: &str| Some(fs::read_to_string(dir.join(name)).ok()?.trim().to_owned());
            let count = read("errors_count").filter(|count| count != "0")?;
            let function = read("last_error_func").unwrap_or_default();
            Some(format!(
                "ext4 has met {count} errors in its own data (the last in {function}); unstage the volume, keep a copy of \
                 it, and run `e2fsck -f` on its device"
            ))
        }
        "btrfs" => {
            let name = Path::new(&*mount.source).file_name()?;
            let device = statistics_of(&sys.join("fs/btrfs"), Path::new(name))?;
            let errors: Vec<_> = fs::read_to_string(device)
                .ok()?
                .lines()
                .filter_map(|line| line.split_once(' ').filter(|(_, count)| *count != "0"))
                .map(|(kind, count)| format!("{kind} {count}"))
                .collect();
            (!errors.is_empty()).then(|| {
                format!(
                    "btrfs has counted errors of its device: {}; see `btrfs device stats`, and scrub the file system",
                    errors.join(", ")
                )
            })
        }
        _ => None,
    }
}

/// The error counts of a file system that has one device, by that device's name.
fn statistics_of(all: &Path, device: &Path) -> Option<PathBuf> {
    let of = |entry: fs::DirEntry| entry.path().join("devices").join(device).exists().then(|| entry.path());
    let own = fs::read_dir(all).ok()?.flatten().find_map(of)?;
    let members = fs::read_dir(own.join("devinfo")).ok()?.flatten();
    members.map(|member| member.path().join("error_stats")).find(|path| path.exists())
}

/// A loop device whose file is gone.
fn without_file(mount: &Mount<'_>) -> Option<String> {
    let gone =
        loopdev::attached(Path::new(&*mount.source)).ok().flatten().filter(loopdev::Loop::is_deleted)?;
    Some(format!(
        "the backing file of {} was removed: {}; copy the data away before the volume is unmounted",
        gone.device.display(),
        gone.shown.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo;
    use super::*;

    fn mount(fs_type: &str, options: &str) -> Mount<'static> {
        let line = format!("36 35 7:3 / /target rw,relatime shared:1 - {fs_type} /dev/loop-none {options}\n");
        mountinfo::select(line.as_bytes(), |_| true).unwrap().remove(0)
    }

    /// /sys as the kernel has it, for a device that is not there.
    fn sys(ext4_errors: &str, btrfs_errors: &str) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        let at = |path: &str| sys.path().join(path);
        for dir in
            ["dev/block", "fs/ext4/loop-none", "fs/btrfs/uuid/devices/loop-none", "fs/btrfs/uuid/devinfo/1"]
        {
            fs::create_dir_all(at(dir)).unwrap();
        }
        std::os::unix::fs::symlink("../../devices/virtual/block/loop-none", at("dev/block/7:3")).unwrap();
        fs::write(at("fs/ext4/loop-none/errors_count"), ext4_errors).unwrap();
        fs::write(at("fs/ext4/loop-none/last_error_func"), "ext4_lookup\n").unwrap();
        fs::write(at("fs/btrfs/uuid/devinfo/1/error_stats"), btrfs_errors).unwrap();
        sys
    }

    #[test]
    fn what_the_file_system_has_counted_is_told() {
        let good = sys("0\n", "write_errs 0\nread_errs 0\n");
        let bad = sys("3\n", "write_errs 2\nread_errs 0\n");
        for (fs, words) in [("ext4", ["3 errors", "ext4_lookup"]), ("btrfs", ["write_errs 2", "scrub"])] {
            assert!(!condition_by(good.path(), &mount(fs, "rw")).abnormal, "{fs}");
            let told = condition_by(bad.path(), &mount(fs, "rw"));
            assert!(told.abnormal && words.iter().all(|word| told.message.contains(word)), "{told:?}");
        }
        assert!(!condition_by(bad.path(), &mount("xfs", "rw")).abnormal);
    }

    #[test]
    fn what_the_kernel_has_ended_is_told_in_each_of_its_ways() {
        let sys = sys("0\n", "");
        for (options, word) in
            [("ro,errors=remount-ro", "read only"), ("rw,emergency_ro", "read only"), ("rw,shutdown", "shut")]
        {
            let told = condition_by(sys.path(), &mount("ext4", options));
            assert!(told.abnormal && told.message.contains(word), "{options}: {told:?}");
        }
    }
}
