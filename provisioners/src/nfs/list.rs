//! ListVolumes: records in the order of their handles, read by several connections.

use std::sync::{Arc, Mutex, PoisonError};

use super::client::Fh;
use super::handle::Handle;
use super::record::VolumeRecord;
use super::share::{Own, Share, Told};
use super::store::{Found, Store, load};
use super::tree::{Problem, in_parallel};
use crate::{Condition, Error, Page, Result, Volume};

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
            |name| std::str::from_utf8(name).ok()?.strip_suffix(".json").map(str::to_owned),
            |share, handle| {
                let (own, record) = load::<VolumeRecord>(share, |own| own.volumes.clone(), &handle.key)?;
                let found =
                    record.map(|record| Found { share: share.clone(), own, handle: handle.clone(), record });
                Ok(found.map(|found| Self::show(&found, Condition::healthy())))
            },
        )
    }

    /// A page of what is in one of the driver's own directories on all shares. What is gone meanwhile, or not wanted, is
    /// left out; a page is never short because of that unless it is the last.
    pub(super) fn pages<T: Send>(
        &self,
        after: Option<&str>,
        max: usize,
        dir: impl Fn(&Own) -> Fh,
        key: impl Fn(&[u8]) -> Option<String>,
        read: impl Fn(&Arc<Share>, &Handle) -> Result<Option<T>> + Sync,
    ) -> Result<Page<T>> {
        let (mut items, mut last) = (Vec::new(), None);
        for share in self.shares() {
            let listed = share.with_own(|own| share.entries(&dir(own)));
            let entries = listed.told(&share, "listing records")?;
            let handle = |name: &[u8]| Handle::new(share.id.clone(), key(name)?).ok();
            let mut handles: Vec<Handle> = entries.iter().filter_map(|entry| handle(&entry.name)).collect();
            handles.sort_by(|a, b| a.key.cmp(&b.key));
            handles.retain(|handle| after.is_none_or(|after| handle.to_string().as_str() > after));
            let mut left = handles.as_slice();
            while !left.is_empty() {
                let wanted = if max == 0 { left.len() } else { max - items.len() };
                if wanted == 0 {
                    return Ok(Page { items, next: last });
                }
                let (now, later) = left.split_at(wanted.min(left.len()));
                items.extend(read_all(&share, now, &read)?);
                last = now.last().map(ToString::to_string);
                left = later;
            }
        }
        Ok(Page { items, next: None })
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
