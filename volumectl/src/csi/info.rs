//! `info` and `probe`.

use anyhow::Result;
use csi_proto::v1 as pb;
use serde_json::{Value, json};
use tonic::Code;

use super::Shown;
use crate::client::Csi;
use crate::output::{self, Column, Show};

const INFO: &[Column] = &[
    Column("DRIVER", "/name", Show::Plain),
    Column("VERSION", "/vendorVersion", Show::Plain),
    Column("PLUGIN", "/plugin", Show::Plain),
    Column("CONTROLLER", "/controller", Show::Plain),
    Column("GROUP", "/groupController", Show::Wide),
    Column("NODE", "/node", Show::Plain),
    Column("NODE ID", "/nodeInfo/nodeId", Show::Plain),
    Column("ATTENTION", "/manifest/attention", Show::Plain),
    Column("TOPOLOGY", "/nodeInfo/accessibleTopology/segments", Show::Wide),
];

const PROBE: &[Column] = &[Column("READY", "/ready", Show::Plain)];

pub(super) async fn info(csi: &Csi) -> Result<Shown> {
    let plugin =
        csi.identity.clone().get_plugin_info(csi.request(pb::GetPluginInfoRequest {})).await?.into_inner();
    let mut value = output::json("GetPluginInfoResponse", &plugin)?;
    let request = csi.request(pb::GetPluginCapabilitiesRequest {});
    let answer = csi.identity.clone().get_plugin_capabilities(request).await?.into_inner();
    value["plugin"] = names(&output::json("GetPluginCapabilitiesResponse", &answer)?);

    let request = csi.request(pb::ControllerGetCapabilitiesRequest {});
    if let Some(answer) = served(csi.controller.clone().controller_get_capabilities(request).await)? {
        value["controller"] = names(&output::json("ControllerGetCapabilitiesResponse", &answer)?);
    }
    let request = csi.request(pb::GroupControllerGetCapabilitiesRequest {});
    if let Some(answer) = served(csi.group.clone().group_controller_get_capabilities(request).await)? {
        value["groupController"] = names(&output::json("GroupControllerGetCapabilitiesResponse", &answer)?);
    }
    let request = csi.request(pb::NodeGetCapabilitiesRequest {});
    if let Some(answer) = served(csi.node.clone().node_get_capabilities(request).await)? {
        value["node"] = names(&output::json("NodeGetCapabilitiesResponse", &answer)?);
    }
    if let Some(answer) =
        served(csi.node.clone().node_get_info(csi.request(pb::NodeGetInfoRequest {})).await)?
    {
        value["nodeInfo"] = output::json("NodeGetInfoResponse", &answer)?;
    }
    Ok(Some((value, INFO)))
}

/// A service that this process does not serve is no error.
fn served<T>(answer: Result<tonic::Response<T>, tonic::Status>) -> Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// The names in a list of capabilities, wherever CSI nests them.
fn names(answer: &Value) -> Value {
    let name = |c: &Value| {
        ["/rpc/type", "/service/type", "/volumeExpansion/type"].iter().find_map(|at| c.pointer(at)).cloned()
    };
    answer["capabilities"].as_array().map_or(Value::Null, |list| list.iter().filter_map(name).collect())
}

pub(super) async fn probe(csi: &Csi) -> Result<Shown> {
    let answer = csi.identity.clone().probe(csi.request(pb::ProbeRequest {})).await?.into_inner();
    // Not set means ready (CSI Probe).
    Ok(Some((json!({ "ready": answer.ready.unwrap_or(true) }), PROBE)))
}
