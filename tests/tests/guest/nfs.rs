//! Real mounts: on the kernel's own server, on a server that dies while pods write, and on two nodes at once.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::contract::Subject;
use e2e::nfs::Nfs;
use e2e::requests as ask;
use e2e::scratch::Scratch;

use super::second::{DIR, Second};
use super::{subject, timed};

/// How long a call of a node may take, whatever the server does: a helper's twenty seconds, twice, and some for the
/// emulator.
const DEADLINE: Duration = Duration::from_secs(50);
/// How long killed processes of a load are waited for.
const DYING: Duration = Duration::from_secs(5);
const DATA: &[u8] = b"what was written before";

/// Pods that write without end; they are killed when this is dropped.
struct Load(Vec<Child>);

impl Load {
    fn start(dir: &Path) -> Result<Self> {
        let write = "while :; do dd if=/dev/zero of=$0 bs=64k count=16 conv=fsync; done 2>/dev/null";
        let start = |number| {
            let file = dir.join(format!("load-{number}"));
            Command::new("sh").args(["-c", write]).arg(file).process_group(0).spawn()
        };
        Ok(Self((0..2).map(start).collect::<std::io::Result<_>>()?))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let group = rustix::process::Pid::from_child(child);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = child.wait();
            // What it had started may take longer to leave the kernel.
            let begun = std::time::Instant::now();
            while rustix::process::test_kill_process_group(group).is_ok() && begun.elapsed() < DYING {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

pub(super) async fn on(server: &Nfs, test: &str, version: &str) -> Result<Subject> {
    on_share(server, &server.share(test)?.0, version).await
}

pub(super) async fn on_share(server: &Nfs, share: &str, version: &str) -> Result<Subject> {
    let scratch = Scratch::new()?;
    let config = server.config(scratch.path(), share, &Nfs::version(version))?;
    let subject = subject(scratch, &config, ask::mount("")).await?;
    Ok(Subject { sized: false, guards_use: false, patience: Nfs::patience(), ..subject })
}

/// The kernel speaks the version that the test is about.
fn is_mounted_by(target: &Path, version: &str) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let wanted = format!("vers={version}");
    let shown =
        mounts.lines().find(|line| line.split(' ').nth(1) == target.to_str()).context("not mounted")?;
    let options = shown.split(' ').nth(3).unwrap_or_default();
    ensure!(options.split(',').any(|option| option == wanted), "not by version {version}: {shown}");
    Ok(())
}

/// While the server is gone every call ends in time; the pods' paths are free again without it; and when it is back all
/// that was written is there.
async fn dies_under_load(version: &str, down: &str, up: &str) -> Result<()> {
    if !Nfs::possible("dies_under_load") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    let s = on(&server, "dies", version).await?;
    let (id, other) = (s.create("dies").await?.volume_id, s.create("dies-other").await?.volume_id);
    let used = s.mount(&id, "dies").await?;
    is_mounted_by(&used.target, version)?;
    s.write(&used, DATA)?;
    let load = Load::start(&used.target)?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.tell(down)?;
    let (staging, second) = (s.path("other/staging")?, s.path("dies/second")?);
    std::fs::create_dir_all(&staging)?;
    let (mut a, mut b, mut c) = (s.clients.node.clone(), s.clients.node.clone(), s.clients.node.clone());
    let (stage, publish, stats) = tokio::join!(
        timed(a.node_stage_volume(ask::stage(&other, &staging, s.capability.clone()))),
        timed(b.node_publish_volume(ask::publish(&id, &used.staging, &second, s.capability.clone()))),
        timed(c.node_get_volume_stats(ask::stats(&id, &used.target))),
    );
    for took in [stage.1, publish.1, stats.1] {
        ensure!(took < DEADLINE, "a call took {took:?}");
    }
    let error = stage.0.err().context("staged without a server")?;
    ensure!(error.code() == tonic::Code::Unavailable && error.message().contains(&server.address), "{error}");
    let condition = stats.0?.into_inner().volume_condition.context("no condition")?;
    ensure!(condition.abnormal && condition.message.contains("has not answered"), "{condition:?}");
    drop(load);
    for target in [&second, &used.target] {
        let (done, took) =
            timed(s.clients.node.clone().node_unpublish_volume(ask::unpublish(&id, target))).await;
        done.with_context(|| format!("after {took:?}"))?;
        ensure!(took < DEADLINE, "unpublish took {took:?}");
    }
    ensure!(!used.target.exists() && !second.exists(), "the pods' paths are free");
    std::fs::create_dir(&used.target)?;
    std::fs::remove_dir(&used.target)?;
    // The share's last volume waits for the server, which may have to get what was written.
    let (waits, took) =
        timed(s.clients.node.clone().node_unstage_volume(ask::unstage(&id, &used.staging))).await;
    let waits = waits.err().context("unstaged without a server")?;
    ensure!(waits.code() == tonic::Code::Unavailable && waits.message().contains("give-up"), "{waits}");
    ensure!(took < 2 * DEADLINE, "unstage took {took:?}");
    server.tell(up)?;
    s.unstage(&used).await?;
    ensure!(s.scratch.mounts().is_empty(), "{:?}", s.scratch.mounts());
    let used = s.mount(&id, "dies").await?;
    ensure!(s.read(&used, DATA.len())? == DATA);
    s.unmount(&used).await?;
    s.delete(&[&id, &other]).await
}

/// A pod that has a file open, writes to it when it is told to, and is killed with all of it in the node's memory.
struct Writer(Child);

impl Writer {
    fn start(file: &Path, content: &Path) -> Result<Self> {
        let lines = "exec 3>\"$0\"; echo ready; read -r _; cat \"$1\" >&3; echo written; sleep 600 >&- 3>&3";
        let mut child = Command::new("bash");
        child.args(["-c", lines]).arg(file).arg(content).process_group(0);
        let mut writer = Self(child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
        writer.hear("ready")?;
        Ok(writer)
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let mut heard = vec![0; word.len() + 1];
        self.0.stdout.as_mut().context("stdout")?.read_exact(&mut heard)?;
        ensure!(heard == format!("{word}\n").as_bytes());
        Ok(())
    }

    /// Writes, which the kernel keeps for some seconds.
    fn write(&mut self) -> Result<()> {
        self.0.stdin.as_mut().context("stdin")?.write_all(b"go\n")?;
        self.hear("written")
    }

    fn die(mut self) -> Result<()> {
        let group = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
        // One that waits for the server in its last close(2) goes later.
        std::thread::spawn(move || self.0.wait());
        Ok(())
    }
}

/// What a pod has written is not lost because its server stands still when the pod goes: the last unmount of the share
/// waits for it. Where another volume of the share is used, its pod sees nothing but the wait.
async fn is_not_lost(server: &Nfs, version: &str, pause: u64, beside: bool) -> Result<()> {
    let s = on(server, "lost", version).await?;
    let source = s.scratch.path().join("content");
    let content: Vec<u8> = (0..9_u32 << 18).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&source, &content)?;
    let (id, other) = (s.create("lost").await?.volume_id, s.create("lost-other").await?.volume_id);
    let used = s.mount(&id, "lost").await?;
    let other_used = if beside { Some(s.mount(&other, "beside").await?) } else { None };
    let late =
        other_used.as_ref().map(|other| std::fs::File::create(other.target.join("late"))).transpose()?;
    let mut pod = Writer::start(&used.target.join("data"), &source)?;
    pod.write()?;
    server.tell("signal STOP")?;
    pod.die()?;
    let other_pod = std::thread::spawn(move || {
        late.map_or(Ok(()), |mut late| late.write_all(b"late").and_then(|()| late.sync_all()))
    });
    let (mut node, volume) = (s.clients.node.clone(), id.clone());
    let (target, staging) = (used.target.clone(), used.staging.clone());
    let down = tokio::spawn(async move {
        node.node_unpublish_volume(ask::unpublish(&volume, &target)).await?;
        node.node_unstage_volume(ask::unstage(&volume, &staging)).await
    });
    tokio::time::sleep(Duration::from_secs(pause)).await;
    server.tell("signal CONT")?;
    if let Err(waits) = down.await? {
        ensure!(waits.code() == tonic::Code::Unavailable, "{waits}");
        s.unstage(&used).await?;
    }
    other_pod.join().ok().context("the other pod")?.context("the fsync of the other pod")?;
    if let Some(other) = other_used {
        s.unmount(&other).await?;
    }
    ensure!(s.scratch.mounts().is_empty(), "{:?}", s.scratch.mounts());
    let used = s.mount(&id, "again").await?;
    let file = std::fs::read(used.target.join("data"))?;
    ensure!(file == content, "{version}, {pause} s: {} of {} bytes are there", file.len(), content.len());
    s.unmount(&used).await?;
    s.delete(&[&id, &other]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_written_is_lost_by_unmounting() -> Result<()> {
    if !Nfs::possible("nothing_lost") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    for (version, pause, beside) in
        [("4.2", 8, false), ("3", 20, false), ("4.2", 8, true), ("3", 8, true), ("4.1", 20, false)]
    {
        is_not_lost(&server, version, pause, beside).await?;
    }
    Ok(())
}

/// An administrator's word gives up what a server that never comes back has not taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_gives_up_what_a_dead_server_has_not_taken() -> Result<()> {
    if !Nfs::possible("give_up") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    let mut s = on(&server, "giveup", "4.2").await?;
    for policy in ["wait", "force"] {
        s.parameters.insert("unmountPolicy".into(), policy.into());
        let id = s.create(&format!("giveup-{policy}")).await?.volume_id;
        let used = s.mount(&id, "giveup").await?;
        let load = Load::start(&used.target)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.tell("signal STOP")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(load);
        let mut node = s.clients.node.clone();
        node.node_unpublish_volume(ask::unpublish(&id, &used.target)).await?;
        let unstaged = node.node_unstage_volume(ask::unstage(&id, &used.staging)).await;
        if policy == "wait" {
            let waits = unstaged.err().context("nobody has given up the data")?;
            ensure!(waits.code() == tonic::Code::Unavailable, "{waits}");
            let word = waits.message().split_whitespace().find(|word| word.ends_with(".give-up"));
            std::fs::write(word.with_context(|| waits.to_string())?, "")?;
            node.node_unstage_volume(ask::unstage(&id, &used.staging)).await?;
        } else {
            unstaged?;
        }
        ensure!(s.scratch.mounts().is_empty(), "{:?}", s.scratch.mounts());
        server.tell("signal CONT")?;
        s.delete(&[&id]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_version_3() -> Result<()> {
    dies_under_load("3", "signal STOP", "signal CONT").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_version_4() -> Result<()> {
    dies_under_load("4.2", "signal STOP", "signal CONT").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_version_4() -> Result<()> {
    dies_under_load("4.1", "signal KILL", "start").await
}

/// A server that is away for some seconds is waited for: pods go on where they were (NFS, "hard").
#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_a_restart_of_the_server() -> Result<()> {
    if !Nfs::possible("pods_outlive_a_restart") {
        return Ok(());
    }
    let server = Nfs::start("3,4", &[])?;
    for version in ["3", "4.1"] {
        let s = on(&server, "outlive", version).await?;
        let id = s.create("outlive").await?.volume_id;
        let used = s.mount(&id, "outlive").await?;
        let load = Load::start(&used.target)?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.tell("signal KILL")?;
        server.tell("start")?;
        let target = used.target.clone();
        let written = tokio::task::spawn_blocking(move || std::fs::write(target.join("after"), DATA));
        tokio::time::timeout(DEADLINE, written).await.context("a pod hangs after the restart")???;
        drop(load);
        s.unmount(&used).await?;
        s.delete(&[&id]).await?;
    }
    Ok(())
}

/// A volume on two nodes: what one has closed, the other reads (nfs(5), close-to-open consistency).
#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_read_and_write_one_volume() -> Result<()> {
    let Some(server) = Nfs::shared("two_nodes")? else { return Ok(()) };
    let scratch = Scratch::new()?;
    let (share, _) = server.share("two-nodes")?;
    let version = &Nfs::version("4.2");
    let config = server.config(scratch.path(), &share, version)?;
    let s = Subject { patience: Nfs::patience(), ..subject(scratch, &config, ask::mount("")).await? };
    let second = Second::start(&server.config(Path::new(DIR), &share, version)?).await?;
    let id = s.create("two").await?.volume_id;
    let used = s.mount(&id, "two").await?;
    let there = second.stage(&id, "--access-mode rwx")?;
    for round in 0..5 {
        std::fs::write(used.target.join("here"), format!("here {round}"))?;
        ensure!(second.shell(&format!("cat {there}/here"))? == format!("here {round}"));
        second.shell(&format!("printf 'there {round}' >{there}/there"))?;
        ensure!(std::fs::read_to_string(used.target.join("there"))? == format!("there {round}"));
    }
    second.csi(&format!("unstage {id} --staging {there}"))?;
    ensure!(second.shell("grep -c ' nfs4 ' /proc/mounts || true")?.trim() == "0");
    ensure!(std::fs::read_to_string(used.target.join("there"))? == "there 4");
    s.unmount(&used).await?;
    s.delete(&[&id]).await
}

/// The directory that this kernel's own server exports, started at the first use.
fn exported() -> Result<&'static Path> {
    static STARTED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let start = || {
        let lines = "set -e; mkdir -p /tmp/exported /var/lib/nfs/v4recovery /proc/fs/nfsd; modprobe nfsd; \
                     mount -t nfsd nfsd /proc/fs/nfsd; : >/var/lib/nfs/etab; : >/var/lib/nfs/rmtab; \
                     echo '/tmp/exported *(rw,no_root_squash,fsid=0,insecure,no_subtree_check,sec=sys)' >/etc/exports; \
                     export LD_LIBRARY_PATH=$GUEST_HOME/root/usr/lib/x86_64-linux-gnu; \
                     exportfs -ra; rpc.mountd -N 3 </dev/null >/dev/null 2>&1; rpc.nfsd --no-udp -N 3 -G 10 -L 10 4; \
                     echo Y >/proc/fs/nfsd/v4_end_grace";
        let output = Command::new("bash").args(["-c", lines]).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    };
    let started = STARTED.get_or_init(start);
    started.as_ref().map_err(|e| anyhow::anyhow!("the kernel's NFS server: {e}"))?;
    Ok(Path::new("/tmp/exported"))
}

mod kernel_server {
    use super::*;

    async fn setup(case: &str) -> Result<Option<Subject>> {
        let scratch = Scratch::new()?;
        let share = case.replace("::", "-");
        std::fs::create_dir(exported()?.join(&share))?;
        let helper = e2e::drivers::binary("csi-driver")?;
        let d = scratch.path().display();
        let config = format!(
            "nodeId: node-1\nclusterId: test\nsocketDir: {d}/sockets\nstateDir: {d}/state\nkubeletDir: {d}/kubelet\n\
             helperProgram: {}\nbackends:\n  - type: nfs\n    shares: [{{name: main, server: \"127.0.0.1\", share: /{share}, \
             nfsVersion: \"4.2\"}}]\n",
            helper.display()
        );
        let subject = subject(scratch, &config, ask::mount("")).await?;
        Ok(Some(Subject {
            sized: false,
            guards_use: false,
            slip: ("onDelet", "onDelete"),
            mutable: ("mountPermissions", "0770"),
            patience: Nfs::patience(),
            ..subject
        }))
    }

    e2e::contract_suite!(setup);
}
