//! Snapshots and groups of snapshots.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use csi_proto::v1 as pb;
use serde_json::Value;

use super::Shown;
use super::args::{map, pair};
use super::names;
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
        #[arg(value_name = "VOLUME")]
        source: String,
        /// A VolumeSnapshotClass parameter.
        #[arg(long = "param", value_parser = pair, value_name = "KEY=VALUE")]
        parameters: Vec<(String, String)>,
    },
    /// Delete snapshots
    #[command(visible_alias = "rm")]
    Delete {
        /// Their handles or names.
        #[arg(required = true, value_name = "SNAPSHOT")]
        ids: Vec<String>,
    },
    /// List snapshots
    #[command(visible_alias = "ls")]
    List {
        /// Only those of a volume.
        #[arg(long, default_value = "", value_name = "VOLUME", hide_default_value = true)]
        volume: String,
    },
    /// Show a snapshot
    Get {
        /// Its handle or name.
        #[arg(value_name = "SNAPSHOT")]
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
        #[arg(long = "volume", required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
        /// A VolumeGroupSnapshotClass parameter.
        #[arg(long = "param", value_parser = pair, value_name = "KEY=VALUE")]
        parameters: Vec<(String, String)>,
    },
    /// Show a group
    Get {
        /// Its handle.
        #[arg(value_name = "GROUP")]
        id: String,
    },
    /// Delete a group with its snapshots
    #[command(visible_alias = "rm")]
    Delete {
        /// Its handle.
        #[arg(value_name = "GROUP")]
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
            names::complete(csi, &mut source).await?;
            let parameters = map("--param", &parameters)?;
            let request = pb::CreateSnapshotRequest { source_volume_id: source, name, secrets, parameters };
            let answer = controller.create_snapshot(csi.request(request)).await?.into_inner();
            let snapshot = answer.snapshot.context("the driver answered without a snapshot")?;
            Some((output::json("Snapshot", &snapshot)?, SNAPSHOT))
        }
        Verb::Delete { ids } => delete(csi, ids, &secrets).await?,
        Verb::List { mut volume } => {
            if !volume.is_empty() {
                names::complete(csi, &mut volume).await?;
            }
            Some((list(csi, &volume, &secrets).await?, SNAPSHOT))
        }
        Verb::Get { mut id } => {
            names::complete_snapshot(csi, &mut id, &secrets).await?;
            let request = pb::GetSnapshotRequest { snapshot_id: id, secrets };
            let answer = controller.get_snapshot(csi.request(request)).await?.into_inner();
            let snapshot = answer.snapshot.context("the driver answered without a snapshot")?;
            Some((output::json("Snapshot", &snapshot)?, SNAPSHOT))
        }
    })
}

async fn delete(csi: &Csi, ids: Vec<String>, secrets: &BTreeMap<String, String>) -> Result<Shown> {
    let mut missing = Vec::new();
    for id in ids {
        let snapshot_id = names::or_missing(names::snapshot(csi, &id, secrets).await?, id, &mut missing);
        let request =
            pb::DeleteSnapshotRequest { snapshot_id: snapshot_id.clone(), secrets: secrets.clone() };
        let answer = csi.controller.clone().delete_snapshot(csi.request(request)).await;
        answer.with_context(|| format!("deleting {snapshot_id}"))?;
    }
    names::tell_missing("snapshot", "`volumectl csi snapshot list`", &missing).map(|()| None)
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
        GroupVerb::Create { name, mut volumes, parameters } => {
            for volume in &mut volumes {
                names::complete(csi, volume).await?;
            }
            let request = pb::CreateVolumeGroupSnapshotRequest {
                name,
                source_volume_ids: volumes,
                secrets,
                parameters: map("--param", &parameters)?,
            };
            group.create_volume_group_snapshot(csi.request(request)).await?.into_inner().group_snapshot
        }
        GroupVerb::Get { id } => get_group(csi, id, &secrets).await?,
        GroupVerb::Delete { id } => {
            // The members are the driver's to check, so it is asked for them first.
            let found = match get_group(csi, id.clone(), &secrets).await {
                Err(status) if status.code() == tonic::Code::NotFound => None,
                other => other?,
            };
            let missing: Vec<_> = found.is_none().then(|| id.clone()).into_iter().collect();
            let snapshot_ids = found.into_iter().flat_map(|g| g.snapshots).map(|s| s.snapshot_id).collect();
            let request =
                pb::DeleteVolumeGroupSnapshotRequest { group_snapshot_id: id, snapshot_ids, secrets };
            group.delete_volume_group_snapshot(csi.request(request)).await?;
            names::tell_missing("group", "`volumectl csi snapshot list -o wide`", &missing)?;
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
