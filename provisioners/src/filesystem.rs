//! The file systems that a node can make on a block volume, and what a request may say of them.

use crate::{AccessType, Capability, Error, Result};

/// The file systems that the node's side can make.
pub(crate) const FS_TYPES: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Why a volume on a block device cannot be accessed so: a file system that is not offered.
pub(crate) fn supports_access(access: &AccessType) -> Result<()> {
    match access {
        AccessType::Mount { fs_type, .. } if !fs_type.is_empty() && !FS_TYPES.contains(&fs_type.as_str()) => {
            Err(Error::invalid(
                "volume_capability.mount.fs_type",
                format!("{fs_type:?} is unknown; known: {}", FS_TYPES.join(", ")),
            ))
        }
        _ => Ok(()),
    }
}

/// Why a disk that several nodes can have cannot be used so; `what` it is, and what helps.
pub(crate) fn supports_disk(capability: &Capability, what: &str, instead: &str) -> Result<()> {
    let writes = !capability.mode.is_read_only();
    if capability.mode.is_multi_node() && writes && capability.access != AccessType::Block {
        return Err(Error::invalid(
            "volume_capability.access_mode",
            format!(
                "{:?}: ext4, xfs and btrfs on one {what} are destroyed by a second node that writes; use {instead}, or ReadWriteOnce",
                capability.mode
            ),
        ));
    }
    supports_access(&capability.access)
}

/// The one file system asked for by capabilities and parameter.
pub(crate) fn wished(capabilities: &[Capability], parameter: Option<&str>) -> Result<Option<String>> {
    let mut wish = parameter.map(str::to_owned);
    for capability in capabilities {
        let AccessType::Mount { fs_type, .. } = &capability.access else {
            continue;
        };
        match &wish {
            _ if fs_type.is_empty() => {}
            Some(other) if other != fs_type => {
                return Err(Error::invalid(
                    "volume_capability.mount.fs_type",
                    format!(
                        "{fs_type:?}, but {other:?} is asked for as well (another capability, or parameters[\"fsType\"]); ask for one"
                    ),
                ));
            }
            _ => wish = Some(fs_type.clone()),
        }
    }
    Ok(wish)
}

/// Splits extra arguments for mkfs. A path could make mkfs write elsewhere or read the node's files, and a word that
/// follows no option would be taken for a device, so both are refused.
pub(crate) fn mkfs_options(text: &str) -> Result<Vec<String>, String> {
    let mut after_option = false;
    for word in text.split_whitespace() {
        if let Some(bad) = word.chars().find(|c| !c.is_ascii_alphanumeric() && !"-_=,.:^+".contains(*c)) {
            return Err(format!("{bad:?} cannot be in an option for mkfs"));
        }
        let option = word.starts_with('-') && word.len() > 1;
        if !option && !after_option {
            return Err(format!("{word:?} is no option and follows none; write such as \"-m 0\""));
        }
        after_option = option;
    }
    Ok(text.split_whitespace().map(str::to_owned).collect())
}
