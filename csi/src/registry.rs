//! From the configuration to backends and drivers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use provisioners::{Backend, Error, NodeId, Nodes, RbdMounter, cinder, local, nfs, rbd};

use crate::cli::Mode;
use crate::config::{BackendConfig, BackendType, CloudConfig, ClusterConfig, Config, PurgeWhen, ShareConfig};
use crate::driver::{Driver, Service};
use crate::flight::{Class, Flights};
use crate::health::Health;
use crate::host::{Host, HostOptions};
use crate::metrics::Metrics;

/// How many questions about a node's volumes work at once in each driver.
const QUESTIONS: usize = 16;
/// How long one of them may take.
const QUESTION_LIMIT: Duration = Duration::from_secs(30);

/// Threads for what the runtime itself does, such as looking up names.
const NAMES: usize = 32;

/// Builds every configured driver, clears up after its predecessor and begins what it does unasked. A backend that
/// refuses its configuration: the text names the backend and why.
pub fn drivers(config: &Config, mode: Mode, metrics: &Metrics) -> Result<Vec<Service>, String> {
    build(config, Role { mode, works: true }, metrics)
}

/// The same for who only looks, perhaps beside a driver that works: nothing is begun, cleared up or made on this node.
pub fn idle_drivers(config: &Config, mode: Mode, metrics: &Metrics) -> Result<Vec<Service>, String> {
    build(config, Role { mode, works: false }, metrics)
}

/// What a process is for.
#[derive(Clone, Copy)]
struct Role {
    mode: Mode,
    /// It does what nobody asks it for: recovery and sweeps.
    works: bool,
}

impl Role {
    /// Whether it does the controller's work unasked.
    fn sweeps(self) -> bool {
        self.works && self.mode.controller()
    }
}

fn build(config: &Config, role: Role, metrics: &Metrics) -> Result<Vec<Service>, String> {
    let host = Host::new(HostOptions {
        kubelet_dir: config.kubelet_dir.clone(),
        command_timeout: Duration::from_secs(config.command_timeout_seconds),
        state_dir: config.state_dir.clone(),
        volume_roots: config.backends.iter().flat_map(|it| it.roots.values().cloned()).collect(),
        qemu_storage_daemon: config.qemu_storage_daemon.clone(),
        helper: helper(config),
    });
    let wrong = |i: usize, error: Error| format!("backends[{i}]: {error}");
    for (i, entry) in config.backends.iter().enumerate() {
        let suits = entry.roots.iter().try_for_each(|(name, root)| host.check_root(name, root));
        suits.map_err(|error| wrong(i, error))?;
        if role.mode.node() && entry.r#type == BackendType::Local {
            host.check_loop_devices().map_err(|error| wrong(i, error))?;
        }
    }
    if role.works && role.mode.node() {
        recover("the node", || host.recover());
    }
    let build = |(i, entry)| driver(config, entry, role, &host, metrics).map_err(|error| wrong(i, error));
    config.backends.iter().enumerate().map(build).collect()
}

/// The most threads that all calls together can take: those of each backend's classes of operations, of its questions,
/// and of its own calls (rbd bounds them by the number of operations), and a few for looking up names.
pub fn most_threads(config: &Config) -> usize {
    let classes = (Class::ALL.len() + 1) * config.max_concurrent_operations;
    config.backends.len() * (classes + QUESTIONS + provisioners::THREADS) + NAMES
}

/// What is run as the helper for NFS.
fn helper(config: &Config) -> PathBuf {
    let own = || std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    config.helper_program.clone().unwrap_or_else(own)
}

fn driver(
    config: &Config,
    entry: &BackendConfig,
    role: Role,
    host: &Host,
    metrics: &Metrics,
) -> provisioners::Result<Service> {
    let limit = Duration::from_secs(config.operation_timeout_seconds);
    let backend = backend(config, entry, role, host)?;
    let flights = Flights::new(config.max_concurrent_operations, limit);
    let questions = Flights::new(QUESTIONS, QUESTION_LIMIT.min(limit));
    metrics.watch(&entry.driver_name, flights.clone());
    let health = Health::default();
    metrics.show_parts(&entry.driver_name, health.seen());
    if let Some(measures) = &backend.measures {
        metrics.measure(&entry.driver_name, measures.clone());
    }
    Ok(Service(Arc::new(Driver {
        name: entry.driver_name.clone(),
        node_id: config.node_id.clone(),
        mode: role.mode,
        backend,
        host: host.clone(),
        flights,
        questions,
        metrics: metrics.clone(),
        health,
    })))
}

