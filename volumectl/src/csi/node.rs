//! The Node's verbs: what kubelet does.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use csi_proto::v1 as pb;

use super::Shown;
use super::args::{CapabilityArgs, map, pair, range, size};
use super::names;
use crate::client::Csi;
use crate::output::{self, Column, Show};

/// Verbs about volumes on this node.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a volume ready on this node (NodeStageVolume)
    Stage {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// Where: kubelet's globalmount.
        #[arg(long, value_name = "DIR")]
        staging: PathBuf,
        #[command(flatten)]
        capability: CapabilityArgs,
        #[command(flatten)]
        context: ContextArgs,
    },
    /// Take that back (NodeUnstageVolume)
    Unstage {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// Where it is staged.
        #[arg(long, value_name = "DIR")]
        staging: PathBuf,
    },
    /// Show a staged volume to a pod (NodePublishVolume)
    Publish {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// Where it is staged.
        #[arg(long, value_name = "DIR")]
        staging: PathBuf,
        /// Where the pod sees it.
        #[arg(long, value_name = "PATH")]
        target: PathBuf,
        #[command(flatten)]
        capability: CapabilityArgs,
        #[command(flatten)]
        context: ContextArgs,
        /// The pod may only read.
        #[arg(long)]
        readonly: bool,
    },
    /// Take that back (NodeUnpublishVolume)
    Unpublish {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// Where the pod sees it.
        #[arg(long, value_name = "PATH")]
        target: PathBuf,
    },
    /// Show room, inodes and health (NodeGetVolumeStats)
    Stats {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// Where it is staged or published.
        #[arg(long, value_name = "PATH")]
        path: PathBuf,
    },
    /// Grow the file system after `expand` (NodeExpandVolume)
    NodeExpand {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// Where it is staged or published.
        #[arg(long, value_name = "PATH")]
        path: PathBuf,
        /// At least so large.
        #[arg(short, long, value_parser = size, value_name = "SIZE")]
        size: Option<i64>,
    },
}

/// What the controller's answers are passed on with.
#[derive(Debug, Args)]
pub(super) struct ContextArgs {
    /// An entry of the volume's context, from `create`.
    #[arg(long = "context", value_parser = pair, value_name = "KEY=VALUE")]
    context: Vec<(String, String)>,
    /// An entry of the publish context, from `attach`.
    #[arg(long = "publish-context", value_parser = pair, value_name = "KEY=VALUE")]
    publish: Vec<(String, String)>,
}

const USAGE: &[Column] = &[
    Column("UNIT", "/unit", Show::Plain),
    Column("TOTAL", "/total", Show::Plain),
    Column("USED", "/used", Show::Plain),
    Column("AVAILABLE", "/available", Show::Plain),
    Column("CONDITION", "/condition", Show::Plain),
];

const EXPANDED: &[Column] = &[Column("SIZE", "/capacityBytes", Show::Size)];

fn text(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Verb {
    fn volume(&mut self) -> &mut String {
        match self {
            Self::Stage { id, .. }
            | Self::Unstage { id, .. }
            | Self::Publish { id, .. }
            | Self::Unpublish { id, .. }
            | Self::Stats { id, .. }
            | Self::NodeExpand { id, .. } => id,
        }
    }
}

pub(super) async fn run(csi: &Csi, mut verb: Verb, secrets: BTreeMap<String, String>) -> Result<Shown> {
    let mut node = csi.node.clone();
    names::complete(csi, verb.volume()).await?;
    match verb {
        Verb::Stage { id, staging, capability, context } => {
            let request = pb::NodeStageVolumeRequest {
                volume_id: id,
                publish_context: map("--publish-context", &context.publish)?,
                staging_target_path: text(&staging),
                volume_capability: Some(capability.capability()),
                secrets,
                volume_context: map("--context", &context.context)?,
            };
            node.node_stage_volume(csi.request(request)).await?;
        }
        Verb::Unstage { id, staging } => {
            let request = pb::NodeUnstageVolumeRequest { volume_id: id, staging_target_path: text(&staging) };
            node.node_unstage_volume(csi.request(request)).await?;
        }
        Verb::Publish { id, staging, target, capability, context, readonly } => {
            let request = pb::NodePublishVolumeRequest {
                volume_id: id,
                publish_context: map("--publish-context", &context.publish)?,
                staging_target_path: text(&staging),
                target_path: text(&target),
                volume_capability: Some(capability.capability()),
                readonly,
                secrets,
                volume_context: map("--context", &context.context)?,
            };
            node.node_publish_volume(csi.request(request)).await?;
        }
        Verb::Unpublish { id, target } => {
            let request = pb::NodeUnpublishVolumeRequest { volume_id: id, target_path: text(&target) };
            node.node_unpublish_volume(csi.request(request)).await?;
        }
        Verb::Stats { id, path } => return stats(csi, id, text(&path)).await,
        Verb::NodeExpand { id, path, size } => {
            let request = pb::NodeExpandVolumeRequest {
                volume_id: id,
                volume_path: text(&path),
                capacity_range: range(size, None),
                secrets,
                ..pb::NodeExpandVolumeRequest::default()
            };
            let answer = node.node_expand_volume(csi.request(request)).await?.into_inner();
            return Ok(Some((output::json("NodeExpandVolumeResponse", &answer)?, EXPANDED)));
        }
    }
    Ok(None)
}

async fn stats(csi: &Csi, volume_id: String, volume_path: String) -> Result<Shown> {
    let request =
        pb::NodeGetVolumeStatsRequest { volume_id, volume_path, staging_target_path: String::new() };
    let answer = csi.node.clone().node_get_volume_stats(csi.request(request)).await?.into_inner();
    let condition = answer.volume_condition.unwrap_or_default().message;
    let mut rows = Vec::new();
    for usage in &answer.usage {
        let mut row = output::json("VolumeUsage", usage)?;
        row["condition"] = condition.as_str().into();
        rows.push(row);
    }
    Ok(Some((rows.into(), USAGE)))
}
