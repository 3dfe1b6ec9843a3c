//! From the configuration to backends and drivers.

use std::sync::Arc;
use std::time::Duration;

use provisioners::{Backend, NodeId, Nodes, RbdMounter, local, rbd};

use crate::cli::Mode;
use crate::config::{BackendConfig, BackendType, ClusterConfig, Config, PurgeWhen};
use crate::driver::{Driver, Service};
use crate::flight::Flights;
use crate::health::Health;
use crate::host::{Host, HostOptions};
use crate::metrics::Metrics;

/// Builds every configured driver. A backend that refuses its configuration: the text names the backend and why.
pub fn drivers(config: &Config, mode: Mode, metrics: &Metrics) -> Result<Vec<Service>, String> {
    let host = Host::new(HostOptions {
        kubelet_dir: config.kubelet_dir.clone(),
        command_timeout: Duration::from_secs(config.command_timeout_seconds),
        state_dir: config.state_dir.clone(),
        qemu_storage_daemon: config.qemu_storage_daemon.clone(),
    });
    if mode.node() {
        recover("the node", || host.recover());
    }
    let build =
        |(i, entry)| driver(config, entry, mode, &host, metrics).map_err(|e| format!("backends[{i}]: {e}"));
    config.backends.iter().enumerate().map(build).collect()
}

fn driver(
    config: &Config,
    entry: &BackendConfig,
    mode: Mode,
    host: &Host,
    metrics: &Metrics,
) -> provisioners::Result<Service> {
    let limit = Duration::from_secs(config.operation_timeout_seconds);
    let backend = backend(config, entry, mode, host)?;
    let flights = Flights::new(config.max_concurrent_operations, limit);
    metrics.watch(&entry.driver_name, flights.clone());
    if let Some(measures) = &backend.measures {
        metrics.measure(&entry.driver_name, measures.clone());
    }
    Ok(Service(Arc::new(Driver {
        name: entry.driver_name.clone(),
        node_id: config.node_id.clone(),
        mode,
        backend,
        host: host.clone(),
        flights,
        metrics: metrics.clone(),
        health: Health::default(),
    })))
}

fn backend(config: &Config, entry: &BackendConfig, mode: Mode, host: &Host) -> provisioners::Result<Backend> {
    match entry.r#type {
        BackendType::Local => {
            let settings = local_config(config, entry)?;
            let backend = Arc::new(local::Local::new(settings, Arc::new(host.clone()))?);
            if mode.controller() {
                recover(&entry.driver_name, || backend.recover());
            }
            Ok(backend.backend())
        }
        BackendType::Rbd => {
            let nodes = kubernetes::Later::new(config.kubeconfig.clone()).filter(|_| mode.controller());
            let nodes = nodes.map(|nodes| Arc::new(nodes) as Arc<dyn Nodes>);
            let backend = Arc::new(rbd::Rbd::new(rbd_config(config, entry, mode)?, nodes)?);
            if mode.controller() {
                backend.sweep_in_background();
            }
            Ok(backend.backend())
        }
    }
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
                - type: rbd\n  clusters: [{clusterID: ceph, monitors: [10.0.0.1:6789]}]\n";
    let Ok(config) = Config::parse(text) else {
        return Vec::new();
    };
    let host = Host::new(HostOptions::default());
    config.backends.iter().filter_map(|entry| backend(&config, entry, Mode::Node, &host).ok()).collect()
}