fn backend(config: &Config, entry: &BackendConfig, role: Role, host: &Host) -> provisioners::Result<Backend> {
    let mode = role.mode;
    match entry.r#type {
        BackendType::Local => {
            let settings = local_config(config, entry)?;
            let backend = Arc::new(local::Local::new(settings, Arc::new(host.clone()))?);
            if role.sweeps() {
                recover(&entry.driver_name, || backend.recover());
            }
            Ok(backend.backend())
        }
        BackendType::Rbd => {
            let nodes = kubernetes::Later::new(config.kubeconfig.clone()).filter(|_| mode.controller());
            let nodes = nodes.map(|nodes| Arc::new(nodes) as Arc<dyn Nodes>);
            let backend = Arc::new(rbd::Rbd::new(rbd_config(config, entry, mode)?, nodes)?);
            if role.sweeps() {
                backend.sweep_in_background();
            }
            Ok(backend.backend())
        }
        BackendType::Nfs => {
            let backend = Arc::new(nfs::Nfs::new(nfs_config(config, entry)?, Some(host.nfs_sessions()))?);
            if role.sweeps() {
                backend.sweep_in_background();
            }
            Ok(backend.backend())
        }
        BackendType::Cinder => {
            let settings = cinder_config(config, entry, mode)?;
            Ok(Arc::new(cinder::Cinder::new(settings, config.kubelet_dir.clone())?).backend())
        }
    }
}

fn cinder_config(
    config: &Config,
    entry: &BackendConfig,
    mode: Mode,
) -> provisioners::Result<cinder::CinderConfig> {
    let default = cinder::CinderConfig::default();
    let default_size = entry.default_size.as_deref().map(provisioners::parse_size).transpose()?;
    let cloud = |it: &CloudConfig| cinder::CinderCloud {
        name: it.name.clone(),
        cloud: it.cloud.clone(),
        clouds_file: it.clouds_file.clone(),
        secure_file: it.secure_file.clone(),
        region: it.region.clone(),
        interface: it.interface.clone(),
        volume_endpoint: it.volume_endpoint.clone(),
        compute_endpoint: it.compute_endpoint.clone(),
    };
    Ok(cinder::CinderConfig {
        clouds: entry.clouds.iter().map(cloud).collect(),
        owner: config.cluster_id.clone(),
        default_size: default_size.unwrap_or(default.default_size),
        call_timeout: entry.call_timeout_seconds.map_or(default.call_timeout, Duration::from_secs),
        ignore_zone: entry.ignore_volume_az.unwrap_or(false),
        topology_key: format!("topology.{}/zone", entry.driver_name),
        force_detach: entry.force_detach.unwrap_or(false),
        controller: mode.controller(),
        instance: entry.instance_id.clone(),
        zone: entry.zone.clone(),
        metadata_order: entry.metadata_order.clone().unwrap_or(default.metadata_order),
        metadata_url: entry.metadata_url.clone().unwrap_or(default.metadata_url),
        max_disks: entry.node_volume_attach_limit,
        root: default.root,
        device_root: entry.device_root.clone(),
        state: config.state_dir.clone(),
    })
}

fn nfs_config(config: &Config, entry: &BackendConfig) -> provisioners::Result<nfs::NfsConfig> {
    let default = nfs::NfsConfig::default();
    let default_size = entry.default_size.as_deref().map(provisioners::parse_size).transpose()?;
    let shares = entry.shares.iter().enumerate().map(|(i, it)| nfs_share(i, it));
    Ok(nfs::NfsConfig {
        shares: shares.collect::<provisioners::Result<_>>()?,
        any_share: entry.any_share.unwrap_or(false),
        owner: config.cluster_id.clone(),
        default_size: default_size.unwrap_or(default.default_size),
        on_delete: entry.on_delete,
        call_timeout: entry.call_timeout_seconds.map_or(default.call_timeout, Duration::from_secs),
        tree_workers: entry.tree_workers.unwrap_or(default.tree_workers),
        sweep: entry.sweep_seconds.map_or(default.sweep, |seconds| Duration::from_secs(seconds.max(1))),
        state: Some(config.state_dir.clone()),
    })
}

