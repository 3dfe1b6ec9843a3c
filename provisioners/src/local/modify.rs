//! ControllerModifyVolume: what can truly be changed.

use super::create::set_attributes;
use super::params::{DOCS, Mutable, VolumeType};
use super::store::Store;
use crate::parameters::canonical;
use crate::{Error, Result, StringMap, VolumeId};

impl Store {
    /// Sets mutable parameters: first on disk, then in the record, so that a repeat completes what was interrupted.
    pub(super) fn modify(&self, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        let wish = Mutable::parse(parameters)?;
        let found = self.volume(id)?;
        match found.record.kind {
            VolumeType::Directory => {
                found.whole()?;
                set_attributes(&found.data(), wish)?;
            }
            VolumeType::File => check_file(found.record.fs.file_system(), wish)?,
        }
        found.update(|record| {
            let before = record.modified.clone();
            record.modified.extend(canonical(parameters, &DOCS));
            Ok(record.modified != before)
        })?;
        Ok(())
    }
}

/// A file volume's mode is given to its fresh file system; from then on it is its users'.
fn check_file(formatted: Option<&str>, wish: Mutable) -> Result<()> {
    let field = |key: &str| format!("mutable_parameters[{key:?}]");
    for (key, value) in [("uid", wish.uid), ("gid", wish.gid)] {
        if value.is_some() {
            return Err(Error::invalid(
                field(key),
                "only a volume of type \"directory\" has it; use fsGroup",
            ));
        }
    }
    match (formatted, wish.mode) {
        (Some(fs_type), Some(_)) => Err(Error::invalid(
            field("mode"),
            format!(
                "the volume holds {fs_type} already, whose root its users own; change the mode from a pod"
            ),
        )),
        _ => Ok(()),
    }
}
