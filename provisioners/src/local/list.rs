//! Listing: the names of all, the records of one page.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use super::handle::{Handle, parse_handle};
use super::layout::{Root, failed};
use super::params::VolumeType;
use super::record::is_absent;
use super::store::Store;
use crate::naming::is_safe_component;
use crate::{Condition, Error, Page, Result, Snapshot, StringMap, Volume, VolumeId};

impl Store {
    /// Volumes after a handle, at most `max` (0: all).
    pub(super) fn list(&self, after: Option<&str>, max: usize) -> Result<Page<Volume>> {
        self.page(after, max, volume_keys, |root, key| self.list_one(root, key), |volume| volume.id.0.clone())
    }

    /// A volume for the listing; a damaged one is shown as that. `None`: something that is not ours.
    fn list_one(&self, root: &Root, key: &str) -> Option<Volume> {
        match root.find_volume(key) {
            Ok(found) => found.map(|found| self.show(&found)),
            Err(error) => Some(self.damaged(root, key, &error)),
        }
    }

    fn damaged(&self, root: &Root, key: &str, error: &Error) -> Volume {
        let handle = Handle { root: root.name.clone(), key: key.to_owned() };
        let dir = root.volume_dir(key).unwrap_or_else(|_| root.path.join(key));
        let image = fs::symlink_metadata(dir.join(VolumeType::File.data_name()));
        Volume {
            id: VolumeId(handle.to_string()),
            capacity: image.map_or(0, |meta| meta.len()),
            context: StringMap::new(),
            source: None,
            topology: vec![self.topology()],
            published: BTreeSet::new(),
            condition: Condition::abnormal(error.to_string()),
        }
    }

    /// Snapshots after a handle, at most `max` (0: all), of one volume if `source` is given.
    pub(super) fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        after: Option<&str>,
        max: usize,
    ) -> Result<Page<Snapshot>> {
        let one = |root: &Root, key: &str| match self.find_snapshot(root, key) {
            Ok(found) => {
                let found = found.filter(|found| source.is_none_or(|id| id.0 == found.record.source));
                found.map(|found| found.show())
            }
            Err(error) => {
                tracing::warn!(%error, "a snapshot is left out of the listing");
                None
            }
        };
        self.page(after, max, snapshot_keys, one, |snapshot| snapshot.id.0.clone())
    }

    /// One page: reads records only until it is full and one more is known to follow.
    fn page<T>(
        &self,
        after: Option<&str>,
        max: usize,
        keys: impl Fn(&Root) -> Result<Vec<String>>,
        one: impl Fn(&Root, &str) -> Option<T>,
        handle: impl Fn(&T) -> String,
    ) -> Result<Page<T>> {
        if let Some(after) = after {
            parse_handle(after).map_err(|e| Error::BadToken(e.to_string()))?;
        }
        let mut items = Vec::new();
        for root in self.roots.iter().filter(|root| root.exists()) {
            if after.is_some_and(|after| format!("{}:\u{7f}", root.name).as_str() < after) {
                continue;
            }
            for key in keys(root)? {
                if after.is_some_and(|after| format!("{}:{key}", root.name).as_str() <= after) {
                    continue;
                }
                let Some(item) = one(root, &key) else { continue };
                if max != 0 && items.len() == max {
                    let next = items.last().map(handle);
                    return Ok(Page { items, next });
                }
                items.push(item);
            }
        }
        Ok(Page { items, next: None })
    }
}

/// The keys of all that may be volumes, sorted.
fn volume_keys(root: &Root) -> Result<Vec<String>> {
    let mut by_dir = HashMap::new();
    let index = root.own("index");
    for key in names(&index, |_| true)? {
        if let Ok(dir) = fs::read_link(index.join(&key)) {
            by_dir.insert(dir.to_string_lossy().into_owned(), key);
        }
    }
    let dirs = names(&root.path, fs::FileType::is_dir)?;
    let mut keys: Vec<String> = dirs.into_iter().map(|dir| by_dir.remove(&dir).unwrap_or(dir)).collect();
    keys.sort_unstable();
    keys.retain(|key| parse_handle(&format!("{}:{key}", root.name)).is_ok());
    Ok(keys)
}

fn snapshot_keys(root: &Root) -> Result<Vec<String>> {
    let mut keys = names(&root.own("snapshots"), fs::FileType::is_dir)?;
    keys.sort_unstable();
    Ok(keys)
}

/// The safe names in a directory.
pub(super) fn names(dir: &Path, wanted: impl Fn(&fs::FileType) -> bool) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        entries => entries.map_err(|e| failed("reading", dir, e))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| failed("reading", dir, e))?;
        let name = entry.file_name().to_str().filter(|name| is_safe_component(name)).map(str::to_owned);
        if let Some(name) = name
            && entry.file_type().is_ok_and(|kind| wanted(&kind))
        {
            names.push(name);
        }
    }
    Ok(names)
}
