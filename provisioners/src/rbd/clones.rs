//! The snapshots that are taken of a volume for a clone of it and removed when that is made.
//!
//! Each has a nonce in its name, which is noted in the map of intents before: no call ever uses one that another has taken,
//! and what a killed call has left is found by its note.

use std::time::Duration;

use jiff::Timestamp;

use super::ffi::Errno;
use super::record::{CloneNote, Found};
use super::site::{INTENTS, Site, nonce};
use super::store::Store;
use crate::Result;

/// What the name of such a snapshot begins with: this, the clone's name, and the nonce.
pub(super) const CLONE_SNAPSHOT: &str = "volumectl.clone.";
/// What the key of its note begins with.
pub(super) const CLONE: &str = "clone/";
/// No clone is made for so long: a snapshot that is older was left behind.
const OLD: Duration = Duration::from_secs(15 * 60);

impl Store {
    /// Notes that a snapshot will be taken of a volume for a clone: its name, and the note's key.
    pub(super) fn note_clone(&self, site: &Site, source: &Found, clone: &str) -> Result<(String, String)> {
        let nonce = nonce();
        let note = CloneNote {
            id: source.handle.to_string(),
            image: source.header.image.clone(),
            snapshot: format!("{CLONE_SNAPSHOT}{clone}.{nonce}"),
            cluster: self.config.owner.clone(),
            since: Timestamp::now(),
        };
        let key = format!("{CLONE}{nonce}");
        site.note(INTENTS, &key, &note)?;
        Ok((note.snapshot, key))
    }

    /// Removes the snapshot of a clone that was never finished; whether it did.
    pub(super) fn sweep_clone(&self, site: &Site, key: &str) -> Result<bool> {
        let Some(note) = site.entry::<CloneNote>(INTENTS, key)? else { return Ok(false) };
        if note.cluster != self.config.owner || is_recent(note.since) {
            return Ok(false);
        }
        remove(site, &note.image, &note.snapshot, key)?;
        tracing::info!(volume = %note.id, snapshot = %note.snapshot, "removed what an interrupted clone left");
        Ok(true)
    }

    /// Removes the snapshots for clones that have no note, of a version that noted none; how many.
    pub(super) fn sweep_unnoted(site: &Site, id: &str) -> Result<usize> {
        let Some(image) = site.look(id)? else { return Ok(0) };
        let failed = |e| site.fail(&format!("looking for old snapshots of image id {id}"), e);
        let mut old = Vec::new();
        for snapshot in image.snapshots().map_err(failed)? {
            if !snapshot.name.starts_with(CLONE_SNAPSHOT) {
                continue;
            }
            let (seconds, _) = image.snapshot_time(snapshot.id).map_err(failed)?;
            let nonce = snapshot.name.rsplit('.').next().map(|nonce| format!("{CLONE}{nonce}"));
            let noted = nonce.map(|key| site.entry::<CloneNote>(INTENTS, &key)).transpose()?.flatten();
            let taken = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
            if noted.is_none() && !is_recent(taken) {
                old.push(snapshot.name);
            }
        }
        if old.is_empty() {
            return Ok(0);
        }
        let image = site.open(id)?;
        for name in &old {
            match image.remove_snapshot(name) {
                Ok(()) | Err(Errno::NOENT) => {
                    tracing::info!(image = id, snapshot = %name, "removed what an interrupted clone left");
                }
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(old.len())
    }
}

fn is_recent(since: Timestamp) -> bool {
    // A time in the future is that of a clock that runs ahead.
    Duration::try_from(Timestamp::now().duration_since(since)).is_ok_and(|age| age < OLD)
}

/// Removes a snapshot that was taken for a clone, then its note.
pub(super) fn remove(site: &Site, image: &str, snapshot: &str, note: &str) -> Result<()> {
    if site.header(image)?.is_some() {
        match site.open(image)?.remove_snapshot(snapshot) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => {
                return Err(site.fail(&format!("removing the snapshot {snapshot} of image id {image}"), e));
            }
        }
    }
    site.forget(INTENTS, &[note])
}
