//! The Controller's verbs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use csi_proto::v1 as pb;
use serde_json::{Value, json};

use super::Shown;
use super::args::{self, CapabilityArgs, map, pair, size};
use super::names;
use crate::client::Csi;
use crate::output::{self, Column, Show};

/// Verbs about volumes.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a volume, or show the one of that name
    Create(Box<CreateArgs>),
    /// Delete volumes
    #[command(visible_alias = "rm")]
    Delete {
        /// Their handles or names.
        #[arg(required = true, value_name = "VOLUME")]
        ids: Vec<String>,
    },
    /// List volumes
    #[command(visible_alias = "ls")]
    List {
        /// At most so many (default: all).
        #[arg(long, value_name = "COUNT")]
        max: Option<usize>,
    },
    /// Show a volume
    Get {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
    },
    /// Ask whether a volume can be used in a way
    Validate {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        #[command(flatten)]
        capability: CapabilityArgs,
        /// A StorageClass parameter that it should have.
        #[arg(long = "param", value_parser = pair, value_name = "KEY=VALUE")]
        parameters: Vec<(String, String)>,
    },
    /// Show how much is free
    Capacity {
        /// A StorageClass parameter.
        #[arg(long = "param", value_parser = pair, value_name = "KEY=VALUE")]
        parameters: Vec<(String, String)>,
    },
    /// Attach a volume to a node (ControllerPublishVolume)
    Attach {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// The node (default: the one that this driver's node service is on).
        node: Option<String>,
        #[command(flatten)]
        capability: CapabilityArgs,
        /// The node may only read.
        #[arg(long)]
        readonly: bool,
    },
    /// Detach a volume (ControllerUnpublishVolume)
    Detach {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// The node (default: all).
        #[arg(default_value = "")]
        node: String,
    },
    /// Grow a volume (ControllerExpandVolume)
    #[command(visible_alias = "resize")]
    Expand {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// The new size, such as 20Gi.
        #[arg(short, long, value_parser = size, value_name = "SIZE")]
        size: i64,
    },
    /// Change mutable parameters (ControllerModifyVolume)
    Modify {
        /// Its handle or name.
        #[arg(value_name = "VOLUME")]
        id: String,
        /// A mutable parameter.
        #[arg(long = "mutable", value_parser = pair, value_name = "KEY=VALUE", required = true)]
        mutable: Vec<(String, String)>,
    },
}

/// `create`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The name: the same name gives the same volume.
    name: String,
    /// At least so large, such as 10Gi.
    #[arg(short, long, value_parser = size, value_name = "SIZE")]
    size: Option<i64>,
    /// At most so large.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    limit: Option<i64>,
    #[command(flatten)]
    capability: CapabilityArgs,
    /// A StorageClass parameter; can be given several times.
    #[arg(long = "param", value_parser = pair, value_name = "KEY=VALUE")]
    parameters: Vec<(String, String)>,
    /// A mutable parameter (VolumeAttributesClass).
    #[arg(long = "mutable", value_parser = pair, value_name = "KEY=VALUE")]
    mutable: Vec<(String, String)>,
    /// Fill it from a snapshot.
    #[arg(long, conflicts_with = "from_volume", value_name = "SNAPSHOT")]
    from_snapshot: Option<String>,
    /// Fill it from another volume.
    #[arg(long, value_name = "VOLUME")]
    from_volume: Option<String>,
    /// A topology segment that it must be reachable from.
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    topology: Vec<(String, String)>,
    /// The claim that it is for, as external-provisioner would say.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pvc: Option<String>,
}

const VOLUME: &[Column] = &[
    Column("VOLUME", "/volumeId", Show::Plain),
    Column("SIZE", "/capacityBytes", Show::Size),
    Column("CONTEXT", "/volumeContext", Show::Plain),
    Column("SOURCE", "/contentSource", Show::Wide),
    Column("TOPOLOGY", "/accessibleTopology", Show::Wide),
];

const STATUS: &[Column] = &[
    Column("VOLUME", "/volume/volumeId", Show::Plain),
    Column("SIZE", "/volume/capacityBytes", Show::Size),
    Column("NODES", "/status/publishedNodeIds", Show::Plain),
    Column("CONDITION", "/status/volumeCondition/message", Show::Plain),
    Column("CONTEXT", "/volume/volumeContext", Show::Wide),
    Column("TOPOLOGY", "/volume/accessibleTopology", Show::Wide),
];

