//! What only a kernel with NFS, RBD, disks to be plugged, and all capabilities can show: run in a guest, by
//! `scripts/test-kernel`. The contract suites are those that run outside; of them the node's part is run here.

#[path = "guest/cinder.rs"]
mod cinder;
#[path = "cinder/contract.rs"]
mod cinder_contract;
#[path = "guest/left.rs"]
mod left;
#[path = "guest/local.rs"]
mod local;
#[path = "contract_local.rs"]
mod local_contract;
#[path = "guest/nfs.rs"]
mod nfs;
#[path = "nfs/contract.rs"]
mod nfs_contract;
#[path = "guest/nfs_mounts.rs"]
mod nfs_mounts;
#[path = "guest/rbd.rs"]
mod rbd;
#[path = "rbd/contract.rs"]
mod rbd_contract;
#[path = "guest/second.rs"]
mod second;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use csi_proto::v1 as pb;
use e2e::contract::Subject;
use e2e::drivers::InProcess;
use e2e::requests::MIB;
use e2e::scratch::Scratch;

/// A driver by a configuration, and how its volumes are used.
async fn subject(scratch: Scratch, config: &str, capability: pb::VolumeCapability) -> Result<Subject> {
    let driver = InProcess::start(config).await?;
    let clients = driver.clients().await?;
    Ok(Subject::new(clients, scratch, capability, 64 * MIB, driver))
}

/// An answer with the time that it took.
async fn timed<T>(call: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    let answer = call.await;
    (answer, begun.elapsed())
}

/// Waits until a condition holds, a minute at most.
async fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A trimmed file of /sys.
fn sys(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
