//! Publications that kubelet will never take down: their mounts would keep the volume from being unstaged for ever.
//!
//! Kubelet's own files prove it, never an age or a name. What cannot be proved is counted as in use.

use std::fs;
use std::path::{Path, PathBuf};

use provisioners::Result;

use super::paths::is_absent;
use super::{Host, device, mounts, users};

impl Host {
    /// Whether kubelet has forgotten a target of its own.
    pub(super) fn is_orphan(&self, target: &Path) -> Result<bool> {
        let kubelet = self.paths.real_kubelet();
        let Ok(within) = target.strip_prefix(kubelet) else { return Ok(false) };
        let parts: Vec<_> = within.iter().map(|part| part.to_str().unwrap_or_default()).collect();
        match parts[..] {
            // Kubelet writes vol_data.json before NodePublishVolume and removes it after NodeUnpublishVolume; without it
            // it has no data to call NodeUnpublishVolume with (pkg/volume/csi: NewMounter, TearDownAt, NewUnmounter).
            ["pods", _, "volumes", "kubernetes.io~csi", _, "mount"] => {
                let volume = target.parent().unwrap_or(target);
                Ok(volume.is_dir() && is_absent(&volume.join("vol_data.json"))?)
            }
            // A pod's directory is removed when kubelet has torn its volumes down (pkg/volume/csi/csi_block.go).
            ["plugins", "kubernetes.io", "csi", "volumeDevices", "publish", _, pod]
            | ["plugins", "kubernetes.io", "csi", "volumeDevices", _, "dev", pod] => {
                let pods = kubelet.join("pods");
                // An empty directory may be one that is not kubelet's.
                let is_kubelets = fs::read_dir(&pods).is_ok_and(|mut entries| entries.next().is_some());
                Ok(is_kubelets && is_absent(&pods.join(pod))?)
            }
            _ => Ok(false),
        }
    }
}

/// Who has a device's file system mounted, or its node bound, in another mount name space at a place that is none of
/// those that are known here: a container.
pub fn containers_with(device: &Path) -> Result<Vec<String>> {
    let number = mounts::device_number(device)?;
    let here = mounts::select(|m| device::is_of(m, device, number))?;
    let known: Vec<PathBuf> =
        here.iter().filter_map(|m| m.target.strip_prefix("/").ok()).map(Path::to_path_buf).collect();
    // The node's directories can be mounted in another container below a directory of their own.
    users::mounted_elsewhere(|m| {
        device::is_of(m, device, number) && !known.iter().any(|target| m.target.ends_with(target))
    })
}