fn nfs_share(i: usize, it: &ShareConfig) -> provisioners::Result<nfs::NfsShare> {
    let version = |text: &String| {
        nfs::Version::parse(text).ok_or_else(|| {
            Error::invalid(
                format!("shares[{i}].nfsVersion"),
                format!("{text:?}: write \"3\", \"4.1\" or \"4.2\""),
            )
        })
    };
    Ok(nfs::NfsShare {
        name: it.name.clone(),
        server: it.server.clone(),
        path: it.share.clone(),
        version: it.nfs_version.as_ref().map(version).transpose()?,
        port: it.port,
        mount_port: it.mount_port,
        uid: it.uid,
        gid: it.gid,
        any_port: !it.privileged_port,
        mount_options: it.mount_options.clone(),
        local: it.local_path.clone(),
        client: it.client,
    })
}

/// The rbd backend's settings from the driver's.
pub fn rbd_config(
    config: &Config,
    entry: &BackendConfig,
    mode: Mode,
) -> provisioners::Result<rbd::RbdConfig> {
    let default = rbd::RbdConfig::default();
    let default_size = entry.default_size.as_deref().map(provisioners::parse_size).transpose()?;
    let cluster = |it: &ClusterConfig| rbd::RbdCluster {
        id: it.cluster_id.clone(),
        monitors: it.monitors.clone(),
        conf: it.ceph_conf.clone(),
        user: it.user.clone(),
        key_file: it.key_file.clone(),
        pools: it.pools.clone(),
        namespace: it.rados_namespace.clone(),
    };
    Ok(rbd::RbdConfig {
        clusters: entry.clusters.iter().map(cluster).collect(),
        owner: config.cluster_id.clone(),
        attach: entry.attach,
        default_size: default_size.unwrap_or(default.default_size),
        mounter: match entry.mounter {
            Some(RbdMounter::Fuse) => rbd::Mounter::Fuse,
            _ => rbd::Mounter::Krbd,
        },
        purge: match entry.purge {
            Some(PurgeWhen::Inline) => rbd::Purge::Inline,
            _ => rbd::Purge::Background,
        },
        purge_workers: entry.purge_workers.unwrap_or(default.purge_workers),
        call_timeout: entry.call_timeout_seconds.map_or(default.call_timeout, Duration::from_secs),
        max_calls: config.max_concurrent_operations,
        max_overcommit: entry.max_overcommit.unwrap_or(default.max_overcommit),
        soft_depth: entry.soft_clone_depth.unwrap_or(default.soft_depth),
        hard_depth: entry.hard_clone_depth.unwrap_or(default.hard_depth),
        node: config.node_id.clone(),
        controller: mode.controller(),
    })
}

fn local_config(config: &Config, entry: &BackendConfig) -> provisioners::Result<local::LocalConfig> {
    let default_size = entry.default_size.as_deref().map(provisioners::parse_size).transpose()?;
    Ok(local::LocalConfig {
        roots: entry.roots.clone(),
        node: NodeId(config.node_id.clone()),
        topology_key: format!("topology.{}/node", entry.driver_name),
        cluster: config.cluster_id.clone(),
        reserve: entry.reserve.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
        attach: entry.attach,
        expansion: entry.expansion.unwrap_or_default(),
        default_size: default_size.unwrap_or(local::DEFAULT_SIZE),
    })
}

/// Clears up after a predecessor that was killed. What cannot be cleared up is logged, and met again when the volume
/// it belongs to is used.
fn recover(what: &str, work: impl FnOnce() -> provisioners::Result<Vec<String>>) {
    match work() {
        Ok(done) => done.iter().for_each(|text| tracing::info!(%what, "recovered: {text}")),
        Err(error) => tracing::warn!(%what, %error, "recovery was not complete"),
    }
}

/// One backend of each type with an example configuration, for documentation: nothing is contacted.
pub fn examples() -> Vec<Backend> {
    let text = "nodeId: example\nbackends:\n- type: local\n  roots: {default: /var/lib/volumectl/volumes}\n\
                - type: rbd\n  clusters: [{clusterID: ceph, monitors: [10.0.0.1:6789]}]\n\
                - type: nfs\n  shares: [{name: main, server: 10.0.0.5, share: /srv/nfs}]\n\
                - type: cinder\n  clouds: [{name: main, cloud: openstack}]\n";
    let Ok(config) = Config::parse(text) else {
        return Vec::new();
    };
    let host = Host::new(HostOptions::default());
    let role = Role { mode: Mode::Node, works: false };
    config.backends.iter().filter_map(|entry| backend(&config, entry, role, &host).ok()).collect()
}
