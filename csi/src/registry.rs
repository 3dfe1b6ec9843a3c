//! From the configuration to backends and drivers.

use std::sync::Arc;
use std::time::Duration;

use provisioners::{Backend, NodeId, local};

use crate::cli::Mode;
use crate::config::{BackendConfig, BackendType, Config};
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
    let flights = Flights::new(config.max_concurrent_operations, limit);
    metrics.watch(&entry.driver_name, flights.clone());
    Ok(Service(Arc::new(Driver {
        name: entry.driver_name.clone(),
        node_id: config.node_id.clone(),
        mode,
        backend: backend(config, entry, mode, host)?,
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
    }
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
    let text = "nodeId: example\nbackends:\n- type: local\n  roots: {default: /var/lib/volumectl/volumes}\n";
    let Ok(config) = Config::parse(text) else {
        return Vec::new();
    };
    let host = Host::new(HostOptions::default());
    config.backends.iter().filter_map(|entry| backend(&config, entry, Mode::Node, &host).ok()).collect()
}
