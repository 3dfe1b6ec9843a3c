//! What a directory is known by. A number (fileid) is given again as soon as its directory is gone (ext4: to the next
//! that is made), so the record of a volume keeps its file handle, which has the generation beside the number.
//!
//! A server may give other handles when an export is made anew, or to another version of the protocol. Then those of the
//! driver's own directories change, too, and in the same bytes: that is how a handle that changed is told from a
//! directory that was exchanged.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::client::{Fh, Node, Outcome};
use super::record::VolumeRecord;
use super::share::{Own, Share, Told, draft_name};
use crate::{Error, Result};

/// What a directory is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    /// By what it was seen: the protocol's version, or `stat`.
    kind: String,
    /// Its handle, in hexadecimal digits.
    handle: String,
    /// The handle of the driver's directory `volumes` at the same time.
    anchor: String,
}

/// Whether what is found is what was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sameness {
    Same,
    Other,
    /// It has the number, and another handle, for which there can be two reasons.
    Unknown,
}

/// Bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Proof {
    /// Of a directory that is known to be the right one. `None`: the server's handles say nothing.
    pub(super) fn of(share: &Share, own: &Own, dir: &Fh) -> Outcome<Option<Self>> {
        if share.handles_move(own)? {
            return Ok(None);
        }
        Ok(Some(Self {
            kind: share.kind_of_handles()?,
            handle: hex(&share.identity(dir)?),
            anchor: hex(&share.identity(&own.volumes)?),
        }))
    }

    fn compare(&self, now: &Self) -> Sameness {
        if self.handle == now.handle {
            Sameness::Same
        } else if self.anchor == now.anchor {
            Sameness::Other
        } else if explains((&self.anchor, &now.anchor), (&self.handle, &now.handle)) || self.kind != now.kind
        {
            // Of handles of two versions of the protocol only the number can be compared.
            Sameness::Same
        } else {
            Sameness::Unknown
        }
    }
}

/// Whether a handle has changed in the same bytes, from the same to the same, as another has.
fn explains(anchor: (&str, &str), handle: (&str, &str)) -> bool {
    let (before, after) = (anchor.0.as_bytes(), anchor.1.as_bytes());
    let (was, is) = (handle.0.as_bytes(), handle.1.as_bytes());
    if before.len() == after.len() {
        return was.len() == before.len()
            && is.len() == before.len()
            && (0..before.len()).all(|at| {
                if before[at] == after[at] {
                    was[at] == is[at]
                } else {
                    was[at] == before[at] && is[at] == after[at]
                }
            });
    }
    // Another head before the same end.
    let same = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
    let (before, after) = (&before[..before.len() - same], &after[..after.len() - same]);
    matches!((was.strip_prefix(before), is.strip_prefix(after)), (Some(was), Some(is)) if was == is)
}

/// Whether a directory is the one that was made for a volume. That cannot be said: [`Error::Refused`].
pub(super) fn is_of(share: &Share, own: &Own, record: &VolumeRecord, node: &Node) -> Result<bool> {
    if node.attr.id != record.dir_id {
        return Ok(false);
    }
    let Some(proof) = &record.proof else { return Ok(true) };
    let now = Proof::of(share, own, &node.fh).told(share, "looking at a directory")?;
    match now.map_or(Sameness::Same, |now| proof.compare(&now)) {
        Sameness::Same => Ok(true),
        Sameness::Other => Ok(false),
        Sameness::Unknown => Err(Error::Refused(format!(
            "{} on {} has the number of volume {}'s directory, but neither its file handle nor one that the server could have given it since, so it may be another directory; see what happened to the export. If the directory is the volume's, set onDelete: retain (ControllerModifyVolume), delete the volume, and remove the directory by hand",
            record.dir,
            share.place(),
            record.id
        ))),
    }
}

/// Puts what a directory is known by in the record of a volume that was made before handles were kept, if its directory
/// is in its place: by the number, which is all that such a record has, and of the share's own file system.
pub(super) fn complete(share: &Share, own: &Own, record: &mut VolumeRecord) {
    if record.proof.is_some() {
        return;
    }
    let look = || {
        let Some(node) = share.walk(&own.root, &record.dir)? else { return Ok(None) };
        let right = node.attr.id == record.dir_id && node.attr.fsid == share.attr(&own.root)?.fsid;
        if right { Proof::of(share, own, &node.fh) } else { Ok(None) }
    };
    match look() {
        Ok(proof) => record.proof = proof,
        Err(fault) => {
            tracing::debug!(volume = record.id, %fault, "its directory is still known by its number only");
        }
    }
}

/// A name in the trash that says what is removed there: the directory that was looked at, and nothing else.
pub(super) fn trash_name(share: &Share, own: &Own, key: &str, node: &Node) -> Outcome<String> {
    Ok(format!("{}.{}.{key}", draft_name(), digest(share, own, node)?))
}

/// What is in the trash, by its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trashed<'a> {
    /// A draft or snapshot, or of an older version: whatever it is, it was the driver's own.
    Own,
    /// What was the directory of the volume with this key, if its digest is this.
    Volume { digest: &'a str, key: &'a str },
}

/// Reads what [`trash_name`] has made.
pub(super) fn trashed(name: &[u8]) -> Trashed<'_> {
    let parts = std::str::from_utf8(name).ok().and_then(|name| {
        let (_, rest) = name.split_once('.')?;
        rest.split_once('.')
    });
    parts.map_or(Trashed::Own, |(digest, key)| Trashed::Volume { digest, key })
}

/// A short word for what a directory is known by.
pub(super) fn digest(share: &Share, own: &Own, node: &Node) -> Outcome<String> {
    let mut sum = Sha256::new();
    sum.update(node.attr.id.to_le_bytes());
    if !share.handles_move(own)? {
        sum.update(share.identity(&node.fh)?);
    }
    Ok(hex(&sum.finalize()[..12]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof(handle: &str, anchor: &str) -> Proof {
        Proof { kind: "4.1".into(), handle: handle.into(), anchor: anchor.into() }
    }

    #[test]
    fn a_handle_that_changed_alone_is_another_directorys() {
        // Export, inode, generation.
        let made = proof("01-0007-11", "01-0002-05");
        assert_eq!(made.compare(&made), Sameness::Same);
        assert_eq!(made.compare(&proof("01-0007-12", "01-0002-05")), Sameness::Other);
    }

    #[test]
    fn a_handle_that_changed_as_the_drivers_own_is_the_same_directorys() {
        let made = proof("01-0007-11", "01-0002-05");
        assert_eq!(made.compare(&proof("09-0007-11", "09-0002-05")), Sameness::Same);
        assert_eq!(made.compare(&proof("uuid-0007-11", "uuid-0002-05")), Sameness::Same);
        // Exported anew, and exchanged.
        assert_eq!(made.compare(&proof("09-0007-12", "09-0002-05")), Sameness::Unknown);
        assert_eq!(made.compare(&proof("uuid-0007-12", "uuid-0002-05")), Sameness::Unknown);
        // All of the anchor is new: nothing can be said.
        assert_eq!(made.compare(&proof("09-0007-11", "xx-yyyy-zz")), Sameness::Unknown);
    }

    #[test]
    fn what_is_in_the_trash_says_what_it_is() {
        assert_eq!(trashed(b"0123456789abcdef01234567"), Trashed::Own);
        assert_eq!(trashed(b"0123.ab12.pvc-1.x"), Trashed::Volume { digest: "ab12", key: "pvc-1.x" });
    }
}
