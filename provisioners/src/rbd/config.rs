//! The configuration of the backend: clusters, and how it works.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::handle::check_part;
use crate::identity::{firsts, host};
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
    /// How many times a pool's whole room one volume may have; 0: any size.
    pub max_overcommit: u64,
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
            max_overcommit: 20,
            soft_depth: 4,
            hard_depth: 8,
            node: String::new(),
            controller: true,
        }
    }
}

impl RbdCluster {
    /// Whether another entry is of the same Ceph cluster, with another user perhaps, as far as the configuration tells: a
    /// monitor is one cluster's.
    fn is_same(&self, other: &Self) -> bool {
        if self.monitors.is_empty() && other.monitors.is_empty() {
            return self.conf.is_some() && self.conf == other.conf;
        }
        !addresses(&self.monitors).is_disjoint(&addresses(&other.monitors))
    }
}

/// The addresses of monitors with their ports; without one both of Ceph's are tried, so both are meant.
fn addresses(monitors: &[String]) -> BTreeSet<(String, u16)> {
    let all = monitors.join(",");
    let parts = all.split([',', ';', ' ']).map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(address).collect()
}

/// One monitor's address: `host`, `host:port`, with `v1:` or `v2:` before it and `/nonce` behind it.
pub(super) fn address(text: &str) -> Vec<(String, u16)> {
    let text = text.split('/').next().unwrap_or_default();
    // What is around a list of versions, not around an IPv6 address.
    let text = text.strip_prefix("[v").map_or_else(|| text.to_owned(), |rest| format!("v{rest}"));
    let text = text.trim_start_matches("v1:").trim_start_matches("v2:");
    let is_open = text.matches(']').count() > text.matches('[').count();
    let text = text.strip_suffix(']').filter(|_| is_open).unwrap_or(text);
    let is_bare = text.ends_with(']') || text.parse::<std::net::Ipv6Addr>().is_ok();
    let port = text.rsplit_once(':').filter(|_| !is_bare);
    match port.and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((name, port)) => vec![(host(name), port)],
        None => vec![(host(text), 3300), (host(text), 6789)],
    }
}

impl RbdConfig {
    /// Of each `clusterID` the first that is of the same cluster.
    pub(super) fn first_ids(&self) -> BTreeMap<String, String> {
        let firsts = firsts(&self.clusters, RbdCluster::is_same);
        let ids = self.clusters.iter().zip(firsts);
        ids.map(|(cluster, first)| (cluster.id.clone(), self.clusters[first].id.clone())).collect()
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: &str, monitors: &[&str]) -> RbdCluster {
        RbdCluster {
            id: id.into(),
            monitors: monitors.iter().map(|m| (*m).to_owned()).collect(),
            ..RbdCluster::default()
        }
    }

    #[test]
    fn one_cluster_under_several_ids_is_known_by_its_monitors() {
        let one = cluster("a", &["10.0.0.1:6789", "10.0.0.2:6789"]);
        for same in [
            &["10.0.0.2:6789"][..],
            &["10.0.0.1"],
            &["[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]"],
            &["v1:10.0.0.1:6789"],
            &["10.0.0.9:6789,10.0.0.1:6789"],
        ] {
            assert!(one.is_same(&cluster("b", same)), "{same:?}");
        }
        // Two clusters on one machine, and another machine.
        for other in [&["10.0.0.1:6790"][..], &["10.0.0.3:6789"], &["10.0.0.1:3300"], &[]] {
            assert!(!one.is_same(&cluster("b", other)), "{other:?}");
        }
        let six = cluster("a", &["[fd00::1]:6789"]);
        for same in
            ["[v2:[fd00::1]:3300/0,v1:[fd00::1]:6789/0]", "[fd00:0::1]", "fd00::1", "v1:[fd00::1]:6789"]
        {
            assert!(six.is_same(&cluster("b", &[same])), "{same}");
        }
        assert!(!six.is_same(&cluster("b", &["[fd00::2]:6789"])));
        let conf = |path: &str| RbdCluster { conf: Some(path.into()), ..RbdCluster::default() };
        assert!(conf("/a").is_same(&conf("/a")) && !conf("/a").is_same(&conf("/b")));
        assert!(!RbdCluster::default().is_same(&RbdCluster::default()));
    }
}
