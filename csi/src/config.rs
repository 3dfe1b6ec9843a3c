//! The configuration file. docs/configuration.md lists every key.

mod check;
mod place;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use provisioners::RbdMounter;
use provisioners::cinder::MetadataSource;
use provisioners::local::ExpandedBy;
use provisioners::nfs::{NfsClient, OnDelete};
use serde::{Deserialize, Serialize};

use self::place::{position, syntax_error};

/// The whole file. Keys are camelCase; an unknown one is refused.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node's name: CSI `node_id`. Default: `$NODE_ID`, else the host name.
    #[serde(default)]
    pub node_id: String,
    /// Says whose a volume is, in its record. Default: `default`.
    #[serde(default = "default_cluster")]
    pub cluster_id: String,
    /// Where the sockets are: `<socketDir>/<driver name>.sock`.
    #[serde(default = "default_socket_dir")]
    pub socket_dir: PathBuf,
    /// Where the process keeps what must survive it, such as which file systems it has frozen.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Kubelet's directory; targets below it may not have symbolic links.
    #[serde(default = "default_kubelet_dir")]
    pub kubelet_dir: PathBuf,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; not at all by default.
    #[serde(default)]
    pub http_address: Option<SocketAddr>,
    /// How long running calls may take to end after SIGTERM, in seconds.
    #[serde(default = "default_grace")]
    pub shutdown_grace_seconds: u64,
    /// How long one operation may take, in seconds, before it is asked to end at its next safe point.
    #[serde(default = "default_operation")]
    pub operation_timeout_seconds: u64,
    /// How long one external program may take, in seconds, before it is killed.
    #[serde(default = "default_command")]
    pub command_timeout_seconds: u64,
    /// How many operations work at once in each driver; the others wait.
    #[serde(default = "default_concurrency")]
    pub max_concurrent_operations: usize,
    /// A kubeconfig, for asking how nodes are. Default: the pod's own service account, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// qemu-storage-daemon, where it is not in a usual directory: for volumes of type rbd with `mounter: fuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_storage_daemon: Option<PathBuf>,
    /// What is run for calls that can hang with an NFS server, with the argument `node-helper`. Default: this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub helper_program: Option<PathBuf>,
    /// The backends, each a CSI driver of its own.
    pub backends: Vec<BackendConfig>,
}

/// One backend: its type, its names, and the keys of its type.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendConfig {
    /// Which backend.
    pub r#type: BackendType,
    /// CSI driver name. Default: `<type>.csi.volumectl.io`.
    #[serde(default)]
    pub driver_name: String,
    /// Its socket. Default: `<socketDir>/<driver name>.sock`.
    #[serde(default)]
    pub socket: PathBuf,
    /// local: directories that volumes may be in, by name.
    #[serde(default)]
    pub roots: BTreeMap<String, PathBuf>,
    /// local: free space to keep on each root: a size (`1Gi`) or a percentage (`5%`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserve: Option<String>,
    /// local: by which call volumes are grown: `controller` or `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expansion: Option<ExpandedBy>,
    /// local: the size of a volume for which none is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_size: Option<String>,
    /// rbd: the Ceph clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterConfig>,
    /// rbd: by what images are mapped where the class says nothing: `krbd` or `fuse`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounter: Option<RbdMounter>,
    /// rbd: when a deleted image's space is freed: `background` or `inline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge: Option<PurgeWhen>,
    /// rbd: how many images are purged at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge_workers: Option<usize>,
    /// nfs: the shares.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareConfig>,
    /// nfs: whether a class may name a server and share that are not configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub any_share: Option<bool>,
    /// nfs: what becomes of a deleted volume's directory where the class says nothing: `delete`, `retain` or `archive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_delete: Option<OnDelete>,
    /// nfs: how many connections copy or remove one directory tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree_workers: Option<usize>,
    /// nfs: how often what was left half done is looked for, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep_seconds: Option<u64>,
    /// rbd: how long one call's work at the cluster may take, in seconds. nfs, cinder: how long one call to a server may
    /// take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_timeout_seconds: Option<u64>,
    /// rbd: a clone deeper than this is flattened in the background.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_clone_depth: Option<u32>,
    /// rbd: how many times a pool's whole room one volume may have; 0: any size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_overcommit: Option<u64>,
    /// rbd: no clone is deeper than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_clone_depth: Option<u32>,
    /// cinder: the OpenStack clouds; the first is the one that classes need not name. Nodes need none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clouds: Vec<CloudConfig>,
    /// cinder: volumes are made in Cinder's default zone, and are said to be reachable from everywhere.
    #[serde(default, rename = "ignoreVolumeAZ", skip_serializing_if = "Option::is_none")]
    pub ignore_volume_az: Option<bool>,
    /// cinder: a volume that Nova does not let go, of a server that is shut off, is detached by force (an administrator).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_detach: Option<bool>,
    /// cinder, nodes: the server's UUID, where that is not to be looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// cinder, nodes: the server's availability zone, where that is not to be looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// cinder, nodes: where the server's UUID and zone are looked up, in this order: `configDrive`, `metadataService`,
    /// `cloudInit`, `dmi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_order: Option<Vec<MetadataSource>>,
    /// cinder, nodes: the metadata service's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_url: Option<String>,
    /// cinder, nodes: how many disks a server can have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_volume_attach_limit: Option<u32>,
    /// cinder, nodes: a directory of links named as in /dev/disk/by-id, in place of the node's own disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_root: Option<PathBuf>,
    /// Whether ControllerPublishVolume is offered (`attachRequired` in the CSIDriver object).
    #[serde(default = "default_true")]
    pub attach: bool,
}

