//! Requests that are right; tests change one field.

use std::path::Path;

use csi_proto::v1 as pb;
use pb::volume_capability::access_mode::Mode;
use pb::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

/// One MiB in bytes.
pub const MIB: i64 = 1 << 20;

/// A mount capability, SINGLE_NODE_WRITER.
pub fn mount(fs_type: &str) -> pb::VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    pb::VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: mode(Mode::SingleNodeWriter),
    }
}

/// A block capability, SINGLE_NODE_WRITER.
pub fn block() -> pb::VolumeCapability {
    pb::VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: mode(Mode::SingleNodeWriter),
    }
}

/// The same capability with another access mode.
pub fn with_mode(capability: &pb::VolumeCapability, wanted: Mode) -> pb::VolumeCapability {
    pb::VolumeCapability { access_mode: mode(wanted), ..capability.clone() }
}

// The field is optional on the wire, so this spares every caller a `Some`.
#[allow(clippy::unnecessary_wraps)]
fn mode(mode: Mode) -> Option<AccessMode> {
    Some(AccessMode { mode: mode.into() })
}

/// A range with a lower end.
pub fn at_least(bytes: i64) -> Option<pb::CapacityRange> {
    Some(pb::CapacityRange { required_bytes: bytes, limit_bytes: 0 })
}

/// CreateVolume.
pub fn create(name: &str, bytes: i64, capability: pb::VolumeCapability) -> pb::CreateVolumeRequest {
    pb::CreateVolumeRequest {
        name: name.into(),
        capacity_range: at_least(bytes),
        volume_capabilities: vec![capability],
        ..pb::CreateVolumeRequest::default()
    }
}

/// DeleteVolume.
pub fn delete(id: &str) -> pb::DeleteVolumeRequest {
    pb::DeleteVolumeRequest { volume_id: id.into(), ..pb::DeleteVolumeRequest::default() }
}

/// A source for CreateVolume: a snapshot.
pub fn from_snapshot(id: &str) -> Option<pb::VolumeContentSource> {
    use pb::volume_content_source::{SnapshotSource, Type};
    Some(pb::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })) })
}

/// A source for CreateVolume: a volume.
pub fn from_volume(id: &str) -> Option<pb::VolumeContentSource> {
    use pb::volume_content_source::{Type, VolumeSource};
    Some(pb::VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.into() })) })
}

/// CreateSnapshot.
pub fn snapshot(source: &str, name: &str) -> pb::CreateSnapshotRequest {
    pb::CreateSnapshotRequest {
        source_volume_id: source.into(),
        name: name.into(),
        ..pb::CreateSnapshotRequest::default()
    }
}

/// DeleteSnapshot.
pub fn delete_snapshot(id: &str) -> pb::DeleteSnapshotRequest {
    pb::DeleteSnapshotRequest { snapshot_id: id.into(), ..pb::DeleteSnapshotRequest::default() }
}

/// ControllerExpandVolume.
pub fn expand(id: &str, bytes: i64) -> pb::ControllerExpandVolumeRequest {
    pb::ControllerExpandVolumeRequest {
        volume_id: id.into(),
        capacity_range: at_least(bytes),
        ..pb::ControllerExpandVolumeRequest::default()
    }
}

/// ControllerPublishVolume.
pub fn attach(id: &str, node: &str, capability: pb::VolumeCapability) -> pb::ControllerPublishVolumeRequest {
    pb::ControllerPublishVolumeRequest {
        volume_id: id.into(),
        node_id: node.into(),
        volume_capability: Some(capability),
        ..pb::ControllerPublishVolumeRequest::default()
    }
}

/// ControllerUnpublishVolume; an empty node stands for all.
pub fn detach(id: &str, node: &str) -> pb::ControllerUnpublishVolumeRequest {
    pb::ControllerUnpublishVolumeRequest {
        volume_id: id.into(),
        node_id: node.into(),
        ..pb::ControllerUnpublishVolumeRequest::default()
    }
}

/// NodeStageVolume.
pub fn stage(id: &str, staging: &Path, capability: pb::VolumeCapability) -> pb::NodeStageVolumeRequest {
    pb::NodeStageVolumeRequest {
        volume_id: id.into(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability),
        ..pb::NodeStageVolumeRequest::default()
    }
}

/// NodePublishVolume.
pub fn publish(
    id: &str,
    staging: &Path,
    target: &Path,
    capability: pb::VolumeCapability,
) -> pb::NodePublishVolumeRequest {
    pb::NodePublishVolumeRequest {
        volume_id: id.into(),
        staging_target_path: staging.display().to_string(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability),
        ..pb::NodePublishVolumeRequest::default()
    }
}

/// NodeUnpublishVolume.
pub fn unpublish(id: &str, target: &Path) -> pb::NodeUnpublishVolumeRequest {
    pb::NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: target.display().to_string() }
}

/// NodeUnstageVolume.
pub fn unstage(id: &str, staging: &Path) -> pb::NodeUnstageVolumeRequest {
    pb::NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: staging.display().to_string() }
}

/// NodeGetVolumeStats.
pub fn stats(id: &str, path: &Path) -> pb::NodeGetVolumeStatsRequest {
    pb::NodeGetVolumeStatsRequest {
        volume_id: id.into(),
        volume_path: path.display().to_string(),
        ..pb::NodeGetVolumeStatsRequest::default()
    }
}

/// NodeExpandVolume.
pub fn node_expand(id: &str, path: &Path, bytes: i64) -> pb::NodeExpandVolumeRequest {
    pb::NodeExpandVolumeRequest {
        volume_id: id.into(),
        volume_path: path.display().to_string(),
        capacity_range: at_least(bytes),
        ..pb::NodeExpandVolumeRequest::default()
    }
}
