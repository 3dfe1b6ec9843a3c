//! A second node: a guest of its own with a driver in it, spoken to through `volumectl csi`.

use std::path::Path;

use anyhow::{Result, ensure};
use csi_driver::config::Config;
use e2e::control;
use e2e::drivers::binary;
use tokio::sync::{Mutex, MutexGuard};

/// Where everything of it is, on its own disk.
pub const DIR: &str = "/tmp/second";

/// The node. There is one at a time.
pub struct Second {
    guest: Option<control::Second>,
    volumectl: String,
    _turn: MutexGuard<'static, ()>,
}

impl Second {
    /// Boots it and starts a driver of a configuration whose files are below [`DIR`].
    pub async fn start(config: &str) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::const_new(());
        let turn = TURN.lock().await;
        let config = config.replace("nodeId: node-1", "nodeId: node-2");
        let socket = Config::parse(&config).map_err(|e| anyhow::anyhow!("{e}"))?.backends[0].socket.clone();
        let file = control::server_dir().join("second.yaml");
        std::fs::write(&file, config)?;
        let guest = tokio::task::spawn_blocking(control::Second::boot).await??;
        let driver = binary("csi-driver")?;
        guest.shell(&format!(
            "mkdir -p {DIR} && {{ {} --config {} </dev/null >{DIR}/log 2>&1 & }}",
            driver.display(),
            file.display()
        ))?;
        let volumectl = format!("{} csi -e unix:{}", binary("volumectl")?.display(), socket.display());
        let second = Self { guest: Some(guest), volumectl, _turn: turn };
        let ready = second.shell(&format!(
            "for i in $(seq 100); do {} probe && exit; sleep 0.2; done; cat {DIR}/log; exit 1",
            second.volumectl
        ))?;
        ensure!(!ready.is_empty());
        Ok(second)
    }

    /// Runs a line of shell in it; what it prints.
    pub fn shell(&self, line: &str) -> Result<String> {
        let guest = self.guest.as_ref().ok_or_else(|| anyhow::anyhow!("its power was cut"))?;
        guest.shell(line)
    }

    /// A verb of `volumectl csi`.
    pub fn csi(&self, verb: &str) -> Result<String> {
        self.shell(&format!("{} {verb}", self.volumectl))
    }

    /// Stages a volume; where.
    pub fn stage(&self, id: &str, options: &str) -> Result<String> {
        let staging = format!("{DIR}/kubelet/{}", Path::new(id).file_name().unwrap_or_default().display());
        self.shell(&format!("mkdir -p {staging}"))?;
        self.csi(&format!("stage {id} --staging {staging} {options}"))?;
        Ok(staging)
    }

    /// Cuts its power.
    pub fn kill(&mut self) {
        self.guest = None;
    }
}