const CAPACITY: &[Column] = &[
    Column("AVAILABLE", "/availableCapacity", Show::Size),
    Column("LARGEST", "/maximumVolumeSize", Show::Size),
    Column("SMALLEST", "/minimumVolumeSize", Show::Size),
];

const EXPANDED: &[Column] = &[
    Column("SIZE", "/capacityBytes", Show::Size),
    Column("NODE MUST GROW IT", "/nodeExpansionRequired", Show::Plain),
];

const VALID: &[Column] =
    &[Column("CONFIRMED", "/confirmed", Show::Plain), Column("MESSAGE", "/message", Show::Plain)];

const ATTACHED: &[Column] =
    &[Column("NODE", "/node", Show::Plain), Column("CONTEXT", "/publishContext", Show::Plain)];

impl Verb {
    /// The volume that it is about, if that is one.
    fn volume(&mut self) -> Option<&mut String> {
        match self {
            Self::Create(args) => args.from_volume.as_mut(),
            Self::Delete { .. } | Self::List { .. } | Self::Capacity { .. } => None,
            Self::Get { id }
            | Self::Validate { id, .. }
            | Self::Attach { id, .. }
            | Self::Detach { id, .. }
            | Self::Expand { id, .. }
            | Self::Modify { id, .. } => Some(id),
        }
    }
}

pub(super) async fn run(csi: &Csi, mut verb: Verb, secrets: BTreeMap<String, String>) -> Result<Shown> {
    let mut controller = csi.controller.clone();
    if let Some(id) = verb.volume() {
        names::complete(csi, id).await?;
    }
    if let Verb::Create(args) = &mut verb
        && let Some(snapshot) = args.from_snapshot.as_mut()
    {
        names::complete_snapshot(csi, snapshot, &secrets).await?;
    }
    Ok(match verb {
        Verb::Create(args) => {
            let request = create_request(*args, secrets)?;
            let answer = controller.create_volume(csi.request(request)).await?.into_inner();
            let volume = answer.volume.context("the driver answered without a volume")?;
            Some((output::json("Volume", &volume)?, VOLUME))
        }
        Verb::Delete { ids } => delete(csi, ids, &secrets).await?,
        Verb::List { max } => Some((list(csi, max).await?, STATUS)),
        Verb::Get { id } => {
            let request = csi.request(pb::ControllerGetVolumeRequest { volume_id: id });
            let answer = controller.controller_get_volume(request).await?.into_inner();
            Some((output::json("ControllerGetVolumeResponse", &answer)?, STATUS))
        }
        Verb::Validate { id, capability, parameters } => {
            Some((validate(csi, id, &capability, &parameters, secrets).await?, VALID))
        }
        Verb::Capacity { parameters } => {
            let parameters = map("--param", &parameters)?;
            let request = pb::GetCapacityRequest { parameters, ..pb::GetCapacityRequest::default() };
            let answer = controller.get_capacity(csi.request(request)).await?.into_inner();
            Some((output::json("GetCapacityResponse", &answer)?, CAPACITY))
        }
        Verb::Attach { id, node, capability, readonly } => {
            Some(attach(csi, id, node, &capability, readonly, secrets).await?)
        }
        Verb::Detach { id, node } => {
            let request = pb::ControllerUnpublishVolumeRequest { volume_id: id, node_id: node, secrets };
            controller.controller_unpublish_volume(csi.request(request)).await?;
            None
        }
        Verb::Expand { id, size } => {
            let capacity_range = args::range(Some(size), None);
            let request = pb::ControllerExpandVolumeRequest {
                volume_id: id,
                capacity_range,
                secrets,
                volume_capability: None,
            };
            let answer = controller.controller_expand_volume(csi.request(request)).await?.into_inner();
            Some((output::json("ControllerExpandVolumeResponse", &answer)?, EXPANDED))
        }
        Verb::Modify { id, mutable } => {
            let mutable_parameters = map("--mutable", &mutable)?;
            let request = pb::ControllerModifyVolumeRequest { volume_id: id, secrets, mutable_parameters };
            controller.controller_modify_volume(csi.request(request)).await?;
            None
        }
    })
}

