//! Changing a record that exists: compare and set, without a lock that a killed process would keep.
//!
//! NFS makes a name only if there is none, and renames over whatever is there; no call replaces a file only if it is
//! still the same. So who changes a record
//!
//! 1. writes the new one to `tmp`, under a name that is used once;
//! 2. asks for the right to follow the record that he has read: the symbolic link `changes/<key>.<digest>.<round>`, named
//!    by that record's digest and leading to his draft, which the server makes for one of several;
//! 3. looks whether the record is still that one; and
//! 4. renames the draft over it.
//!
//! Who finds the right taken does 3 and 4 for its owner, and then his own change anew: nobody is waited for, so a process
//! that was killed stops none. A draft can be renamed once, so a rename that comes late replaces nothing that came after.
//! A draft that was swept away can never be renamed, and what it had the right to follow is to be had in the next round.
//!
//! Versions before this one rename without a right. Their change is seen until step 3, and replaced between 3 and 4.

use sha2::{Digest as _, Sha256};

use super::client::{Fault, Outcome, Set, Special, Status};
use super::draft::name_for;
use super::identity::{complete, hex};
use super::record::VolumeRecord;
use super::share::{Own, Share, Told};
use super::store::{Found, Index, file_name, parse};
use crate::record::{decode, encode};
use crate::{Error, Result};

/// How often a change is made anew because others change the record, too.
const TRIES: usize = 64;
/// How many drafts that had the right to follow a record may be lost.
const ROUNDS: u32 = 64;
/// How often a record is read anew because it was replaced meanwhile.
const READS: usize = 64;

/// The right to follow one state of a record.
struct Turn<'a> {
    share: &'a Share,
    own: &'a Own,
    key: &'a str,
    /// Of the record that is followed.
    digest: String,
}

/// What became of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Published {
    /// It is the record.
    Done,
    /// The record is another one than it was to follow.
    Late,
    /// It is gone.
    Lost,
}

fn digest(content: &[u8]) -> String {
    hex(&Sha256::digest(content)[..12])
}

/// The parts of a right's name: key, digest and round.
fn parts(name: &[u8]) -> Option<(&str, &str)> {
    let (name, _round) = std::str::from_utf8(name).ok()?.rsplit_once('.')?;
    name.rsplit_once('.')
}

/// A record's bytes as they are now.
fn content(share: &Share, own: &Own, key: &str) -> Outcome<Option<Vec<u8>>> {
    let name = file_name(key);
    let mut left = READS;
    loop {
        left -= 1;
        match share.get(&own.volumes, &name) {
            // It was replaced while it was read.
            Err(fault) if fault.is(Status::STALE) && left > 0 => {}
            read => return Ok(read?.map(|(_, content)| content)),
        }
    }
}

/// What somebody may have removed meanwhile; [`None`] then.
fn unless_gone<T>(outcome: Outcome<T>) -> Outcome<Option<T>> {
    match outcome {
        Err(fault) if fault.is_gone() => Ok(None),
        other => other.map(Some),
    }
}

impl Turn<'_> {
    fn name(&self, round: u32) -> Vec<u8> {
        format!("{}.{}.{round}", self.key, self.digest).into_bytes()
    }

    fn is_current(&self) -> Outcome<bool> {
        let now = content(self.share, self.own, self.key)?;
        Ok(now.is_some_and(|content| digest(&content) == self.digest))
    }

    /// Asks for the right; the draft that has it then. `None`: it has just been given back.
    fn ask(&self, round: u32, draft: &[u8]) -> Outcome<Option<Vec<u8>>> {
        let (name, link) = (self.name(round), Special::Link(draft.into()));
        match self.share.ask(|s| s.make(&self.own.changes, &name, &link, &Set::default())) {
            Err(fault) if fault.is(Status::EXISTS) => holder(self.share, self.own, &name),
            // Or somebody has used and given it back before it could be looked at.
            other => Ok(unless_gone(other)?.map(|_| draft.to_vec())),
        }
    }

    /// Makes a draft that has the right the record, if it may still follow. If not, it is removed, so that nobody who was
    /// stopped a moment ago can do that later.
    fn publish(&self, draft: &[u8]) -> Outcome<Published> {
        if !self.is_current()? {
            self.share.remove(&self.own.tmp, draft)?;
            return Ok(Published::Late);
        }
        let name = file_name(self.key);
        if unless_gone(self.share.rename(&self.own.tmp, draft, &self.own.volumes, &name))?.is_some() {
            return Ok(Published::Done);
        }
        Ok(if self.is_current()? { Published::Lost } else { Published::Late })
    }

    /// Gives the right back, which nobody can use any more.
    fn give_back(&self, round: u32) -> Outcome<()> {
        (0..=round).try_for_each(|round| self.share.remove(&self.own.changes, &self.name(round)))
    }

    /// Has a draft follow the record. `false`: somebody else's does, or it is gone.
    fn follow(&self, draft: &[u8]) -> Outcome<bool> {
        for round in 0..ROUNDS {
            let Some(holder) = self.ask(round, draft)? else { return Ok(false) };
            let published = self.publish(&holder)?;
            if published != Published::Lost {
                self.give_back(round)?;
                return Ok(holder == draft && published == Published::Done);
            }
            if holder == draft {
                return Ok(false);
            }
        }
        Err(Fault::Status(Status::EXISTS))
    }
}

