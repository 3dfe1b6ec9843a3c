//! The node's side, without credentials: what it needs comes with the request, and what it formats is noted here.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::handle::{Kind, parse_handle};
use super::store::Store;
use crate::filesystem::mkfs_options;
use crate::record::FsState;
use crate::{Access, CinderDisk, Error, NodeRequest, NodeVolume, Result, VolumeId};

impl Store {
    /// How to get at a volume on this node.
    pub(super) fn access(&self, request: &NodeRequest<'_>) -> Result<NodeVolume> {
        let mut disk = self.disk(request.id)?;
        disk.at_least = request.publish_context.get("bytes").and_then(|text| text.parse().ok());
        let fs = self.fs_note(&disk.id)?;
        let options = request.context.get("mkfsOptions").map(|text| mkfs_options(text)).transpose();
        Ok(NodeVolume {
            access: Access::Cinder(Box::new(disk)),
            size: None,
            fs_type: request.context.get("fsType").cloned(),
            mkfs_options: options
                .map_err(|problem| Error::invalid("volume_context[\"mkfsOptions\"]", problem))?
                .unwrap_or_default(),
            root_mode: None,
            // Noted on this node alone: that the volume was formatted on another one is seen on its disk.
            formatted: None,
            formatting: fs.formatting.is_some(),
        })
    }

    /// How a volume that may be on this node is got at.
    pub(super) fn held(&self, id: &VolumeId) -> Result<Access> {
        Ok(Access::Cinder(Box::new(self.disk(id)?)))
    }

    fn disk(&self, id: &VolumeId) -> Result<CinderDisk> {
        let none = || Error::NotFound(format!("there is no volume {id}"));
        let handle = parse_handle(&id.0).map_err(|_| none())?;
        if handle.kind == Kind::Backup {
            return Err(none());
        }
        Ok(CinderDisk { id: handle.id, root: self.config.device_root.clone(), at_least: None })
    }

    fn note_path(&self, id: &str) -> PathBuf {
        self.config.state.join("cinder").join(format!("{id}.json"))
    }

    fn fs_note(&self, id: &str) -> Result<FsState> {
        let path = self.note_path(id);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::Corrupt { what: path.display().to_string(), problem: e.to_string() }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(FsState::default()),
            Err(e) => Err(Error::io(format!("reading {}", path.display()), e)),
        }
    }

    /// Notes that a format begins, or that it was completed: then the disk itself tells.
    pub(super) fn formatted(&self, id: &VolumeId, fs_type: &str, done: bool) -> Result<()> {
        let path = self.note_path(&self.disk(id)?.id);
        let doing = |e| Error::io(format!("writing {}", path.display()), e);
        if done {
            return match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(doing(e)),
                _ => Ok(()),
            };
        }
        let note = FsState { formatting: Some(fs_type.to_owned()), formatted: None };
        let bytes = serde_json::to_vec(&note).map_err(|e| Error::Internal(e.to_string()))?;
        let dir = path.parent().unwrap_or(&self.config.state);
        fs::create_dir_all(dir).map_err(doing)?;
        let temporary = path.with_extension("new");
        let written = fs::File::create(&temporary).and_then(|mut file| {
            io::Write::write_all(&mut file, &bytes)?;
            file.sync_all()
        });
        written.map_err(doing)?;
        fs::rename(&temporary, &path).map_err(doing)?;
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(doing)
    }
}
