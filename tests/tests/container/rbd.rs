//! The rbd backend as `deploy/rbd` runs it, with `mounter: fuse`: the volumes' data path is not the container's.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::ceph::Ceph;
use e2e::container::{End, Manifest, Runtime, possible};
use e2e::contract::{Subject, refused};
use e2e::requests::{self as ask, MIB};
use e2e::scratch::{Scratch, daemons_below};
use rustix::process::Pid;
use tonic::Code::FailedPrecondition;

use super::local::node_suite;
use super::{World, subject};

const SOCKET: &str = "rbd.csi.volumectl.io.sock";

fn world(case: &str, runtime: Runtime) -> Result<Option<(World, Scratch)>> {
    if !possible(case) {
        return Ok(None);
    }
    let Some(ceph) = Ceph::shared(case)? else { return Ok(None) };
    let scratch = Scratch::new()?;
    let config = ceph.config(case, scratch.path(), "")?;
    let world = World::start(runtime, Manifest::Rbd, &scratch, &config.text, SOCKET)?;
    Ok(Some((world, scratch)))
}

async fn rbd(case: &str, capability: pb::VolumeCapability) -> Result<Option<Subject>> {
    let Some((world, scratch)) = world(case, Runtime::Runc)? else { return Ok(None) };
    let parameters = BTreeMap::from([("pool".to_owned(), "rbd".to_owned())]);
    let subject = subject(world, scratch, capability, 64 * MIB).await?;
    Ok(Some(Subject { parameters, ..subject }))
}

mod ext4 {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        let it = rbd(case, ask::mount("ext4")).await?;
        Ok(it.map(|s| Subject { grows_staged: e2e::can_grow_ext4_online(), ..s }))
    }

    node_suite!(setup: a_volume_lives_its_whole_life, two_pods_share_a_volume, an_unstaged_volume_grows);
}

mod block {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        rbd(case, ask::block()).await
    }

    node_suite!(setup: a_volume_lives_its_whole_life, a_staged_volume_grows);
}

/// A volume that a pod uses, the driver asked directly: nothing is done to the container that the test does not do.
async fn in_use(world: &World, scratch: Scratch) -> Result<(Subject, e2e::contract::Used)> {
    let clients = e2e::clients::Clients::ready(&world.socket).await.with_context(|| world.place().log())?;
    let subject = Subject::new(clients, scratch, ask::mount("ext4"), 64 * MIB, ());
    let parameters = BTreeMap::from([("pool".to_owned(), "rbd".to_owned())]);
    let subject = Subject { parameters, ..subject };
    let id = subject.create("used").await?.volume_id;
    let used = subject.mount(&id, "used").await?;
    Ok((subject, used))
}

/// The storage daemon of a scratch directory's only mapping.
fn daemon(scratch: &Scratch) -> Result<Pid> {
    daemons_below(&scratch.path().join("state/rbd")).pop().context("no qemu-storage-daemon")
}

fn kill(pid: Pid) -> Result<()> {
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// A pod's durable write.
fn append(target: &Path, text: &str) -> Result<()> {
    let mut file = fs::File::options().create(true).append(true).open(target.join("log"))?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

async fn outlives(runtime: Runtime, test: &str) -> Result<()> {
    let Some((world, scratch)) = world(test, runtime)? else { return Ok(()) };
    let (mut s, used) = in_use(&world, scratch).await?;
    let (first, devices) = (daemon(&s.scratch)?, s.scratch.loops());
    ensure!(devices.len() == 1, "{devices:?}");
    let mut wanted = String::new();
    for end in [Some(End::Kill), Some(End::KillAll), Some(End::Stop), None] {
        match end {
            Some(end) => world.place().again(end)?,
            None => world.place().replace()?,
        }
        let line = format!("after {end:?}\n");
        append(&used.target, &line).with_context(|| format!("a pod's write after {end:?}"))?;
        wanted += &line;
        s.clients = e2e::clients::Clients::ready(&world.socket).await.with_context(|| world.place().log())?;
        // As kubelet after its restart.
        s.mount(&used.id, "used").await.with_context(|| format!("staging again after {end:?}"))?;
        ensure!(daemon(&s.scratch)? == first, "another daemon after {end:?}");
        let now: Vec<_> = s.scratch.loops().into_iter().map(|(device, _)| device).collect();
        ensure!(now == [devices[0].0.clone()], "loop devices after {end:?}: {now:?}");
    }
    // The pods go on without any driver, too.
    world.place().stop()?;
    append(&used.target, "without a driver\n")?;
    world.place().start()?;
    s.clients = e2e::clients::Clients::ready(&world.socket).await?;
    ensure!(fs::read_to_string(used.target.join("log"))? == wanted + "without a driver\n");
    s.unmount(&used).await?;
    s.delete(&[&used.id]).await?;
    ensure!(daemon(&s.scratch).is_err(), "the daemon ends with its volume");
    ensure!(s.scratch.loops().is_empty() && s.scratch.mounts().is_empty());
    drop(world);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_writes_on_while_runc_ends_the_driver() -> Result<()> {
    outlives(Runtime::Runc, "container outlives runc").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_writes_on_while_containerd_ends_the_driver() -> Result<()> {
    outlives(Runtime::Containerd, "container outlives containerd").await
}

/// Mounts it again: the cluster notices only after half a minute that a client is dead.
async fn once_let_go(s: &Subject, id: &str) -> Result<e2e::contract::Used> {
    for _ in 0..120 {
        match s.mount(id, "used").await {
            Err(error) if format!("{error:#}").contains("open elsewhere") => {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            other => return other,
        }
    }
    s.mount(id, "used").await
}

/// A dead daemon is an error that says what to do, and never "recovered"; the next pod has its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_whose_daemon_died_is_no_healthy_one() -> Result<()> {
    let Some((world, scratch)) = world("container dead daemon", Runtime::Runc)? else { return Ok(()) };
    let (mut s, used) = in_use(&world, scratch).await?;
    append(&used.target, "before\n")?;
    kill(daemon(&s.scratch)?)?;
    for restarted in [false, true] {
        if restarted {
            world.place().again(End::Kill)?;
            s.clients = e2e::clients::Clients::ready(&world.socket).await?;
        }
        let stats = s.clients.node.clone().node_get_volume_stats(ask::stats(&used.id, &used.target)).await?;
        let condition = stats.into_inner().volume_condition.context("no condition")?;
        ensure!(condition.abnormal && condition.message.contains("delete the pods"), "{condition:?}");
        let request = s.stage_request(&used.id, &used.staging, s.capability.clone()).await?;
        let again = s.clients.node.clone().node_stage_volume(request).await;
        refused(again, FailedPrecondition, &["qemu-storage-daemon has died", "delete the pods"])?;
    }
    let log = world.place().log();
    ensure!(log.contains("ERROR") && !log.contains("removed the dead mapping"), "{log}");
    s.unmount(&used).await?;
    let used = once_let_go(&s, &used.id).await?;
    ensure!(fs::read_to_string(used.target.join("log"))? == "before\n");
    s.unmount(&used).await?;
    s.delete(&[&used.id]).await?;
    ensure!(s.scratch.loops().is_empty() && s.scratch.mounts().is_empty());
    Ok(())
}
