//! ListVolumes: records in the order of their handles, read by several connections. A share that does not answer, or a
//! record that is damaged, keeps nobody from seeing the rest.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::client::Fh;
use super::handle::Handle;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told};
use super::store::{Found, Index, Store, key_of, load};
use super::tree::{Problem, in_parallel};
use crate::{Condition, Error, Page, Result, StringMap, Volume, VolumeId};

/// How many records make several connections worth it.
const FEW: usize = 16;
const READERS: usize = 8;

impl Store {
    /// Volumes after `after`, in the order of their handles.
    pub(super) fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        self.pages(
            after,
            max,
            |own| own.volumes.clone(),
            key_of,
            |share, handle| match load::<VolumeRecord>(share, Index::Volumes, &handle.key) {
                Ok((own, record)) => {
                    let found = record.map(|record| Found {
                        share: share.clone(),
                        own,
                        handle: self.given(handle, &record.id),
                        record,
                    });
                    Ok(found.map(|found| Self::show(&found, Condition::healthy())))
                }
                Err(error) if is_of_record(&error) => Ok(Some(unreadable(handle, &error))),
                Err(error) => Err(error),
            },
        )
    }

    /// A page of what is in one of the driver's own directories on all shares that answer. What is gone meanwhile, or not
    /// wanted, is left out; a page is never short because of that unless it is the last.
    pub(super) fn pages<T: Send>(
        &self,
        after: Option<&str>,
        max: usize,
        dir: impl Fn(&Own) -> Fh + Sync,
        key: impl Fn(&[u8]) -> Option<String> + Sync,
        read: impl Fn(&Arc<Share>, &Handle) -> Result<Option<T>> + Sync,
    ) -> Result<Page<T>> {
        // A dead share is not waited for again and again while there are others.
        let several = self.shares().len() > 1;
        let listed = self.each(|share| match share.is_down().filter(|_| several) {
            Some(error) => Err(error),
            None => handles(share, after, &dir, &key),
        });
        let (mut items, mut last) = (Vec::new(), None);
        let (mut problem, mut good) = (None, false);
        for (share, handles) in listed {
            let read_share = || {
                let handles = handles?;
                let mut left = handles.as_slice();
                while !left.is_empty() {
                    let wanted = if max == 0 { left.len() } else { max - items.len() };
                    if wanted == 0 {
                        return Ok(true);
                    }
                    let (now, later) = left.split_at(wanted.min(left.len()));
                    items.extend(read_all(&share, now, &read)?);
                    last = now.last().map(ToString::to_string);
                    left = later;
                }
                Ok(false)
            };
            match read_share() {
                Ok(true) => return Ok(Page { items, next: last }),
                Ok(false) => good = true,
                Err(error) => {
                    tracing::warn!(share = %share.place(), %error, "left out of the list");
                    problem = Some(error);
                }
            }
        }
        match problem {
            Some(error) if !good => Err(error),
            _ => Ok(Page { items, next: None }),
        }
    }
}

/// The handles after `after` of what is in one of the driver's own directories, in their order.
fn handles(
    share: &Share,
    after: Option<&str>,
    dir: impl Fn(&Own) -> Fh,
    key: impl Fn(&[u8]) -> Option<String>,
) -> Result<Vec<Handle>> {
    let entries = share.with_own(|own| share.entries(&dir(own))).told(share, "listing records")?;
    let handle = |name: &[u8]| Handle::new(share.id.clone(), key(name)?).ok();
    let mut handles: Vec<Handle> = entries.iter().filter_map(|entry| handle(&entry.name)).collect();
    handles.sort_by(|a, b| a.key.cmp(&b.key));
    handles.retain(|handle| after.is_none_or(|after| handle.to_string().as_str() > after));
    Ok(handles)
}

/// Whether it says something of one record, not of its share.
pub(super) fn is_of_record(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::Refused(_))
}

/// A volume whose record cannot be read: nothing is known of it but that it is there.
fn unreadable(handle: &Handle, error: &Error) -> Volume {
    Volume {
        id: VolumeId(handle.to_string()),
        capacity: 0,
        context: StringMap::new(),
        source: None,
        topology: Vec::new(),
        published: BTreeSet::new(),
        condition: Condition::abnormal(format!("DATA_LOSS: {error}")),
    }
}

/// Reads records, in their order.
fn read_all<T: Send>(
    share: &Arc<Share>,
    handles: &[Handle],
    read: &(impl Fn(&Arc<Share>, &Handle) -> Result<Option<T>> + Sync),
) -> Result<Vec<T>> {
    if handles.len() <= FEW {
        return handles.iter().filter_map(|handle| read(share, handle).transpose()).collect();
    }
    let results: Mutex<Vec<(usize, T)>> = Mutex::default();
    let done = in_parallel(
        READERS,
        |at: usize| {
            if let Some(item) = read(share, &handles[at])? {
                results.lock().unwrap_or_else(PoisonError::into_inner).push((at, item));
            }
            Ok(())
        },
        |queue| {
            (0..handles.len()).all(queue);
            Ok(())
        },
    );
    done.map_err(|problem| match problem {
        Problem::Error(error) => error,
        other => other.told(share, "listing records"),
    })?;
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, item)| item).collect())
}

impl Store {
    /// Checks that a token is one that a listing gave: a handle.
    pub(super) fn check_token(after: Option<&str>) -> Result<()> {
        match after {
            Some(token) if Handle::parse(token).is_none() => {
                Err(Error::BadToken(format!("{token:?} is no handle of this backend")))
            }
            _ => Ok(()),
        }
    }
}
