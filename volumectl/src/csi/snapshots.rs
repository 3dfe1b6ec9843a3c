//! Snapshots and groups of snapshots.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use csi_proto::v1 as pb;
use serde_json::Value;

use super::Shown;
use super::args::{map, pair};
use crate::client::Csi;
use crate::output::{self, Column, Show};

/// Verbs about snapshots.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Take a snapshot, or show the one of that name
    Create {
        /// The name: the same name gives the same snapshot.
        name: String,
        /// The volume's handle or name.
        source: String,
        /// A VolumeSnapshotClass parameter.
        #[arg(long = "param", value_parser = pair, value_name = "KEY=VALUE")]
        parameters: Vec<(String, String)>,
    },
    /// Delete snapshots
    Delete {
        /// Snapshot handles.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// List snapshots
    List {
        /// Only those of a volume.
        #[arg(long, default_value = "")]
        source: String,
    },
    /// Show a snapshot
    Get {
        /// Its handle.
        id: String,
    },
}

/// Verbs about groups.
#[derive(Debug, Subcommand)]
pub(super) enum GroupVerb {
    /// Take snapshots of several volumes at one moment
    Create {
        /// The name: the same name gives the same group.
        name: String,
        /// A volume's handle or name; give it for each.
        #[arg(long = "volume", required = true)]
        volumes: Vec<String>,
    },
    /// Show a group
    Get {
        /// Its handle.
        id: String,
    },
    /// Delete a group with its snapshots
    Delete {
        /// Its handle.
        id: String,
    },
}

const SNAPSHOT: &[Column] = &[
    Column("SNAPSHOT", "/snapshotId", Show::Plain),
    Column("VOLUME", "/sourceVolumeId", Show::Plain),
    Column("SIZE", "/sizeBytes", Show::Size),
    Column("CREATED", "/creationTime", Show::Plain),
    Column("READY", "/readyToUse", Show::Plain),
    Column("GROUP", "/groupSnapshotId", Show::Wide),
];

const GROUP: &[Column] = &[
    Column("GROUP", "/groupSnapshotId", Show::Plain),
    Column("CREATED", "/creationTime", Show::Plain),
    Column("READY", "/readyToUse", Show::Plain),
    Column("SNAPSHOTS", "/ids", Show::Plain),
];

pub(super) async fn run(csi: &Csi, verb: Verb, secrets: BTreeMap<String, String>) -> Result<Shown> {
    let mut controller = csi.controller.clone();
    Ok(match verb {
        Verb::Create { mut source, name, parameters } => {
            super::names::complete(csi, &mut source).await?;
            let parameters = map("--param", &parameters)?;
            let request = pb::CreateSnapshotRequest { source_volume_id: source, name, secrets, parameters };
            let answer = controller.create_snapshot(csi.request(request)).await?.into_inner();
            let snapshot = answer.snapshot.context("the driver answered without a snapshot")?;
            Some((output::json("Snapshot", &snapshot)?, SNAPSHOT))
        }
        Verb::Delete { ids } => {
            for snapshot_id in ids {
                let request =
                    pb::DeleteSnapshotRequest { snapshot_id: snapshot_id.clone(), secrets: secrets.clone() };
                let answer = controller.delete_snapshot(csi.request(request)).await;
                answer.with_context(|| format!("deleting {snapshot_id}"))?;
            }
            None
        }
        Verb::List { source } => Some((list(csi, &source, &secrets).await?, SNAPSHOT)),
        Verb::Get { id } => {
            let request = pb::GetSnapshotRequest { snapshot_id: id, secrets };
            let answer = controller.get_snapshot(csi.request(request)).await?.into_inner();
            let snapshot = answer.snapshot.context("the driver answered without a snapshot")?;
            Some((output::json("Snapshot", &snapshot)?, SNAPSHOT))
        }
    })
}

async fn list(csi: &Csi, source: &str, secrets: &BTreeMap<String, String>) -> Result<Value> {
    let (mut entries, mut starting_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListSnapshotsRequest {
            starting_token,
            source_volume_id: source.to_owned(),
            secrets: secrets.clone(),
            ..pb::ListSnapshotsRequest::default()
        };
        let page = csi.controller.clone().list_snapshots(csi.request(request)).await?.into_inner();
        for snapshot in page.entries.into_iter().filter_map(|e| e.snapshot) {
            entries.push(output::json("Snapshot", &snapshot)?);
        }
        starting_token = page.next_token;
        if starting_token.is_empty() {
            return Ok(entries.into());
        }
    }
}

pub(super) async fn run_group(
    csi: &Csi,
    verb: GroupVerb,
    secrets: BTreeMap<String, String>,
) -> Result<Shown> {
    let mut group = csi.group.clone();
    let found = match verb {
        GroupVerb::Create { name, mut volumes } => {
            for volume in &mut volumes {
                super::names::complete(csi, volume).await?;
            }
            let request = pb::CreateVolumeGroupSnapshotRequest {
                name,
                source_volume_ids: volumes,
                secrets,
                parameters: BTreeMap::new(),
            };
            group.create_volume_group_snapshot(csi.request(request)).await?.into_inner().group_snapshot
        }
        GroupVerb::Get { id } => get_group(csi, id, &secrets).await?,
        GroupVerb::Delete { id } => {
            // The members are the driver's to check, so it is asked for them first; a group that is gone is deleted.
            let found = match get_group(csi, id.clone(), &secrets).await {
                Err(status) if status.code() == tonic::Code::NotFound => None,
                other => other?,
            };
            let snapshot_ids = found.into_iter().flat_map(|g| g.snapshots).map(|s| s.snapshot_id).collect();
            let request =
                pb::DeleteVolumeGroupSnapshotRequest { group_snapshot_id: id, snapshot_ids, secrets };
            group.delete_volume_group_snapshot(csi.request(request)).await?;
            return Ok(None);
        }
    };
    let found = found.context("the driver answered without a group")?;
    let mut value = output::json("VolumeGroupSnapshot", &found)?;
    value["ids"] = found.snapshots.iter().map(|s| s.snapshot_id.as_str()).collect();
    Ok(Some((value, GROUP)))
}

async fn get_group(
    csi: &Csi,
    id: String,
    secrets: &BTreeMap<String, String>,
) -> Result<Option<pb::VolumeGroupSnapshot>, tonic::Status> {
    let request = pb::GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id,
        snapshot_ids: Vec::new(),
        secrets: secrets.clone(),
    };
    Ok(csi.group.clone().get_volume_group_snapshot(csi.request(request)).await?.into_inner().group_snapshot)
}
