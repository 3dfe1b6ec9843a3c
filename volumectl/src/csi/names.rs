//! Volumes and snapshots by the last part of their handle, where that is enough: `db` for `default:db`.

use std::collections::BTreeMap;

use anyhow::Result;
use csi_proto::v1 as pb;

use crate::client::Csi;
use crate::errors::Usage;

type Secrets = BTreeMap<String, String>;

/// What stands between the parts of a handle.
const SEPARATORS: [char; 2] = [':', '/'];

/// What somebody has written for a volume or a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// The handle of one that there is.
    Handle(String),
    /// Nothing that is listed has it.
    Nobody,
    /// The driver lists none.
    Unknown,
}

/// The handle of what was written. Several volumes could be meant: an error that names them.
pub(super) async fn volume(csi: &Csi, text: &str) -> Result<Named> {
    match handles(csi).await {
        Some(handles) => choose(&handles, text),
        None => Ok(Named::Unknown),
    }
}

/// Puts the handle in the place of what was written; what nobody has stays, for the driver says so best.
pub(super) async fn complete(csi: &Csi, text: &mut String) -> Result<()> {
    // No last part of a handle, so it is a whole one or nobody's: nothing has to be listed.
    if text.contains(SEPARATORS) {
        return Ok(());
    }
    if let Named::Handle(handle) = volume(csi, text).await? {
        *text = handle;
    }
    Ok(())
}

/// The same for a snapshot.
pub(super) async fn snapshot(csi: &Csi, text: &str, secrets: &Secrets) -> Result<Named> {
    match snapshot_handles(csi, secrets).await {
        Some(handles) => choose(&handles, text),
        None => Ok(Named::Unknown),
    }
}

/// The same for a snapshot.
pub(super) async fn complete_snapshot(csi: &Csi, text: &mut String, secrets: &Secrets) -> Result<()> {
    if text.contains(SEPARATORS) {
        return Ok(());
    }
    if let Named::Handle(handle) = snapshot(csi, text, secrets).await? {
        *text = handle;
    }
    Ok(())
}

/// The handle to delete. The driver is asked also for what is not listed: what is half deleted may not be.
pub(super) fn or_missing(named: Named, text: String, missing: &mut Vec<String>) -> String {
    match named {
        Named::Handle(handle) => return handle,
        Named::Nobody => missing.push(text.clone()),
        Named::Unknown => {}
    }
    text
}

/// A delete of nothing fails, and says so.
pub(super) fn tell_missing(kind: &str, list: &str, missing: &[String]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    anyhow::bail!("there is no {kind} {missing}, so nothing was deleted of that; {list} shows handles")
}

async fn handles(csi: &Csi) -> Option<Vec<String>> {
    let (mut all, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request = csi.request(pb::ListVolumesRequest { max_entries: 0, starting_token });
        let page = csi.controller.clone().list_volumes(request).await.ok()?.into_inner();
        all.extend(page.entries.into_iter().filter_map(|entry| Some(entry.volume?.volume_id)));
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Some(all);
        }
    }
}

async fn snapshot_handles(csi: &Csi, secrets: &Secrets) -> Option<Vec<String>> {
    let (mut all, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListSnapshotsRequest {
            starting_token,
            secrets: secrets.clone(),
            ..pb::ListSnapshotsRequest::default()
        };
        let page = csi.controller.clone().list_snapshots(csi.request(request)).await.ok()?.into_inner();
        all.extend(page.entries.into_iter().filter_map(|entry| Some(entry.snapshot?.snapshot_id)));
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Some(all);
        }
    }
}

fn choose(handles: &[String], text: &str) -> Result<Named> {
    if handles.iter().any(|handle| handle == text) {
        return Ok(Named::Handle(text.to_owned()));
    }
    let ends = |handle: &&String| handle.rsplit(SEPARATORS).next() == Some(text);
    let found: Vec<_> = handles.iter().filter(ends).collect();
    match found[..] {
        [] => Ok(Named::Nobody),
        [one] => Ok(Named::Handle(one.clone())),
        _ => {
            let all = found.into_iter().cloned().collect::<Vec<_>>().join(", ");
            Err(Usage(format!("{text:?} could be any of {all}: write the whole handle")).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_handle_where_it_is_one_volumes() {
        let handles = ["default:db", "fast:db", "default:web", "ceph:rbd/n/web-1", "db2"].map(str::to_owned);
        let found = |text: &str| choose(&handles, text).map_err(|error| error.to_string());
        assert_eq!(found("default:db"), Ok(Named::Handle("default:db".into())), "a handle is one");
        assert_eq!(found("web"), Ok(Named::Handle("default:web".into())));
        assert_eq!(found("web-1"), Ok(Named::Handle("ceph:rbd/n/web-1".into())));
        assert_eq!(found("d"), Ok(Named::Nobody));
        let ambiguous = found("db").unwrap_err();
        assert!(ambiguous.contains("default:db, fast:db"), "{ambiguous}");
    }
}
