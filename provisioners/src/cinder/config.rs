//! The configuration of the backend: clouds, and how it works.

use std::path::PathBuf;
use std::time::Duration;

use crate::naming::is_safe_component;
use crate::{Error, Result};

/// One OpenStack cloud, or one project of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CinderCloud {
    /// What classes and handles call it.
    pub name: String,
    /// Its name in clouds.yaml. `None`: `OS_CLOUD`, and without that the `OS_*` variables.
    pub cloud: Option<String>,
    /// A clouds.yaml. `None`: the usual places.
    pub clouds_file: Option<PathBuf>,
    /// A secure.yaml beside it.
    pub secure_file: Option<PathBuf>,
    /// Another region than clouds.yaml has.
    pub region: Option<String>,
    /// Another interface than clouds.yaml has: `public`, `internal` or `admin`.
    pub interface: Option<String>,
    /// Cinder's address, where it is not the catalog's.
    pub volume_endpoint: Option<String>,
    /// Nova's address, where it is not the catalog's.
    pub compute_endpoint: Option<String>,
}

/// Where a node learns which server of Nova it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MetadataSource {
    /// The config drive, a small disk with the label `config-2`.
    ConfigDrive,
    /// The metadata service, at 169.254.169.254.
    MetadataService,
    /// What cloud-init has noted below /var/lib/cloud.
    CloudInit,
    /// The product's UUID of the firmware tables.
    Dmi,
}

impl MetadataSource {
    /// All, in the usual order.
    pub const ALL: [Self; 4] = [Self::ConfigDrive, Self::MetadataService, Self::CloudInit, Self::Dmi];
}

/// The backend's configuration.
#[derive(Debug, Clone)]
pub struct CinderConfig {
    /// The clouds; the first is the one that classes need not name. Nodes need none.
    pub clouds: Vec<CinderCloud>,
    /// Whose volumes these are: the driver's `clusterId`.
    pub owner: String,
    /// The size of a volume for which none is asked, in bytes.
    pub default_size: u64,
    /// How long one request may take.
    pub call_timeout: Duration,
    /// Volumes are made in Cinder's default zone and said to be reachable from everywhere.
    pub ignore_zone: bool,
    /// The key of the zone in topologies.
    pub topology_key: String,
    /// A volume that Nova does not let go, of a server that is shut off, is detached by force. Needs an administrator.
    pub force_detach: bool,
    /// Whether this process is the controller.
    pub controller: bool,
    /// Which server of Nova this node is, where that is not to be looked up.
    pub instance: Option<String>,
    /// The zone of this node, where that is not to be looked up.
    pub zone: Option<String>,
    /// Where a node learns which server it is, in this order.
    pub metadata_order: Vec<MetadataSource>,
    /// The metadata service's address.
    pub metadata_url: String,
    /// How many disks a server can have; `None`: by the bus of the disks that it has.
    pub max_disks: Option<u32>,
    /// What the node's system is seen below: `/`.
    pub root: PathBuf,
    /// A directory of links to devices, in place of the node's own disks.
    pub device_root: Option<PathBuf>,
    /// Where the node notes what it has formatted.
    pub state: PathBuf,
}

impl Default for CinderConfig {
    fn default() -> Self {
        Self {
            clouds: Vec::new(),
            owner: "default".into(),
            default_size: 1 << 30,
            call_timeout: Duration::from_secs(30),
            ignore_zone: false,
            topology_key: "topology.cinder.csi.volumectl.io/zone".into(),
            force_detach: false,
            controller: true,
            instance: None,
            zone: None,
            metadata_order: MetadataSource::ALL.to_vec(),
            metadata_url: "http://169.254.169.254".into(),
            max_disks: None,
            root: "/".into(),
            device_root: None,
            state: "/var/lib/volumectl".into(),
        }
    }
}

impl CinderConfig {
    /// The name of the cloud that handles do not name.
    pub(super) fn first_cloud(&self) -> Option<&str> {
        self.clouds.first().map(|cloud| cloud.name.as_str())
    }

    /// Something that cannot be: [`Error::Invalid`].
    pub(super) fn check(&self) -> Result<()> {
        if self.controller && self.clouds.is_empty() {
            return Err(Error::invalid(
                "clouds",
                "names no cloud; give at least one, such as [{name: main}]",
            ));
        }
        for (i, cloud) in self.clouds.iter().enumerate() {
            let wrong = |problem: &str| {
                Err(Error::invalid(format!("clouds[{i}].name"), format!("{:?}: {problem}", cloud.name)))
            };
            if !is_safe_component(&cloud.name) || cloud.name.len() > 63 {
                return wrong("at most 63 letters, digits, `.`, `_` and `-`, a letter or digit first");
            }
            if self.clouds[..i].iter().any(|other| other.name == cloud.name) {
                return wrong("is given twice");
            }
        }
        if self.metadata_order.is_empty() && self.instance.is_none() {
            return Err(Error::invalid("metadataOrder", "is empty, and no instanceId is given"));
        }
        Ok(())
    }
}