fn create_request(args: CreateArgs, secrets: BTreeMap<String, String>) -> Result<pb::CreateVolumeRequest> {
    let mut parameters = map("--param", &args.parameters)?;
    if let Some(pvc) = &args.pvc {
        let (namespace, name) = pvc.split_once('/').unwrap_or(("default", pvc));
        parameters.insert("csi.storage.k8s.io/pvc/namespace".into(), namespace.into());
        parameters.insert("csi.storage.k8s.io/pvc/name".into(), name.into());
        parameters.insert("csi.storage.k8s.io/pv/name".into(), args.name.clone());
    }
    let segments = map("--topology", &args.topology)?;
    let topology = (!segments.is_empty()).then(|| pb::TopologyRequirement {
        requisite: vec![pb::Topology { segments }],
        preferred: Vec::new(),
    });
    Ok(pb::CreateVolumeRequest {
        name: args.name,
        capacity_range: args::range(args.size, args.limit),
        volume_capabilities: vec![args.capability.capability()],
        parameters,
        secrets,
        volume_content_source: args::source(args.from_snapshot, args.from_volume),
        accessibility_requirements: topology,
        mutable_parameters: map("--mutable", &args.mutable)?,
    })
}

async fn delete(csi: &Csi, ids: Vec<String>, secrets: &BTreeMap<String, String>) -> Result<Shown> {
    let mut missing = Vec::new();
    for id in ids {
        let volume_id = names::or_missing(names::volume(csi, &id).await?, id, &mut missing);
        let request = pb::DeleteVolumeRequest { volume_id: volume_id.clone(), secrets: secrets.clone() };
        let answer = csi.controller.clone().delete_volume(csi.request(request)).await;
        answer.with_context(|| format!("deleting {volume_id}"))?;
    }
    names::tell_missing("volume", "`volumectl csi list`", &missing).map(|()| None)
}

async fn list(csi: &Csi, max: Option<usize>) -> Result<Value> {
    let (mut entries, mut starting_token) = (Vec::new(), String::new());
    loop {
        let left = max.map_or(0, |max| max - entries.len());
        let request =
            pb::ListVolumesRequest { max_entries: i32::try_from(left).unwrap_or(0), starting_token };
        let page = csi.controller.clone().list_volumes(csi.request(request)).await?.into_inner();
        for entry in &page.entries {
            entries.push(output::json("ListVolumesResponse.Entry", entry)?);
        }
        starting_token = page.next_token;
        if starting_token.is_empty() || max.is_some_and(|max| entries.len() >= max) {
            return Ok(entries.into());
        }
    }
}

async fn validate(
    csi: &Csi,
    volume_id: String,
    capability: &CapabilityArgs,
    parameters: &[(String, String)],
    secrets: BTreeMap<String, String>,
) -> Result<Value> {
    let request = pb::ValidateVolumeCapabilitiesRequest {
        volume_id,
        volume_capabilities: vec![capability.capability()],
        parameters: map("--param", parameters)?,
        secrets,
        ..pb::ValidateVolumeCapabilitiesRequest::default()
    };
    let answer =
        csi.controller.clone().validate_volume_capabilities(csi.request(request)).await?.into_inner();
    Ok(json!({ "confirmed": answer.confirmed.is_some(), "message": answer.message }))
}

async fn attach(
    csi: &Csi,
    volume_id: String,
    node: Option<String>,
    capability: &CapabilityArgs,
    readonly: bool,
    secrets: BTreeMap<String, String>,
) -> Result<(Value, &'static [Column])> {
    let node_id = match node {
        Some(node) => node,
        None => {
            csi.node.clone().node_get_info(csi.request(pb::NodeGetInfoRequest {})).await?.into_inner().node_id
        }
    };
    let request = pb::ControllerPublishVolumeRequest {
        volume_id,
        node_id: node_id.clone(),
        volume_capability: Some(capability.capability()),
        readonly,
        secrets,
        volume_context: BTreeMap::new(),
    };
    let answer = csi.controller.clone().controller_publish_volume(csi.request(request)).await?.into_inner();
    Ok((json!({ "node": node_id, "publishContext": answer.publish_context }), ATTACHED))
}
