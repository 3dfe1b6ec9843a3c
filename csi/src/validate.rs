//! The checks that the specification asks of every field, before any backend is called.

use csi_proto::v1 as pb;
use provisioners::{AccessMode, AccessType, Capability, CapacityRange, Error, Result, StringMap};

/// Largest string field, in bytes (CSI "Size Limits").
pub(crate) const MAX_STRING: usize = 128;
/// Largest map field, keys and values together, in bytes (CSI "Size Limits").
pub(crate) const MAX_MAP: usize = 4096;
/// Largest `node_id`, in bytes (CSI `NodeGetInfoResponse`).
pub(crate) const MAX_NODE_ID: usize = 256;
/// Largest path, in bytes (PATH_MAX).
pub(crate) const MAX_PATH: usize = 4096;

/// A required name or handle: not empty, not over `max` bytes, no control characters.
pub(crate) fn text<'a>(field: &str, value: &'a str, max: usize) -> Result<&'a str> {
    if value.is_empty() {
        return Err(Error::invalid(field, "is required and was empty"));
    }
    if value.len() > max {
        return Err(Error::invalid(
            field,
            format!("is {} bytes long; at most {max} are allowed", value.len()),
        ));
    }
    if let Some(bad) = value.chars().find(|c| c.is_control()) {
        return Err(Error::invalid(
            field,
            format!("has the control character U+{:04X}; remove it", bad as u32),
        ));
    }
    Ok(value)
}

/// A required volume handle.
pub(crate) fn volume_id(value: &str) -> Result<&str> {
    text("volume_id", value, MAX_STRING)
}

/// A map within the size limit, and with no empty key.
pub(crate) fn map<'a>(field: &str, value: &'a StringMap) -> Result<&'a StringMap> {
    let size: usize = value.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > MAX_MAP {
        return Err(Error::invalid(field, format!("is {size} bytes large; at most {MAX_MAP} are allowed")));
    }
    if value.contains_key("") {
        return Err(Error::invalid(field, "has an empty key"));
    }
    Ok(value)
}

/// A volume that exists: one written into a pod would be made by this call, as no backend does.
pub(crate) fn persistent(context: &StringMap) -> Result<()> {
    const KEY: &str = "csi.storage.k8s.io/ephemeral";
    match context.get(KEY).map(String::as_str) {
        Some("true") => Err(Error::invalid(
            format!("volume_context[{KEY:?}]"),
            "inline volumes (csi in a pod's volumes) are not made by this driver; use a generic ephemeral volume (ephemeral.volumeClaimTemplate)",
        )),
        _ => Ok(()),
    }
}

/// A required absolute path without `..`. What lies on it is checked when it is used.
pub(crate) fn path<'a>(field: &str, value: &'a str) -> Result<&'a std::path::Path> {
    let path = std::path::Path::new(text(field, value, MAX_PATH)?);
    if !path.is_absolute() {
        return Err(Error::invalid(field, format!("{value:?} is not an absolute path")));
    }
    if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(Error::invalid(field, format!("{value:?} has a \"..\" component")));
    }
    Ok(path)
}

/// An absolute path as [`path`] wants it, if one was given.
pub(crate) fn optional_path<'a>(field: &str, value: &'a str) -> Result<Option<&'a std::path::Path>> {
    if value.is_empty() { Ok(None) } else { path(field, value).map(Some) }
}

/// The range, or an empty one when none was given.
pub(crate) fn range(value: Option<&pb::CapacityRange>) -> Result<CapacityRange> {
    let Some(range) = value else {
        return Ok(CapacityRange::default());
    };
    let required = size("capacity_range.required_bytes", range.required_bytes)?;
    let limit = size("capacity_range.limit_bytes", range.limit_bytes)?;
    if required == 0 && limit == 0 {
        return Err(Error::invalid(
            "capacity_range",
            "has neither required_bytes nor limit_bytes; give at least one",
        ));
    }
    Ok(CapacityRange { required, limit })
}

/// A range whose ends are in order. It is asked last, for this is [`Error::OutOfRange`], and what has no form is told first.
pub(crate) fn ordered(range: CapacityRange) -> Result<()> {
    let CapacityRange { required, limit } = range;
    if limit != 0 && limit < required {
        return Err(Error::OutOfRange(format!(
            "capacity_range: limit_bytes {limit} is below required_bytes {required}; raise the limit"
        )));
    }
    Ok(())
}

