//! Copying extended attributes, ACLs among them.

use rustix::fs::{XattrFlags, getxattr, getxattr_query, listxattr, listxattr_query, setxattr};
use rustix::io::Errno;

use super::walk::Trouble;
use crate::Error;

/// Copies all extended attributes between two files. One that the target's file system cannot keep:
/// [`Error::Unsupported`], for a copy without it would not be one; but SELinux labels are a matter of the node's policy.
pub(super) fn copy(from: &str, to: &str) -> Result<(), Trouble> {
    for name in names(from)? {
        let Some(value) = value(from, &name)? else {
            continue;
        };
        match setxattr(to, name.as_slice(), &value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) if name == b"security.selinux" => {}
            Err(Errno::OPNOTSUPP) => {
                return Err(Trouble::Said(Error::Unsupported(format!(
                    "the target's file system cannot keep the extended attribute {}; use another root",
                    String::from_utf8_lossy(&name)
                ))));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The names; they can become more between the question for the size and the one for the names.
fn names(of: &str) -> rustix::io::Result<Vec<Vec<u8>>> {
    loop {
        let size = match listxattr_query(of) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            size => size?,
        };
        let mut list = vec![0_u8; size];
        match listxattr(of, &mut list[..]) {
            Ok(size) => {
                let names = list[..size].split(|byte| *byte == 0);
                return Ok(names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect());
            }
            Err(Errno::RANGE) => {}
            Err(e) => return Err(e),
        }
    }
}

/// A value; `None`: it was removed meanwhile.
fn value(of: &str, name: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    loop {
        let size = match getxattr_query(of, name) {
            Err(Errno::NODATA) => return Ok(None),
            size => size?,
        };
        if size == 0 {
            return Ok(Some(Vec::new()));
        }
        let mut value = vec![0_u8; size];
        match getxattr(of, name, &mut value[..]) {
            Ok(size) => {
                value.truncate(size);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}