/// One OpenStack cloud, or one project of it.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudConfig {
    /// What classes and handles call it.
    pub name: String,
    /// Its name in clouds.yaml. Default: `$OS_CLOUD`, and without that the `OS_*` variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<String>,
    /// A clouds.yaml. Default: `$OS_CLIENT_CONFIG_FILE`, ./clouds.yaml, ~/.config/openstack, /etc/openstack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clouds_file: Option<PathBuf>,
    /// A secure.yaml beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure_file: Option<PathBuf>,
    /// Another region than clouds.yaml has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Another interface than clouds.yaml has: `public`, `internal` or `admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Cinder's address, where it is not the catalog's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_endpoint: Option<String>,
    /// Nova's address, where it is not the catalog's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_endpoint: Option<String>,
}

/// One Ceph cluster.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterConfig {
    /// What classes call it.
    #[serde(rename = "clusterID")]
    pub cluster_id: String,
    /// The monitors' addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub monitors: Vec<String>,
    /// A ceph.conf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceph_conf: Option<PathBuf>,
    /// The user for calls that bring no secrets, without `client.`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file with that user's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The pools that volumes may be in; none: every pool with the application rbd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// The RADOS namespace where the class names none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rados_namespace: String,
}

/// One NFS share.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShareConfig {
    /// What handles and classes call it.
    pub name: String,
    /// The server's name or address.
    pub server: String,
    /// The exported path.
    pub share: String,
    /// The version of the protocol: `3`, `4.1` or `4.2`. Default: the newest that the server speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nfs_version: Option<String>,
    /// NFS's port, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The mount protocol's port (version 3), where the port mapper is not to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_port: Option<u16>,
    /// The user that the controller's calls are made as.
    #[serde(default)]
    pub uid: u32,
    /// The group that the controller's calls are made as.
    #[serde(default)]
    pub gid: u32,
    /// Whether the controller's calls come from a port below 1024, where it may have one.
    #[serde(default = "default_true")]
    pub privileged_port: bool,
    /// Mount options of every volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mount_options: Vec<String>,
    /// The share's content on this machine: nodes bind it instead of mounting the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_path: Option<PathBuf>,
    /// By what the controller gets at the share: `user`, `mount` or `local`.
    #[serde(default)]
    pub client: NfsClient,
}

/// When a deleted image's space is freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PurgeWhen {
    /// Behind the answer.
    Background,
    /// Before the answer.
    Inline,
}

/// The backends that this build has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendType {
    /// Files and directories on the node.
    Local,
    /// Images of Ceph clusters.
    Rbd,
    /// Directories of NFS shares.
    Nfs,
    /// Volumes of OpenStack Cinder.
    Cinder,
}

impl BackendType {
    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Rbd => "rbd",
            Self::Nfs => "nfs",
            Self::Cinder => "cinder",
        }
    }
}

/// A configuration that cannot be used: which file, line and key, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadConfig(String);

impl Config {
    /// Reads, completes and checks a file.
    pub fn load(file: &Path) -> Result<Self, BadConfig> {
        let text =
            std::fs::read_to_string(file).map_err(|e| BadConfig(format!("{}: {e}", file.display())))?;
        Self::parse(&text).map_err(|problem| BadConfig(format!("{}{problem}", file.display())))
    }

    /// Parses, completes and checks a text; an error starts with `:line:column: ` where that is known.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config: Self = serde_saphyr::from_str(text).map_err(|error| syntax_error(text, &error))?;
        config.complete();
        config.check().map_err(|(key, problem)| format!("{}: {key}: {problem}", position(text, &key)))?;
        Ok(config)
    }

    fn complete(&mut self) {
        if self.node_id.is_empty() {
            self.node_id =
                std::env::var("NODE_ID").ok().filter(|id| !id.is_empty()).unwrap_or_else(host_name);
        }
        for backend in &mut self.backends {
            if backend.driver_name.is_empty() {
                backend.driver_name = format!("{}.csi.volumectl.io", backend.r#type.name());
            }
            if backend.socket.as_os_str().is_empty() {
                backend.socket = self.socket_dir.join(format!("{}.sock", backend.driver_name));
            }
        }
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn default_cluster() -> String {
    "default".into()
}

fn default_socket_dir() -> PathBuf {
    "/run/volumectl".into()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/volumectl".into()
}

fn default_kubelet_dir() -> PathBuf {
    "/var/lib/kubelet".into()
}

fn default_grace() -> u64 {
    20
}

fn default_operation() -> u64 {
    600
}

fn default_command() -> u64 {
    120
}

fn default_concurrency() -> usize {
    64
}

fn default_true() -> bool {
    true
}

#[cfg(test)]
mod tests;
