//! What a node must have before it is used, by backend.

use std::fs::{self, File};
use std::path::Path;

use provisioners::{Error, Result};

use super::mountinfo::Mount;
use super::{Host, mounts};

/// By what loop devices are asked for.
const LOOP_CONTROL: &str = "/dev/loop-control";
/// File systems of other machines: their locks, their holes and what is on disk after a crash are not those of a disk,
/// and other machines may write to them.
const NETWORK: [&str; 11] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "afs",
    "lustre",
    "fuse.ceph-fuse",
    "fuse.glusterfs",
    "fuse.s3fs",
    "fuse.sshfs",
];

impl Host {
    /// What the node role of a backend of this kind cannot do without.
    pub fn check(&self, kind: &str) -> Result<()> {
        if kind == "local" {
            self.check_loop_devices()?;
        }
        // Directories of a share are mounted by the kernel alone.
        let programs: &[&'static str] = match kind {
            "nfs" => &[],
            _ => &["mkfs.ext4", "e2fsck", "resize2fs", "blockdev", "sh"],
        };
        programs.iter().try_for_each(|program| self.tools.path(program).map(drop))
    }

    /// Whether this node has loop devices, which local volumes are attached as.
    pub fn check_loop_devices(&self) -> Result<()> {
        File::open(LOOP_CONTROL).map(drop).map_err(|error| {
            Error::Refused(format!(
                "{LOOP_CONTROL}: {error}: local volumes need loop devices: load the kernel module loop on the node, and give the driver's container the node's /dev and the right to use it (privileged: true)"
            ))
        })
    }

    /// Whether a local root is on a file system of this node. The mount table is asked, and the file system only if it
    /// is one of the node's own: a server that does not answer holds nobody up.
    pub fn check_root(&self, name: &str, root: &Path) -> Result<()> {
        check_own(name, root)?;
        // Through symbolic links, too; of what is not made yet the part that is there.
        let there = root.ancestors().find_map(|path| fs::canonicalize(path).ok().map(|real| (path, real)));
        let real = there.map(|(path, real)| match root.strip_prefix(path) {
            Ok(rest) => real.join(rest),
            Err(_) => real,
        });
        real.filter(|real| real != root).map_or(Ok(()), |real| check_own(name, &real))
    }
}

fn check_own(name: &str, root: &Path) -> Result<()> {
    let mounts = mounts::select(|mount| root.starts_with(&mount.target))?;
    let Some(mount) = holder(&mounts).filter(|mount| NETWORK.contains(&&*mount.fs_type)) else {
        return Ok(());
    };
    Err(Error::invalid(
        format!("roots[{name:?}]"),
        format!(
            "{} is on {} ({}), a file system of another machine, where volumes can neither be locked nor survive a crash as on a disk; use a directory on a disk of this node{}",
            root.display(),
            mount.source.to_string_lossy(),
            mount.fs_type,
            if mount.fs_type.starts_with("nfs") { ", or a backend of type nfs for the share" } else { "" }
        ),
    ))
}

/// Of the mounts above a path the one that it is on: the deepest, and of several on one directory the last.
fn holder<'a, 'm>(above: &'a [Mount<'m>]) -> Option<&'a Mount<'m>> {
    above.iter().max_by_key(|mount| mount.target.components().count())
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo::select;
    use super::*;

    const TABLE: &[u8] = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
        2 1 0:30 / /srv rw - nfs4 nas:/export rw\n\
        3 2 8:2 / /srv/disk rw - xfs /dev/sdb1 rw\n\
        4 1 8:3 / /over rw - ext4 /dev/sdc1 rw\n\
        5 4 0:31 / /over rw - cifs //nas/share rw\n";

    fn network(path: &str) -> Option<String> {
        let above = select(TABLE, |mount| Path::new(path).starts_with(&mount.target)).unwrap();
        let mount = holder(&above).filter(|mount| NETWORK.contains(&&*mount.fs_type));
        mount.map(|mount| mount.fs_type.to_string())
    }

    #[test]
    fn a_path_is_on_the_deepest_and_last_mount_above_it() {
        assert_eq!(network("/srv/volumes").as_deref(), Some("nfs4"));
        assert_eq!(network("/over/volumes").as_deref(), Some("cifs"));
        for own in ["/var/lib/volumes", "/srv/disk/volumes", "/srvother"] {
            assert_eq!(network(own), None, "{own}");
        }
    }

    #[test]
    fn a_root_of_this_machine_is_taken_also_before_it_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(crate::host::HostOptions::default());
        host.check_root("a", dir.path()).unwrap();
        host.check_root("a", &dir.path().join("not/yet")).unwrap();
    }

    #[test]
    fn a_node_needs_what_its_backend_uses() {
        let mut host = Host::new(crate::host::HostOptions::default());
        host.tools = super::super::runner::Tools::only("sh", Path::new("/bin/sh"));
        host.check("nfs").unwrap();
        let missing = host.check("cinder").unwrap_err().to_string();
        assert!(missing.contains("mkfs.ext4 is not installed"), "{missing}");
    }
}
