//! What is announced to Kubernetes: read from the traits of the backend, and nowhere else.

use csi_proto::v1 as pb;
use pb::controller_service_capability::rpc::Type as Controller;
use pb::group_controller_service_capability::rpc::Type as Group;
use pb::node_service_capability::rpc::Type as Node;
use pb::plugin_capability::service::Type as Service;
use provisioners::{Backend, Feature};

/// GetPluginCapabilities: of the plugin as a whole, the same from each of its processes, whatever that one serves (CSI
/// `GetPluginCapabilities`: "all instances of the same version SHALL return the same set of capabilities").
pub(crate) fn plugin(backend: &Backend) -> Vec<pb::PluginCapability> {
    use pb::plugin_capability::{Service as Entry, Type, VolumeExpansion, volume_expansion};
    let mut services = vec![Service::ControllerService];
    services.extend(backend.has(Feature::GroupSnapshots).then_some(Service::GroupControllerService));
    services.extend(backend.has(Feature::ChangedBlocks).then_some(Service::SnapshotMetadataService));
    services.extend(backend.has(Feature::Topology).then_some(Service::VolumeAccessibilityConstraints));
    let mut types: Vec<_> = services.into_iter().map(|s| Type::Service(Entry { r#type: s.into() })).collect();
    if backend.has(Feature::Expansion) {
        types.push(Type::VolumeExpansion(VolumeExpansion { r#type: volume_expansion::Type::Online.into() }));
    }
    types.into_iter().map(|t| pb::PluginCapability { r#type: Some(t) }).collect()
}

/// ControllerGetCapabilities.
pub(crate) fn controller(backend: &Backend) -> Vec<pb::ControllerServiceCapability> {
    let has = |feature, types: &[Controller]| {
        if backend.has(feature) { types.to_vec() } else { Vec::new() }
    };
    let both = |a, b, types: &[Controller]| {
        if backend.has(a) && backend.has(b) { types.to_vec() } else { Vec::new() }
    };
    let at_controller = backend.expansion.as_ref().is_none_or(|it| !it.is_on_node());
    [
        vec![Controller::CreateDeleteVolume, Controller::GetVolume, Controller::VolumeCondition],
        vec![Controller::SingleNodeMultiWriter],
        has(Feature::Attachment, &[Controller::PublishUnpublishVolume, Controller::PublishReadonly]),
        has(Feature::Listing, &[Controller::ListVolumes]),
        both(Feature::Listing, Feature::Attachment, &[Controller::ListVolumesPublishedNodes]),
        has(Feature::Capacity, &[Controller::GetCapacity]),
        has(
            Feature::Snapshots,
            &[Controller::CreateDeleteSnapshot, Controller::ListSnapshots, Controller::GetSnapshot],
        ),
        has(Feature::Clones, &[Controller::CloneVolume]),
        if at_controller { has(Feature::Expansion, &[Controller::ExpandVolume]) } else { Vec::new() },
        has(Feature::Modify, &[Controller::ModifyVolume]),
    ]
    .concat()
    .into_iter()
    .map(|t| {
        use pb::controller_service_capability::{Rpc, Type};
        pb::ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: t.into() })) }
    })
    .collect()
}

/// GroupControllerGetCapabilities.
pub(crate) fn group(backend: &Backend) -> Vec<pb::GroupControllerServiceCapability> {
    use pb::group_controller_service_capability::{Rpc, Type};
    let types = backend.has(Feature::GroupSnapshots).then_some(Group::CreateDeleteGetVolumeGroupSnapshot);
    let entry =
        |t: Group| pb::GroupControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: t.into() })) };
    types.into_iter().map(entry).collect()
}

/// NodeGetCapabilities.
pub(crate) fn node(backend: &Backend) -> Vec<pb::NodeServiceCapability> {
    use pb::node_service_capability::{Rpc, Type};
    let mut types = vec![
        Node::StageUnstageVolume,
        Node::GetVolumeStats,
        Node::VolumeCondition,
        Node::SingleNodeMultiWriter,
        Node::VolumeMountGroup,
    ];
    types.extend(backend.has(Feature::Expansion).then_some(Node::ExpandVolume));
    types
        .into_iter()
        .map(|t| pb::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: t.into() })) })
        .collect()
}
