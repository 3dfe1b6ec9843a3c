//! The local backend's part of the configuration.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::handle::is_root_name;
use crate::{Error, NodeId, Result, parse_size};

/// The size of a volume for which none is asked: 1 GiB.
pub const DEFAULT_SIZE: u64 = 1 << 30;
/// What the default reserve never exceeds: 1 GiB.
const DEFAULT_RESERVE_MAX: u64 = 1 << 30;

/// The local backend's configuration. In a file the keys are camelCase, unknown ones are refused and sizes are written
/// as `10Gi`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalConfig {
    /// Directories that volumes are made in, by a name of `[a-z0-9-]`, at most 30 characters. Each is made when missing.
    pub roots: BTreeMap<String, PathBuf>,
    /// The node that this process runs on.
    #[serde(default = "no_node")]
    pub node: NodeId,
    /// The topology key whose value is the node, such as `topology.local.csi.volumectl.io/node`.
    #[serde(default = "default_topology_key")]
    pub topology_key: String,
    /// The cluster that owns the volumes, kept in every record. Volumes of another cluster are not deleted.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// What is kept free in every root's file system.
    #[serde(default)]
    pub reserve: Reserve,
    /// Whether volumes are attached by the controller (ControllerPublishVolume).
    #[serde(default)]
    pub attach: bool,
    /// Who grows volumes.
    #[serde(default)]
    pub expansion: ExpandedBy,
    /// Bytes of a volume for which no size is asked.
    #[serde(default = "default_size", deserialize_with = "size")]
    pub default_size: u64,
}

/// Who grows volumes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpandedBy {
    /// ControllerExpandVolume, then NodeExpandVolume.
    #[default]
    Controller,
    /// NodeExpandVolume alone, on the volume's node: for clusters, where one resizer acts for all nodes.
    Node,
}

/// What is kept free in a root's file system: no volume is made or grown that could not be filled without it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reserve {
    /// 5 % of the file system, but at most 1 GiB.
    #[default]
    Default,
    /// So many bytes; written as `2Gi`.
    Bytes(u64),
    /// So many hundredths of the file system's size; written as `10%`.
    Percent(u8),
}

impl Reserve {
    /// The bytes to keep free in a file system of `total` bytes.
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Default => (total / 20).min(DEFAULT_RESERVE_MAX),
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("reserve {text:?}: write a size such as \"2Gi\" or a share such as \"5%\" (0% to 99%)")
        };
        match text.strip_suffix('%') {
            Some(number) => {
                let percent = number.parse::<u8>().ok().filter(|percent| *percent < 100);
                percent.map(Self::Percent).ok_or_else(wrong)
            }
            None => parse_size(text).map(Self::Bytes).map_err(|_| wrong()),
        }
    }
}

impl std::str::FromStr for Reserve {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).map_err(|problem| Error::invalid("reserve", problem))
    }
}

impl<'de> Deserialize<'de> for Reserve {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Size::deserialize(deserializer)? {
            Size::Number(bytes) => Ok(Self::Bytes(bytes)),
            Size::Text(text) => Self::parse(&text).map_err(D::Error::custom),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match Size::deserialize(deserializer)? {
        Size::Number(bytes) => Ok(bytes),
        Size::Text(text) => parse_size(&text).map_err(D::Error::custom),
    }
}

fn default_size() -> u64 {
    DEFAULT_SIZE
}

fn default_topology_key() -> String {
    "topology.local.csi.volumectl.io/node".into()
}

fn default_cluster() -> String {
    "default".into()
}

fn no_node() -> NodeId {
    NodeId(String::new())
}

impl LocalConfig {
    /// A configuration with these roots and node, and the defaults for all else.
    pub fn new(roots: BTreeMap<String, PathBuf>, node: NodeId) -> Self {
        Self {
            roots,
            node,
            topology_key: default_topology_key(),
            cluster: default_cluster(),
            reserve: Reserve::default(),
            attach: false,
            expansion: ExpandedBy::default(),
            default_size: DEFAULT_SIZE,
        }
    }

    /// Checks all fields: [`Error::Invalid`] names the first that is wrong.
    pub(super) fn validate(&self) -> Result<()> {
        if self.roots.is_empty() {
            return Err(Error::invalid(
                "roots",
                "none given; name at least one directory, such as default: /var/lib/volumes",
            ));
        }
        for (name, path) in &self.roots {
            check_root(name, path)?;
            self.check_nesting(name, path)?;
        }
        if self.node.0.is_empty() || self.node.0.len() > 256 {
            return Err(Error::invalid("node", "must be a node's name of 1 to 256 bytes"));
        }
        if self.topology_key.is_empty() {
            return Err(Error::invalid(
                "topologyKey",
                "is empty; write such as topology.local.csi.volumectl.io/node",
            ));
        }
        if self.cluster.is_empty() {
            return Err(Error::invalid(
                "cluster",
                "is empty; give a name that no other cluster using these roots has",
            ));
        }
        if self.default_size == 0 || i64::try_from(self.default_size).is_err() {
            return Err(Error::invalid("defaultSize", "must be from 1 byte to 2^63-1 bytes"));
        }
        Ok(())
    }

    fn check_nesting(&self, name: &str, path: &Path) -> Result<()> {
        let inside = self.roots.iter().find(|(other, at)| *other != name && path.starts_with(at));
        match inside {
            Some((other, _)) => {
                let problem =
                    format!("is the same as or inside root {other:?}; roots must be apart from each other");
                Err(Error::invalid(format!("roots[{name:?}]"), problem))
            }
            None => Ok(()),
        }
    }
}

fn check_root(name: &str, path: &Path) -> Result<()> {
    let field = format!("roots[{name:?}]");
    if !is_root_name(name) {
        let problem = "a root's name is 1 to 30 characters of a-z, 0-9 and `-`, a letter or digit first";
        return Err(Error::invalid(field, problem));
    }
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() {
        let problem = format!("{} is not an absolute path without `..`, below `/`", path.display());
        return Err(Error::invalid(field, problem));
    }
    Ok(())
}
