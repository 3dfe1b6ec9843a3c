//! Between the messages of csi.proto and the plain structs of the backends. Nothing else knows both.

use csi_proto::v1 as pb;
use prost_types::Timestamp;
pub(crate) use provisioners::split_parameters;
use provisioners::{
    Condition, Error, GroupSnapshot, Result, Snapshot, Source, Topology, TopologyRequest, Volume,
};

use crate::validate;

/// What a volume is to be filled from.
pub(crate) fn source(value: Option<&pb::VolumeContentSource>) -> Result<Option<Source>> {
    use pb::volume_content_source::Type;
    let Some(value) = value else { return Ok(None) };
    let (field, id) = match &value.r#type {
        None => {
            return Err(Error::invalid("volume_content_source", "is given without a snapshot or a volume"));
        }
        Some(Type::Snapshot(s)) => ("volume_content_source.snapshot.snapshot_id", &s.snapshot_id),
        Some(Type::Volume(v)) => ("volume_content_source.volume.volume_id", &v.volume_id),
    };
    validate::text(field, id, validate::MAX_STRING)?;
    Ok(Some(match &value.r#type {
        Some(Type::Snapshot(_)) => Source::Snapshot(id.as_str().into()),
        _ => Source::Volume(id.as_str().into()),
    }))
}

/// Where a volume must be reachable.
pub(crate) fn topology(value: Option<pb::TopologyRequirement>) -> Option<TopologyRequest> {
    let segments = |list: Vec<pb::Topology>| list.into_iter().map(|t| t.segments).collect();
    value.map(|v| TopologyRequest { requisite: segments(v.requisite), preferred: segments(v.preferred) })
}

/// A size for the wire. Sizes are checked to fit when they come in; a larger one of a backend is cut.
pub(crate) fn bytes(size: u64) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// A volume for the wire.
pub(crate) fn volume(v: &Volume) -> pb::Volume {
    pb::Volume {
        capacity_bytes: bytes(v.capacity),
        volume_id: v.id.to_string(),
        volume_context: v.context.clone(),
        content_source: v.source.as_ref().map(content_source),
        accessible_topology: v.topology.iter().map(topology_segments).collect(),
    }
}

fn content_source(source: &Source) -> pb::VolumeContentSource {
    use pb::volume_content_source::{SnapshotSource, Type, VolumeSource};
    let source = match source {
        Source::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        Source::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_string() }),
    };
    pb::VolumeContentSource { r#type: Some(source) }
}

/// One topology for the wire.
pub(crate) fn topology_segments(segments: &Topology) -> pb::Topology {
    pb::Topology { segments: segments.clone() }
}

/// A condition for the wire.
pub(crate) fn condition(c: &Condition) -> pb::VolumeCondition {
    pb::VolumeCondition { abnormal: c.abnormal, message: c.message.clone() }
}

/// The nodes a volume is published to.
pub(crate) fn published(v: &Volume) -> Vec<String> {
    v.published.iter().map(ToString::to_string).collect()
}

/// A snapshot for the wire.
pub(crate) fn snapshot(s: &Snapshot) -> pb::Snapshot {
    pb::Snapshot {
        size_bytes: bytes(s.size),
        snapshot_id: s.id.to_string(),
        source_volume_id: s.source.to_string(),
        creation_time: Some(timestamp(s.created)),
        ready_to_use: s.ready,
        group_snapshot_id: s.group.clone().unwrap_or_default(),
    }
}

/// A group of snapshots for the wire.
pub(crate) fn group(g: &GroupSnapshot) -> pb::VolumeGroupSnapshot {
    pb::VolumeGroupSnapshot {
        group_snapshot_id: g.id.clone(),
        snapshots: g.snapshots.iter().map(snapshot).collect(),
        creation_time: Some(timestamp(g.created)),
        ready_to_use: g.ready,
    }
}

fn timestamp(time: jiff::Timestamp) -> Timestamp {
    // Protobuf wants nanoseconds that count forward from the second, jiff gives both the sign of the time.
    let (seconds, nanos) = (time.as_second(), time.subsec_nanosecond());
    if nanos < 0 {
        Timestamp { seconds: seconds - 1, nanos: nanos + 1_000_000_000 }
    } else {
        Timestamp { seconds, nanos }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_forward() {
        let time = timestamp(jiff::Timestamp::from_nanosecond(-1).unwrap());
        assert_eq!((time.seconds, time.nanos), (-1, 999_999_999));
    }

    #[test]
    fn a_source_without_content_is_refused() {
        assert_eq!(source(Some(&pb::VolumeContentSource { r#type: None })).unwrap_err().label(), "invalid");
    }
}
