//! Where a volume's directory goes: nowhere that something is already, and never within another volume.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::client::{Fault, Fh, Kind, Outcome, Set, Special, Status, found};
use super::create::abandon;
use super::handle::Handle;
use super::plan::Plan;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told, split};
use super::store::{Found, file_name, load};
use crate::{Error, Result};

/// The name under which a directory is noted.
pub(super) fn path_name(dir: &str) -> Vec<u8> {
    let digest = Sha256::digest(dir.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.json").into_bytes()
}

/// Refuses a directory that is within a volume.
pub(super) fn check_free(share: &Share, own: &Own, plan: &Plan) -> Result<()> {
    let told = |fault: Fault| share.fail(&format!("looking for directory {}", plan.dir))(fault);
    let mut ancestor = split(&plan.dir).0;
    while let Some(dir) = ancestor {
        let within = |dir: &Fh, name: &[u8]| Ok::<_, Fault>(share.look(dir, name)?.is_some());
        let flat = !dir.contains('/') && crate::naming::is_safe_component(dir);
        if within(&own.paths, &path_name(dir)).map_err(told)?
            || flat
                && (within(&own.volumes, &file_name(dir)).map_err(told)?
                    || within(&own.intents, &file_name(dir)).map_err(told)?)
        {
            return Err(Error::AlreadyExists(format!(
                "parameters[\"subDir\"]: {} on {} would be within the volume whose directory is {dir}",
                plan.dir,
                share.place()
            )));
        }
        ancestor = split(dir).0;
    }
    Ok(())
}

/// Whether the directory that was made for a volume is where it belongs.
pub(super) fn in_place(share: &Share, own: &Own, record: &VolumeRecord) -> Result<bool> {
    let walked = share.walk(&own.root, &record.dir);
    match walked {
        Err(fault) if fault.is(Status::NOT_DIRECTORY) => Ok(false),
        other => Ok(other
            .told(share, "looking for a directory")?
            .is_some_and(|node| node.attr.id == record.dir_id)),
    }
}

/// The directories that a template's path has before its last part; none of them is a volume.
fn make_parents(share: &Share, root: &Fh, path: &str) -> Outcome<Fh> {
    let mut at = root.clone();
    for part in path.split('/') {
        at = match share.look(&at, part.as_bytes())? {
            Some(node) if node.attr.kind == Kind::Directory => node.fh,
            Some(_) => return Err(Fault::Status(Status::NOT_DIRECTORY)),
            None => {
                let set = Set { mode: Some(0o755), ..Set::default() };
                share.make(&at, part.as_bytes(), &Special::Directory, &set)?.fh
            }
        };
    }
    Ok(at)
}

fn place(share: &Share, own: &Own, record: &VolumeRecord) -> Result<()> {
    let (parent, name) = split(&record.dir);
    let work = || {
        let parent = match parent {
            Some(path) => make_parents(share, &own.root, path)?,
            None => own.root.clone(),
        };
        // A rename would replace an empty directory.
        if let Some(node) = share.look(&parent, name.as_bytes())?
            && node.attr.id != record.dir_id
        {
            return Err(Fault::Status(Status::EXISTS));
        }
        found(share.rename(&own.tmp, record.draft.as_bytes(), &parent, name.as_bytes()))
    };
    let error = match work() {
        Ok(Some(())) => return Ok(()),
        // Somebody else was faster, or an answer was lost.
        Ok(None) if in_place(share, own, record)? => return Ok(()),
        Ok(None) => Error::Unavailable(format!(
            "the directory of volume {} was lost before it got to its place; repeat the call",
            record.id
        )),
        Err(fault) if fault.is(Status::EXISTS) || fault.is(Status::NOT_DIRECTORY) => {
            Error::AlreadyExists(format!(
                "parameters[\"subDir\"]: {} on {} exists and is no directory of this driver; move it away, or choose another name",
                record.dir,
                share.place()
            ))
        }
        Err(fault) => return Err(share.fail(&format!("moving the new directory to {}", record.dir))(fault)),
    };
    if let Some(handle) = Handle::parse(&record.id) {
        abandon(share, own, &handle, record)?;
    }
    Err(error)
}

/// Goes on with an intent: the directory to its place, the record to `volumes`. `fresh`: it was begun a moment ago.
pub(super) fn finish(share: &Arc<Share>, own: &Own, record: VolumeRecord, fresh: bool) -> Result<Found> {
    let handle = Handle::parse(&record.id).ok_or_else(|| Error::Corrupt {
        what: format!("the intent of {}", record.name),
        problem: "its id is no handle".into(),
    })?;
    if fresh || !in_place(share, own, &record)? {
        place(share, own, &record)?;
    }
    let name = file_name(&handle.key);
    let moved = found(share.rename(&own.intents, &name, &own.volumes, &name));
    if moved.told(share, "writing a record")?.is_none() {
        // Somebody else has finished it, or deleted it already.
        let (_, there) = load::<VolumeRecord>(share, |own| own.volumes.clone(), &handle.key)?;
        if there.is_none() {
            return Err(Error::Unavailable(format!(
                "volume {handle} was deleted meanwhile; repeat the call"
            )));
        }
    }
    Ok(Found { share: share.clone(), own: own.clone(), handle, record })
}
