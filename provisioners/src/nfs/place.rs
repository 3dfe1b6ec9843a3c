//! Where a volume's directory goes: nowhere that something is already, and never within another volume.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::client::{Fh, Kind, Set, Special, Status, found};
use super::create::abandon;
use super::handle::Handle;
use super::identity::{hex, is_of};
use super::nested::{is_root, refusal};
use super::record::VolumeRecord;
use super::share::{Own, Share, Told, split};
use super::store::{Found, Index, Store, file_name, load};
use crate::{Error, Result};

/// The name under which a directory is noted.
pub(super) fn path_name(dir: &str) -> Vec<u8> {
    format!("{}.json", hex(&Sha256::digest(dir.as_bytes()))).into_bytes()
}

/// Refuses a directory that is within a volume.
pub(super) fn check_free(share: &Share, own: &Own, path: &str) -> Result<()> {
    let mut ancestor = split(path).0;
    while let Some(dir) = ancestor {
        let named = share.look(&own.paths, &path_name(dir));
        if named.told(share, &format!("looking for directory {path}"))?.is_some() || is_plain(share, dir)? {
            return Err(Error::AlreadyExists(format!(
                "parameters[\"subDir\"]: {path} on {} would be within the volume whose directory is {dir}",
                share.place()
            )));
        }
        ancestor = split(dir).0;
    }
    Ok(())
}

/// Whether it is the directory of a volume that is called like it.
fn is_plain(share: &Share, dir: &str) -> Result<bool> {
    if dir.contains('/') || !crate::naming::is_safe_component(dir) {
        return Ok(false);
    }
    for index in [Index::Volumes, Index::Intents] {
        let (_, record) = load::<VolumeRecord>(share, index, dir)?;
        if record.is_some_and(|record| record.dir == dir) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the directory that was made for a volume is where it belongs.
pub(super) fn in_place(share: &Share, own: &Own, record: &VolumeRecord) -> Result<bool> {
    let walked = share.walk(&own.root, &record.dir);
    match walked {
        Err(fault) if fault.is(Status::NOT_DIRECTORY) => Ok(false),
        other => match other.told(share, "looking for a directory")? {
            Some(node) => is_of(share, own, record, &node),
            None => Ok(false),
        },
    }
}

/// The directories that a template's path has before its last part; none of them is a volume, another share's root, or of
/// another file system.
fn make_parents(share: &Share, own: &Own, path: &str) -> Result<Fh> {
    let (top, mut at) = (share.attr(&own.root).told(share, "looking at the share")?.fsid, own.root.clone());
    for part in path.split('/') {
        let doing = format!("making directory {path}");
        at = match share.look(&at, part.as_bytes()).told(share, &doing)? {
            Some(node) if node.attr.kind == Kind::Directory && node.attr.fsid == top => node.fh,
            Some(node) => {
                let what =
                    if node.attr.kind == Kind::Directory { "another file system" } else { "no directory" };
                return Err(Error::AlreadyExists(format!(
                    "parameters[\"subDir\"]: {part} of {path} on {} exists and is {what}; choose another name",
                    share.place()
                )));
            }
            None => {
                let set = Set { mode: Some(0o755), ..Set::default() };
                share.make(&at, part.as_bytes(), &Special::Directory, &set).told(share, &doing)?.fh
            }
        };
        if is_root(share, &at).told(share, "looking for other shares")? {
            return Err(refusal(share, path, &format!("is within another share, whose root {part} is")));
        }
    }
    Ok(at)
}

/// Where a volume's directory belongs, as long as nothing of another volume or share is on the way.
fn parent_of(share: &Share, own: &Own, record: &VolumeRecord) -> Result<Fh> {
    let Some(path) = split(&record.dir).0 else { return Ok(own.root.clone()) };
    // Again, for somebody may have begun a volume there since: each of two is noted before it looks for the other.
    check_free(share, own, &record.dir)?;
    make_parents(share, own, path)
}

impl Store {
    fn place(&self, share: &Share, own: &Own, record: &VolumeRecord) -> Result<()> {
        let name = split(&record.dir).1;
        let parent = self.check_paths(share, &record.dir).and_then(|()| parent_of(share, own, record));
        let work = |parent: &Fh| -> Result<Option<()>> {
            let doing = format!("moving the new directory to {}", record.dir);
            // A rename would replace an empty directory.
            if let Some(node) = share.look(parent, name.as_bytes()).told(share, &doing)?
                && !is_of(share, own, record, &node)?
            {
                return Err(exists(share, record));
            }
            match found(share.rename(&own.tmp, record.draft.as_bytes(), parent, name.as_bytes())) {
                Err(fault)
                    if fault.is(Status::EXISTS)
                        || fault.is(Status::NOT_DIRECTORY)
                        || fault.is(Status::NOT_EMPTY) =>
                {
                    Err(exists(share, record))
                }
                other => other.told(share, &doing),
            }
        };
        let error = match parent.and_then(|parent| work(&parent)) {
            Ok(Some(())) => return Ok(()),
            // Somebody else was faster, or an answer was lost.
            Ok(None) if in_place(share, own, record)? => return Ok(()),
            Ok(None) => Error::Unavailable(format!(
                "the directory of volume {} was lost before it got to its place; repeat the call",
                record.id
            )),
            Err(error @ (Error::AlreadyExists(_) | Error::Refused(_))) => error,
            Err(error) => return Err(error),
        };
        if let Some(handle) = Handle::parse(&record.id) {
            abandon(share, own, &handle, record)?;
        }
        Err(error)
    }

    /// Goes on with an intent: the directory to its place, the record to `volumes`. `fresh`: it was begun a moment ago.
    pub(super) fn finish(
        &self,
        share: &Arc<Share>,
        own: &Own,
        record: VolumeRecord,
        fresh: bool,
    ) -> Result<Found> {
        let handle = Handle::parse(&record.id).ok_or_else(|| Error::Corrupt {
            what: format!("the intent of {}", record.name),
            problem: "its id is no handle".into(),
        })?;
        if fresh || !in_place(share, own, &record)? {
            self.place(share, own, &record)?;
        }
        let name = file_name(&handle.key);
        let moved = found(share.rename(&own.intents, &name, &own.volumes, &name));
        if moved.told(share, "writing a record")?.is_none() {
            // Somebody else has finished it, or deleted it already.
            let (_, there) = load::<VolumeRecord>(share, Index::Volumes, &handle.key)?;
            if there.is_none() {
                return Err(Error::Unavailable(format!(
                    "volume {handle} was deleted meanwhile; repeat the call"
                )));
            }
        }
        Ok(Found { share: share.clone(), own: own.clone(), handle, record })
    }
}

fn exists(share: &Share, record: &VolumeRecord) -> Error {
    Error::AlreadyExists(format!(
        "parameters[\"subDir\"]: {} on {} exists and is no directory of this driver; move it away, or choose another name",
        record.dir,
        share.place()
    ))
}
