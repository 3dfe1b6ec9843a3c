//! ListVolumes, paging and GetCapacity.

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use tonic::Code::{Aborted, InvalidArgument};

use super::{Subject, refused};

/// Pages of every size show each volume once, also when one is deleted on the way.
pub async fn paging_shows_each_volume_once(s: &Subject) -> Result<()> {
    let mut ids = Vec::new();
    for i in 0..5 {
        ids.push(s.create(&format!("contract-page-{i}")).await?.volume_id);
    }
    ids.sort();
    for max_entries in 1..=6 {
        let (mut seen, mut starting_token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListVolumesRequest { max_entries, starting_token };
            let page = s.clients.controller.clone().list_volumes(request).await?.into_inner();
            ensure!(page.entries.len() <= usize::try_from(max_entries)?, "a page of {}", page.entries.len());
            seen.extend(page.entries.into_iter().filter_map(|e| Some(e.volume?.volume_id)));
            starting_token = page.next_token;
            if starting_token.is_empty() {
                break;
            }
        }
        ensure!(seen == ids, "pages of {max_entries}: {seen:?}");
    }
    let first = pb::ListVolumesRequest { max_entries: 2, starting_token: String::new() };
    let first = s.clients.controller.clone().list_volumes(first).await?.into_inner();
    let last_seen = first.entries.last().and_then(|e| e.volume.clone()).unwrap_or_default().volume_id;
    s.delete(&[&last_seen]).await?;
    let rest = pb::ListVolumesRequest { max_entries: 0, starting_token: first.next_token };
    let rest = s.clients.controller.clone().list_volumes(rest).await?.into_inner();
    ensure!(rest.entries.len() == 3, "the page after a deleted volume goes on: {}", rest.entries.len());
    s.delete(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// A token that this listing did not give is ABORTED; a negative page size INVALID_ARGUMENT.
pub async fn bad_tokens_are_aborted(s: &Subject) -> Result<()> {
    let mut controller = s.clients.controller.clone();
    for token in ["bogus", "AAAA", "0", "ZGVmYXVsdDph"] {
        let volumes = pb::ListVolumesRequest { max_entries: 0, starting_token: token.into() };
        refused(controller.list_volumes(volumes).await, Aborted, &["starting_token"])?;
        let snapshots = pb::ListSnapshotsRequest { starting_token: token.into(), ..Default::default() };
        refused(controller.list_snapshots(snapshots).await, Aborted, &["starting_token"])?;
    }
    let negative = pb::ListVolumesRequest { max_entries: -1, starting_token: String::new() };
    refused(controller.list_volumes(negative).await, InvalidArgument, &["max_entries"])
}

/// GetCapacity answers with what is free, for the right topology.
pub async fn capacity_is_real(s: &Subject) -> Result<()> {
    let request = pb::GetCapacityRequest {
        volume_capabilities: vec![s.capability.clone()],
        parameters: s.parameters.clone(),
        accessible_topology: None,
    };
    let mut controller = s.clients.controller.clone();
    let free = controller.get_capacity(request.clone()).await?.into_inner();
    ensure!(free.available_capacity > 0, "{free:?}");
    ensure!(
        free.maximum_volume_size.is_none_or(|m| m > 0) && free.minimum_volume_size.is_none_or(|m| m > 0),
        "{free:?}"
    );
    let node = s.clients.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await?.into_inner();
    if let Some(mut here) = node.accessible_topology {
        let with =
            |topology| pb::GetCapacityRequest { accessible_topology: Some(topology), ..request.clone() };
        ensure!(controller.get_capacity(with(here.clone())).await?.into_inner().available_capacity > 0);
        here.segments.values_mut().for_each(|v| v.push_str("-elsewhere"));
        ensure!(controller.get_capacity(with(here)).await?.into_inner().available_capacity == 0);
    }
    Ok(())
}
