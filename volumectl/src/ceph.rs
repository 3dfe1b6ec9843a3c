//! How the commands that talk to Ceph reach it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use provisioners::rbd::{Admin, RbdCluster, RbdConfig};

use crate::errors::Usage;

/// Where an administrator's configuration usually is.
const CONF: &str = "/etc/ceph/ceph.conf";

/// With whom to talk, and as whom.
#[derive(Debug, Clone, Args)]
pub struct CephArgs {
    /// A ceph.conf with monitors and keyring. Default: /etc/ceph/ceph.conf, if it is there and no monitors are given
    #[arg(long, global = true, env = "CEPH_CONF", value_name = "FILE", help_heading = "Ceph")]
    ceph_conf: Option<PathBuf>,

    /// The monitors' addresses, separated by commas
    #[arg(short, long, global = true, value_delimiter = ',', value_name = "ADDRESS", help_heading = "Ceph")]
    monitors: Vec<String>,

    /// The user, without `client.`
    #[arg(
        long = "id",
        global = true,
        env = "CEPH_USER",
        default_value = "admin",
        value_name = "USER",
        help_heading = "Ceph"
    )]
    user: String,

    /// A file with the user's key, alone or as a keyring
    #[arg(long, global = true, value_name = "FILE", help_heading = "Ceph")]
    keyfile: Option<PathBuf>,

    /// What the driver calls this Ceph cluster: the clusterID of its classes
    #[arg(long, global = true, default_value = "ceph", value_name = "ID", help_heading = "Ceph")]
    ceph_cluster: String,

    /// Whose volumes these are: the driver's clusterId
    #[arg(
        long,
        global = true,
        env = "VOLUMECTL_CLUSTER_ID",
        default_value = "default",
        value_name = "ID",
        help_heading = "Ceph"
    )]
    cluster_id: String,

    /// How long the command may take; a lock's holder that does not answer would make librbd wait for ever
    #[arg(
        long,
        global = true,
        default_value = "120",
        value_name = "SECONDS",
        value_parser = crate::csi::args::seconds,
        help_heading = "Ceph"
    )]
    timeout: Duration,

    /// Only this pool, or POOL/NAMESPACE; also where images named without a pool are
    #[arg(short, long, global = true, value_name = "POOL", help_heading = "Ceph")]
    pub pool: Option<String>,
}

fn bounded<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
    let (send, done) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || send.send(work()));
    match done.recv_timeout(limit) {
        Ok(answer) => answer,
        Err(Timeout) => {
            let text = format!(
                "not done in {} s: the cluster, or the holder of a lock, does not answer; see `volumectl lock ls` and `ceph -s`",
                limit.as_secs()
            );
            Err(provisioners::Error::Deadline(text).into())
        }
        // Without an answer the thread has panicked; main says so.
        Err(Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => anyhow::bail!("the work ended without an answer"),
        },
    }
}

impl CephArgs {
    /// The library, not connected yet.
    pub fn admin(&self) -> Result<Admin> {
        let usual = || Some(PathBuf::from(CONF)).filter(|path| path.exists() && self.monitors.is_empty());
        let conf = self.ceph_conf.clone().or_else(usual);
        if conf.is_none() && self.monitors.is_empty() {
            let text = format!(
                "how is Ceph reached? Give --ceph-conf FILE or --monitors ADDRESS ({CONF} is not there)"
            );
            return Err(Usage(text).into());
        }
        let (pool, namespace) = match self.pool.as_deref().map(|p| p.split_once('/').unwrap_or((p, ""))) {
            Some((pool, namespace)) => (vec![pool.to_owned()], namespace.to_owned()),
            None => (Vec::new(), String::new()),
        };
        let cluster = RbdCluster {
            id: self.ceph_cluster.clone(),
            monitors: self.monitors.clone(),
            conf,
            user: Some(self.user.clone()),
            key_file: self.keyfile.clone(),
            pools: pool,
            namespace,
        };
        let config =
            RbdConfig { clusters: vec![cluster], owner: self.cluster_id.clone(), ..RbdConfig::default() };
        Ok(Admin::new(config)?)
    }

    /// Does the work of a command, which fails when it is not done in time; what the library was asked for may go on.
    pub fn bounded<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        bounded(self.timeout, work)
    }

    /// An image as it was written, with the pool that was given beside it.
    pub fn image(&self, text: &str) -> String {
        match &self.pool {
            Some(pool) if !text.contains('/') => format!("{pool}/{text}"),
            _ => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errors::caught;

    #[test]
    fn a_panic_in_the_work_is_a_failure_at_once_that_says_why() {
        let limit = Duration::from_secs(600);
        let failed = caught(|| bounded(limit, || -> Result<()> { panic!("no reactor is {}", "running") }));
        let text = failed.unwrap_err().to_string();
        assert!(text.contains("no reactor is running") && text.contains("volumectl"), "{text}");
    }

    #[test]
    fn work_that_is_not_done_in_time_is_left() {
        let forever = || -> Result<()> {
            loop {
                std::thread::park();
            }
        };
        let failed = bounded(Duration::from_millis(10), forever);
        assert!(failed.unwrap_err().to_string().contains("not done in"));
    }
}