fn size(field: &str, value: i64) -> Result<u64> {
    u64::try_from(value)
        .map_err(|_| Error::invalid(field, format!("is negative ({value}); give a number of bytes")))
}

/// The number of entries wanted; 0 means all.
pub(crate) fn max_entries(value: i32) -> Result<usize> {
    usize::try_from(value)
        .map_err(|_| Error::invalid("max_entries", format!("is negative ({value}); 0 means all")))
}

/// Capabilities of one volume: at least one, each whole, and not block and mount at once.
pub(crate) fn capabilities(field: &str, values: &[pb::VolumeCapability]) -> Result<Vec<Capability>> {
    if values.is_empty() {
        return Err(Error::invalid(field, "is required and was empty"));
    }
    let parsed = values
        .iter()
        .enumerate()
        .map(|(i, value)| capability(&format!("{field}[{i}]"), Some(value)))
        .collect::<Result<Vec<_>>>()?;
    let blocks = parsed.iter().filter(|c| c.access == AccessType::Block).count();
    if blocks != 0 && blocks != parsed.len() {
        return Err(Error::invalid(
            field,
            "asks for block and mount access of one volume; choose one of them",
        ));
    }
    Ok(parsed)
}

/// One required capability.
pub(crate) fn capability(field: &str, value: Option<&pb::VolumeCapability>) -> Result<Capability> {
    use pb::volume_capability::AccessType as Wire;
    let value = value.ok_or_else(|| Error::invalid(field, "is required and was missing"))?;
    let access = match &value.access_type {
        None => {
            return Err(Error::invalid(format!("{field}.access_type"), "is missing; give block or mount"));
        }
        Some(Wire::Block(_)) => AccessType::Block,
        Some(Wire::Mount(mount)) => mount_type(field, mount)?,
    };
    let mode = value.access_mode.as_ref().map_or(0, |m| m.mode);
    Ok(Capability { access, mode: access_mode(&format!("{field}.access_mode"), mode)? })
}

fn mount_type(field: &str, mount: &pb::volume_capability::MountVolume) -> Result<AccessType> {
    if !mount.fs_type.is_empty() {
        text(&format!("{field}.mount.fs_type"), &mount.fs_type, MAX_STRING)?;
    }
    let total: usize = mount.mount_flags.iter().map(String::len).sum();
    if total > MAX_MAP {
        let problem = format!("is {total} bytes large; at most {MAX_MAP} are allowed");
        return Err(Error::invalid(format!("{field}.mount.mount_flags"), problem));
    }
    if mount.mount_flags.iter().any(|flag| flag.contains(char::is_control)) {
        // The flags are not in the text: the specification says that they may hold secrets.
        return Err(Error::invalid(
            format!("{field}.mount.mount_flags"),
            "have a control character; remove it",
        ));
    }
    Ok(AccessType::Mount {
        fs_type: mount.fs_type.clone(),
        flags: mount.mount_flags.clone(),
        group: group(&format!("{field}.mount.volume_mount_group"), &mount.volume_mount_group)?,
    })
}

fn group(field: &str, value: &str) -> Result<Option<u32>> {
    if value.is_empty() {
        return Ok(None);
    }
    let gid =
        value.parse().map_err(|_| Error::invalid(field, format!("{value:?} is not a numeric group id")))?;
    Ok(Some(gid))
}

fn access_mode(field: &str, mode: i32) -> Result<AccessMode> {
    use pb::volume_capability::access_mode::Mode;
    Ok(match Mode::try_from(mode) {
        Ok(Mode::SingleNodeWriter) => AccessMode::SingleNodeWriter,
        Ok(Mode::SingleNodeReaderOnly) => AccessMode::SingleNodeReaderOnly,
        Ok(Mode::MultiNodeReaderOnly) => AccessMode::MultiNodeReaderOnly,
        Ok(Mode::MultiNodeSingleWriter) => AccessMode::MultiNodeSingleWriter,
        Ok(Mode::MultiNodeMultiWriter) => AccessMode::MultiNodeMultiWriter,
        Ok(Mode::SingleNodeSingleWriter) => AccessMode::SingleNodeSingleWriter,
        Ok(Mode::SingleNodeMultiWriter) => AccessMode::SingleNodeMultiWriter,
        Ok(Mode::Unknown) => return Err(Error::invalid(field, "is required and was missing or UNKNOWN")),
        Err(_) => {
            return Err(Error::invalid(field, format!("{mode} is not an access mode of CSI 1.12")));
        }
    })
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