/// The draft that a right leads to.
fn holder(share: &Share, own: &Own, name: &[u8]) -> Outcome<Option<Vec<u8>>> {
    let link = unless_gone(share.ask(|s| s.lookup(&own.changes, name)))?;
    let Some(link) = link else { return Ok(None) };
    let target = unless_gone(share.ask(|s| s.readlink(&link.fh)))?;
    let Some(target) = target else { return Ok(None) };
    // It is used as a name.
    if target.is_empty() || target.contains(&b'/') || target.starts_with(b".") {
        return Err(Fault::Status(Status::INVALID));
    }
    Ok(Some(target))
}

impl Found {
    /// Changes the record. `edit` is shown what it is now, says whether there is anything to write, and is asked again when
    /// somebody else has changed it meanwhile. The volume is gone: [`Error::NotFound`].
    pub(super) fn change(&mut self, edit: impl Fn(&mut VolumeRecord) -> Result<bool>) -> Result<()> {
        for _ in 0..TRIES {
            let (mut record, digest) = self.read()?;
            let changed = edit(&mut record)?;
            if !changed || self.write(&mut record, digest)? {
                self.record = record;
                return Ok(());
            }
        }
        Err(Error::Unavailable(format!(
            "the record of volume {} is changed by others again and again; repeat the call",
            self.handle
        )))
    }

    /// The record as it is now, and its digest.
    fn read(&mut self) -> Result<(VolumeRecord, String)> {
        let now = self.share.with_own(|own| Ok((own.clone(), content(&self.share, own, &self.handle.key)?)));
        let (own, now) = now.told(&self.share, "reading a record")?;
        self.own = own;
        let now = now.ok_or_else(|| {
            Error::NotFound(format!("volume {}: no such volume on {}", self.handle, self.share.place()))
        })?;
        Ok((parse(&self.share, Index::Volumes, &self.handle.key, &now)?, digest(&now)))
    }

    /// Writes what is to follow the record with this digest; whether it does.
    fn write(&self, record: &mut VolumeRecord, digest: String) -> Result<bool> {
        let (share, own, key) = (&self.share, &self.own, &self.handle.key);
        let revision = name_for(key);
        record.revision = Some(revision.clone());
        complete(share, own, record);
        let (bytes, draft) = (encode(record)?, file_name(&revision));
        let write = || {
            share.put(&own.tmp, &draft, &bytes)?;
            if (Turn { share, own, key, digest }).follow(&draft)? {
                return Ok(true);
            }
            // Somebody else may have published it.
            let now = content(share, own, key)?;
            share.remove(&own.tmp, &draft)?;
            Ok(now.is_some_and(|now| now == bytes))
        };
        write().told(share, &format!("writing the record of volume {}", self.handle))
    }
}

/// Ends what others had begun to do with the record of a volume, which was removed a moment ago: what was to follow it
/// never does, and what has followed it goes, too.
pub(super) fn end(share: &Share, own: &Own, key: &str, removed: &VolumeRecord) -> Outcome<()> {
    let of_it = |record: &VolumeRecord| (&record.draft, record.dir_id) == (&removed.draft, removed.dir_id);
    for _ in 0..TRIES {
        stop(share, own, key)?;
        // Who had looked before the removal, and has given the right back already.
        let now = content(share, own, key)?.and_then(|now| decode::<VolumeRecord>("the record", &now).ok());
        if !now.as_ref().is_some_and(of_it) {
            return Ok(());
        }
        share.remove(&own.volumes, &file_name(key))?;
    }
    Err(Fault::Status(Status::DELAY))
}

/// Nobody follows a record any more that was there and is not.
pub(super) fn stop(share: &Share, own: &Own, key: &str) -> Outcome<()> {
    for entry in share.entries(&own.changes)? {
        let Some((_, digest)) = parts(&entry.name).filter(|(of, _)| *of == key) else { continue };
        let turn = Turn { share, own, key, digest: digest.to_owned() };
        // It is there; that of a volume that was made anew, say.
        if turn.is_current()? {
            continue;
        }
        if let Some(draft) = holder(share, own, &entry.name)? {
            share.remove(&own.tmp, &draft)?;
        }
        share.remove(&own.changes, &entry.name)?;
    }
    Ok(())
}

/// Goes on with what killed processes have begun to change, and gives back rights that cannot be used any more. It may meet
/// any that is at work.
pub(super) fn settle(share: &Share, own: &Own) -> Outcome<()> {
    for entry in share.entries(&own.changes)? {
        let Some((key, digest)) = parts(&entry.name) else { continue };
        let turn = Turn { share, own, key, digest: digest.to_owned() };
        let published = match holder(share, own, &entry.name)? {
            Some(draft) => turn.publish(&draft)?,
            None => continue,
        };
        if published != Published::Lost {
            share.remove(&own.changes, &entry.name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
