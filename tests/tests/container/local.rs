//! The local backend as `deploy/local` runs it.

use std::fs;

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use e2e::container::{Manifest, Runtime, possible};
use e2e::contract::Subject;
use e2e::drivers::local_config;
use e2e::requests::{self as ask, MIB};
use e2e::scratch::Scratch;

use super::{World, subject};

const SOCKET: &str = "local.csi.volumectl.io.sock";

async fn local(
    case: &str,
    runtime: Runtime,
    parameters: &[(&str, &str)],
    capability: pb::VolumeCapability,
    size: i64,
) -> Result<Option<Subject>> {
    if !possible(case) {
        return Ok(None);
    }
    let scratch = Scratch::new()?;
    let config = local_config(scratch.path(), "");
    let world = World::start(runtime, Manifest::Local, &scratch, &config, SOCKET)?;
    let sized = !parameters.contains(&("type", "directory"));
    let subject = subject(world, scratch, capability, size).await?;
    let parameters = parameters.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Ok(Some(Subject { parameters, sized, ..subject }))
}

/// The node's cases, and a snapshot of a mounted volume.
macro_rules! node_suite {
    ($setup:ident: $($case:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() -> Result<()> {
            match $setup(concat!("container ", stringify!($case))).await? {
                Some(subject) => subject.run(e2e::contract::node::$case).await,
                None => Ok(()),
            }
        })*
    };
}
pub(crate) use node_suite;

mod ext4 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        let it = local(case, Runtime::Runc, &[], ask::mount("ext4"), 64 * MIB).await?;
        Ok(it.map(|s| Subject { grows_staged: e2e::can_grow_ext4_online(), ..s }))
    }

    node_suite!(setup: a_volume_lives_its_whole_life, data_survives_unstage, statistics_are_given,
        read_only_is_read_only, two_pods_share_a_volume, one_pod_only_means_one, an_unstaged_volume_grows);
}

mod xfs {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        local(case, Runtime::Runc, &[], ask::mount("xfs"), 320 * MIB).await
    }

    node_suite!(setup: a_volume_lives_its_whole_life, a_staged_volume_grows);
}

mod block {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        local(case, Runtime::Runc, &[], ask::block(), 16 * MIB).await
    }

    node_suite!(setup: a_volume_lives_its_whole_life, two_pods_share_a_volume, a_staged_volume_grows);
}

mod directory {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        local(case, Runtime::Runc, &[("type", "directory")], ask::mount(""), 16 * MIB).await
    }

    node_suite!(setup: a_volume_lives_its_whole_life, read_only_is_read_only);
}

mod containerd {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        local(case, Runtime::Containerd, &[], ask::mount("ext4"), 64 * MIB).await
    }

    node_suite!(setup: a_volume_lives_its_whole_life);
}

/// What was written just before and is not on the disk yet is in the snapshot: the file system was frozen, also by a
/// container that has not mounted it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_by_the_next_container_is_frozen() -> Result<()> {
    let it = local("container snapshot", Runtime::Runc, &[], ask::mount("ext4"), 64 * MIB).await?;
    let Some(subject) = it else { return Ok(()) };
    let case = async |s: &Subject| {
        let id = s.create("frozen").await?.volume_id;
        let used = s.mount(&id, "frozen").await?;
        // A call to the node, so that another container takes the snapshot.
        s.clients.node.clone().node_get_volume_stats(ask::stats(&id, &used.target)).await?;
        let data = vec![7; 8 << 20];
        fs::write(used.target.join("data"), &data)?;
        let snapshot = s.snapshot(&id, "frozen-snapshot").await?;
        ensure!(snapshot.ready_to_use);
        let mut request = s.create_request("restored");
        request.volume_content_source = ask::from_snapshot(&snapshot.snapshot_id);
        let restored = s.make(request).await?.volume_id;
        let copy = s.mount(&restored, "restored").await?;
        ensure!(fs::read(copy.target.join("data"))? == data, "the snapshot lacks what was written before it");
        s.unmount(&copy).await?;
        s.unmount(&used).await?;
        s.delete_snapshot(&snapshot.snapshot_id).await?;
        s.delete(&[&restored, &id]).await
    };
    subject.run(case).await
}
