//! The node's side: where the data is, and what is known of the file system on it.

use std::fs;
use std::path::Path;

use super::layout::{remove_file, sync};
use super::params::VolumeType;
use super::record::is_absent;
use super::store::Store;
use crate::{Access, Error, FsNote, NodeVolume, Permit, Result, VolumeId};

/// The file in a volume's directory by which an operator allows a format, once.
const PERMIT: &str = "allow-format";

impl Store {
    /// How to get at a volume on this node.
    pub(super) fn access(&self, id: &VolumeId) -> Result<NodeVolume> {
        let found = self.volume(id)?;
        // Longer than recorded: an expansion was interrupted, and the device will have the file's length.
        let size = found.whole()?;
        let params = self.params_of(&found.record)?;
        let (path, fs) = (found.data(), &found.record.fs);
        Ok(NodeVolume {
            access: match found.record.kind {
                VolumeType::File => Access::LoopFile { path },
                VolumeType::Directory => Access::Directory { path },
            },
            size: Some(size),
            fs_type: found.record.fs_type.clone(),
            mkfs_options: params.mkfs_options,
            root_mode: params.mode.filter(|_| params.kind == VolumeType::File),
            formatted: fs.file_system().map(str::to_owned),
            raw: fs.is_raw(),
            vouched: None,
            permit: Permit {
                code: permit(&found.dir)?,
                how: format!("`echo CODE > {}` on this node", found.dir.join(PERMIT).display()),
            },
        })
    }

    /// Notes what is done with a volume's file system. An operator's permission is used up first.
    pub(super) fn note(&self, id: &VolumeId, note: &FsNote) -> Result<()> {
        let found = self.volume(id)?;
        if let FsNote::Making { permit: Some(code), .. } = note {
            if permit(&found.dir)?.as_ref() != Some(code) {
                return Err(Error::Refused(format!(
                    "volume {id}: the permission to format it was taken back"
                )));
            }
            remove_file(&found.dir.join(PERMIT))?;
            sync(&found.dir)?;
        }
        found.update(|record| {
            let before = record.fs.clone();
            record.fs.take(&id.0, note)?;
            Ok(record.fs != before)
        })?;
        Ok(())
    }
}

/// An operator's code beside a volume's data.
fn permit(dir: &Path) -> Result<Option<String>> {
    let path = dir.join(PERMIT);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
    }
}
