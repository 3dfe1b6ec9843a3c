//! The configuration of the backend: clusters, and how it works.

use std::path::PathBuf;
use std::time::Duration;

use super::handle::check_part;
use crate::{Error, Result};

/// One Ceph cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RbdCluster {
    /// What StorageClasses call it: `clusterID`.
    pub id: String,
    /// The monitors' addresses, such as `10.0.0.1:6789` or `[v2:10.0.0.1:3300,v1:10.0.0.1:6789]`.
    pub monitors: Vec<String>,
    /// A ceph.conf; its monitors and keyring hold where nothing else is given.
    pub conf: Option<PathBuf>,
    /// The user without `client.`, where a call brings no secrets.
    pub user: Option<String>,
    /// A file with that user's key.
    pub key_file: Option<PathBuf>,
    /// The pools that volumes may be in; empty: every pool with the application `rbd`.
    pub pools: Vec<String>,
    /// The RADOS namespace where the class names none; empty: the default one.
    pub namespace: String,
}

/// How a node gets at an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mounter {
    /// The kernel's own client.
    #[default]
    Krbd,
    /// qemu-storage-daemon with a FUSE export and a loop device.
    Fuse,
}

/// When a deleted image's space is freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Purge {
    /// DeleteVolume answers when the image is in the trash; workers remove it.
    #[default]
    Background,
    /// DeleteVolume waits.
    Inline,
}

/// The backend's configuration.
#[derive(Debug, Clone)]
pub struct RbdConfig {
    /// The clusters.
    pub clusters: Vec<RbdCluster>,
    /// Whose volumes these are: the driver's `clusterId`.
    pub owner: String,
    /// Whether ControllerPublishVolume is offered.
    pub attach: bool,
    /// The size of a volume for which none is asked, in bytes.
    pub default_size: u64,
    /// Where a class names none.
    pub mounter: Mounter,
    /// When space is freed.
    pub purge: Purge,
    /// How many images are purged at once.
    pub purge_workers: usize,
    /// How long one call's work at the cluster may take.
    pub call_timeout: Duration,
    /// How many calls work at the cluster at once.
    pub max_calls: usize,
    /// A clone deeper than this is flattened in the background.
    pub soft_depth: u32,
    /// No clone is made that is deeper than this.
    pub hard_depth: u32,
    /// This node's name, for the note of who has an image mapped.
    pub node: String,
    /// Whether this process is the controller (else a node, which does not ask the cluster how it is).
    pub controller: bool,
}

impl Default for RbdConfig {
    fn default() -> Self {
        Self {
            clusters: Vec::new(),
            owner: "default".into(),
            attach: true,
            default_size: 1 << 30,
            mounter: Mounter::Krbd,
            purge: Purge::Background,
            purge_workers: 4,
            call_timeout: Duration::from_secs(60),
            max_calls: 64,
            soft_depth: 4,
            hard_depth: 8,
            node: String::new(),
            controller: true,
        }
    }
}

impl RbdConfig {
    /// Something that cannot be: [`Error::Invalid`].
    pub(super) fn check(&self) -> Result<()> {
        if self.clusters.is_empty() {
            return Err(Error::invalid("clusters", "names no cluster; give at least one"));
        }
        for (i, cluster) in self.clusters.iter().enumerate() {
            let wrong =
                |key: &str, problem: String| Err(Error::invalid(format!("clusters[{i}].{key}"), problem));
            if let Err(problem) = check_part(&cluster.id) {
                return wrong("clusterID", format!("{:?}: {problem}", cluster.id));
            }
            if self.clusters[..i].iter().any(|other| other.id == cluster.id) {
                return wrong("clusterID", format!("{:?} is given twice", cluster.id));
            }
            if cluster.monitors.is_empty() && cluster.conf.is_none() {
                return wrong("monitors", "give the monitors' addresses, or cephConf".into());
            }
            for pool in &cluster.pools {
                if let Err(problem) = check_part(pool) {
                    return wrong("pools", format!("{pool:?}: {problem}"));
                }
            }
        }
        if self.soft_depth > self.hard_depth || self.hard_depth > 15 {
            let problem = "softCloneDepth must not be over hardCloneDepth, and that not over 15: the kernel's client opens no deeper image";
            return Err(Error::invalid("hardCloneDepth", problem));
        }
        Ok(())
    }
}
