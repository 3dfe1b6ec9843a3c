//! Locks, their owners alive, silent and dead, and taking images from them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::ceph::{Ceph, storage_daemon};
use e2e::contract::refused;
use e2e::kubernetes::Node;
use e2e::requests as ask;
use serde_json::Value;
use tonic::Code;

use super::world::{SIZE, World};

/// Another node's client: a qemu-storage-daemon of our own, with the image as a file.
struct Client {
    child: Child,
    file: PathBuf,
}

impl Client {
    /// Opens an image and writes to it, which takes its lock.
    fn writer(w: &World, image: &str) -> Result<Self> {
        let client = Self::open(w, image)?;
        client.write(b"written by the first owner")?;
        Ok(client)
    }

    fn open(w: &World, image: &str) -> Result<Self> {
        let program = storage_daemon().unwrap_or_else(|| "qemu-storage-daemon".into());
        let at = format!("namespace={},image={image}", w.namespace);
        Self::start(Command::new(program), w.ceph, w.scratch.path(), &at)
    }

    /// `program` is qemu-storage-daemon, or what runs it.
    fn start(mut program: Command, ceph: &Ceph, dir: &Path, image: &str) -> Result<Self> {
        let file = dir.join(format!("client-{}", image.replace(['=', ','], "-")));
        std::fs::write(&file, "")?;
        let child = program
            .arg("--blockdev")
            .arg(format!(
                "driver=rbd,node-name=d,pool=rbd,{image},conf={},user=admin,cache.direct=on",
                ceph.conf().display()
            ))
            .arg("--export")
            .arg(format!("type=fuse,id=e,node-name=d,mountpoint={},writable=on", file.display()))
            .stdin(Stdio::null())
            .spawn()?;
        let client = Self { child, file };
        for _ in 0..100 {
            if std::fs::metadata(&client.file)?.len() > 0 {
                return Ok(client);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("the export of {image} does not appear")
    }

    fn write(&self, text: &[u8]) -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).open(&self.file)?;
        file.write_all(text)?;
        file.sync_all()
    }

    fn signal(&self, name: &str) -> Result<()> {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status()?;
        ensure!(status.success());
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A client that ends in order takes its watch away; one that is killed leaves it for half a minute.
        let _ = self.signal("CONT").and_then(|()| self.signal("TERM"));
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(&self.file, rustix::mount::UnmountFlags::DETACH);
    }
}

fn locks(w: &World, image: &str) -> Result<Value> {
    let (code, out, error) = w.volumectl(&["lock", "ls", "--image", &w.spec(image), "-o", "json"])?;
    ensure!(code == 0, "{code}: {error}");
    let all: Value = serde_json::from_str(&out)?;
    Ok(all[0].clone())
}

/// A client that has an image's lock, and its address.
fn writer_of(w: &World, image: &str) -> Result<(Client, String)> {
    let owner = Client::writer(w, image)?;
    let address = locks(w, image)?["locks"][0]["address"].as_str().context("no address")?.to_owned();
    Ok((owner, address))
}

fn is_fenced(w: &World, address: &str) -> Result<bool> {
    let all = w.ceph.ask(&["osd", "blocklist", "ls"])?;
    Ok(all.as_array().is_some_and(|all| all.iter().any(|entry| entry["addr"] == address)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_owner_is_refused_with_the_evidence() -> Result<()> {
    let Some(w) = World::new("live", "").await? else { return Ok(()) };
    let id = w.make("live").await?;
    let owner = Client::writer(&w, "live")?;
    let shown = locks(&w, "live")?;
    let lock = &shown["locks"][0];
    ensure!(lock["kind"] == "managed" && lock["alive"] == "yes" && shown["volume"] == id.as_str(), "{shown}");
    let spec = w.spec("live");
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 3 && error.contains("lives") && error.contains("watch"), "{code}: {error}");
    let (code, _, error) =
        w.volumectl(&["lock", "recover", &spec, "--yes", "--force", "--confirm", "other"])?;
    ensure!(code == 3 && error.contains("not confirmed"), "{code}: {error}");
    owner.write(b"still mine").context("the owner is not disturbed")?;
    let delete = w.clients.controller.clone().delete_volume(ask::delete(&id)).await;
    let address = lock["address"].as_str().context("no address")?;
    refused(delete, Code::FailedPrecondition, &[address, "volumectl lock ls"])?;
    drop(owner);
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_owner_is_recovered_and_the_fence_undone() -> Result<()> {
    let Some(w) = World::new("killed", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("killed").await?, w.spec("killed"));
    let (owner, address) = writer_of(&w, "killed")?;
    owner.signal("KILL")?;
    // Until the watch has timed out, nobody can know that it is dead.
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 3, "{code}: {error}");
    w.until("the watch times out", || Ok(locks(&w, "killed")?["locks"][0]["alive"] == "no")).await?;
    let (code, plan, _) = w.volumectl(&["lock", "recover", &spec])?;
    ensure!(code == 0 && plan.contains("Nothing was done") && plan.contains(&address), "{code}: {plan}");
    ensure!(!is_fenced(&w, &address)?);
    let (code, out, error) = w.volumectl(&["lock", "recover", &spec, "--yes", "-o", "json"])?;
    ensure!(code == 0, "{code}: {error}");
    let report: Value = serde_json::from_str(&out)?;
    let steps = report["steps"].as_array().context("no steps")?;
    ensure!(steps.len() == 3 && steps.iter().all(|step| step["result"] == "done"), "{report}");
    ensure!(is_fenced(&w, &address)?);
    let free = locks(&w, "killed")?;
    ensure!(free["locks"].as_array().is_some_and(Vec::is_empty), "{free}");
    let journal = report["id"].as_str().context("no id")?;
    let (_, list, _) = w.volumectl(&["lock", "journal"])?;
    ensure!(list.contains(journal));
    let (code, _, error) = w.volumectl(&["lock", "undo", journal])?;
    ensure!(code == 0, "{code}: {error}");
    ensure!(!is_fenced(&w, &address)?, "{address} is still fenced");
    drop(owner);
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_owner_cannot_write_after_it_was_fenced() -> Result<()> {
    let Some(w) = World::new("silent", "").await? else { return Ok(()) };
    let id = w.make("silent").await?;
    let spec = w.spec("silent");
    let owner = Client::writer(&w, "silent")?;
    owner.signal("STOP")?;
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 3, "alive, as far as anybody knows: {code}: {error}");
    w.until("the watch times out", || Ok(locks(&w, "silent")?["locks"][0]["alive"] == "no")).await?;
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 0, "{code}: {error}");
    let second = w.scratch.path().join("second");
    std::fs::create_dir(&second)?;
    std::fs::rename(&owner.file, second.join("none")).ok();
    owner.signal("CONT")?;
    ensure!(owner.write(b"from beyond").is_err(), "a fenced client writes no more");
    drop(owner);
    w.delete(&id).await
}

/// A driver that was killed while it grew an image has its lock and a watch that is answered no more: here a client that
/// was stopped. The growth is finished at once, not when the watch has timed out.
#[tokio::test(flavor = "multi_thread")]
async fn a_growth_that_was_cut_short_is_finished_at_once() -> Result<()> {
    let Some(w) = World::new("short", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("short").await?, w.spec("short"));
    let (owner, address) = writer_of(&w, "short")?;
    let note = |w: &World| w.rbd(&["image-meta", "list", &spec]);
    w.rbd(&["image-meta", "set", &spec, "volumectl.growing", &address])?;
    owner.signal("STOP")?;
    let request = ask::expand(&id, 2 * SIZE);
    let grown = w.clients.controller.clone().controller_expand_volume(request.clone()).await?.into_inner();
    ensure!(grown.capacity_bytes == 2 * SIZE && is_fenced(&w, &address)?, "{grown:?}");
    ensure!(!note(&w)?.contains("volumectl.growing"), "the note stays");
    w.clients.controller.clone().controller_expand_volume(request).await?;
    drop(owner);
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_blast_radius_is_shown() -> Result<()> {
    let Some(w) = World::new("radius", "").await? else { return Ok(()) };
    let id = w.make("radius").await?;
    let owner = Client::writer(&w, "radius")?;
    let (code, _, error) = w.volumectl(&["lock", "recover", &w.spec("radius"), "--dry-run", "--force"])?;
    ensure!(code == 0, "{error}");
    let args = ["lock", "recover", &w.spec("radius"), "--dry-run", "--force", "--host", "-o", "json"];
    let other = w.make("radius-other").await?;
    let neighbour = Client::writer(&w, "radius-other")?;
    let (_, out, _) = w.volumectl(&args)?;
    let plan: Value = serde_json::from_str(&out)?;
    ensure!(plan["fence"] == "127.0.0.1", "{plan}");
    let others = plan["others"].as_array().context("no others")?;
    ensure!(others.iter().any(|o| *o == w.spec("radius-other")), "{plan}");
    drop((owner, neighbour));
    w.delete(&id).await?;
    w.delete(&other).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mappers_are_refused_at_the_node() -> Result<()> {
    let Some(w) = World::new("two", "").await? else { return Ok(()) };
    let id = w.make("two").await?;
    let first = Client::open(&w, "two")?;
    let staged = w.stage(&id).await.err().context("staged beside another client")?;
    ensure!(
        staged.code() == Code::FailedPrecondition && staged.message().contains("open elsewhere"),
        "{staged}"
    );
    drop(first);
    w.until("the first client's end is seen", || {
        Ok(!w.rbd(&["status", &w.spec("two")])?.contains("watcher="))
    })
    .await?;
    w.stage(&id).await?;
    let shown = locks(&w, "two")?;
    ensure!(shown["watchers"][0]["node"] == "node-1", "the node notes as which client it has it: {shown}");
    w.unstage(&id).await?;
    w.delete(&id).await
}

fn attach(id: &str, node: &str) -> pb::ControllerPublishVolumeRequest {
    ask::attach(id, node, ask::mount("ext4"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_moves_only_from_a_holder_that_is_dead() -> Result<()> {
    let Some(w) = World::new("moves", "").await? else { return Ok(()) };
    w.nodes.set("node-2", Some(Node::Ready));
    let mut request = ask::create("moves", SIZE, ask::mount("ext4"));
    request.parameters.insert("lockRecovery".into(), "auto".into());
    let auto = w.create(request).await?;
    let manual = w.make("moves-manual").await?;
    let mut c = w.clients.controller.clone();
    for id in [&auto, &manual] {
        c.controller_publish_volume(attach(id, "node-1")).await?;
        let other = c.controller_publish_volume(attach(id, "node-2")).await;
        refused(other, Code::FailedPrecondition, &["node-1", "Ready"])?;
    }
    // Silent is not dead, and whoever has it open is alive whatever Kubernetes says.
    w.nodes.set("node-1", Some(Node::Silent));
    refused(
        c.controller_publish_volume(attach(&auto, "node-2")).await,
        Code::FailedPrecondition,
        &["not ready"],
    )?;
    w.nodes.set("node-1", Some(Node::OutOfService));
    let holder = Client::writer(&w, "moves")?;
    let live = c.controller_publish_volume(attach(&auto, "node-2")).await;
    refused(live, Code::FailedPrecondition, &["live holder"])?;
    holder.signal("KILL")?;
    let address = locks(&w, "moves")?["locks"][0]["address"].as_str().context("no address")?.to_owned();
    w.until("the watch times out", || Ok(locks(&w, "moves")?["locks"][0]["alive"] == "no")).await?;
    c.controller_publish_volume(attach(&auto, "node-2")).await?;
    ensure!(is_fenced(&w, &address)?, "the dead holder was fenced");
    let manually = c.controller_publish_volume(attach(&manual, "node-2")).await;
    refused(manually, Code::FailedPrecondition, &["volumectl lock recover", "lockRecovery: auto"])?;
    drop(holder);
    for id in [&auto, &manual] {
        let all = pb::ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
        c.controller_unpublish_volume(all).await?;
        w.delete(id).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn advisory_locks_are_read_and_broken() -> Result<()> {
    let Some(w) = World::new("advisory", "").await? else { return Ok(()) };
    let mut request = ask::create("advisory", SIZE, ask::mount("ext4"));
    request.parameters.insert("imageFeatures".into(), "layering".into());
    let id = w.create(request).await?;
    w.rbd(&["lock", "add", &w.spec("advisory"), "kubelet_lock_magic_worker-7"])?;
    let shown = locks(&w, "advisory")?;
    let lock = &shown["locks"][0];
    ensure!(lock["kind"] == "exclusive" && lock["node"] == "worker-7" && lock["alive"] == "no", "{shown}");
    let (_, list, _) =
        w.volumectl(&["lock", "ls", "--node", "worker-7", "--pool", &format!("rbd/{}", w.namespace)])?;
    ensure!(list.contains("advisory") && list.contains("worker-7"), "{list}");
    let (code, _, error) = w.volumectl(&["lock", "recover", &w.spec("advisory"), "--yes"])?;
    ensure!(code == 0, "{error}");
    ensure!(locks(&w, "advisory")?["locks"].as_array().is_some_and(Vec::is_empty));
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advisory_lock_makes_nothing_hang() -> Result<()> {
    let Some(w) = World::new("hang", "").await? else { return Ok(()) };
    let (id, spec) = (w.make("hang").await?, w.spec("hang"));
    w.rbd(&["lock", "add", &spec, "left-behind"])?;
    let delete = w.clients.controller.clone().delete_volume(ask::delete(&id)).await;
    refused(delete, Code::FailedPrecondition, &["left-behind", "volumectl lock recover"])?;
    // librbd refuses or waits for ever, which the command does not.
    let begun = std::time::Instant::now();
    let (code, _, error) = w.volumectl(&["volume", "resize", &spec, "--size", "1G", "--timeout", "4"])?;
    ensure!(matches!(code, 3 | 4) && error.contains("lock"), "{code}: {error}");
    ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let (code, _, error) = w.volumectl(&["lock", "recover", &spec, "--yes"])?;
    ensure!(code == 0, "{code}: {error}");
    let (code, _, error) = w.volumectl(&["volume", "resize", &spec, "--size", "1G"])?;
    ensure!(code == 0, "{code}: {error}");
    w.delete(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_survives_its_driver_and_is_found_again() -> Result<()> {
    let Some(w) = World::new("survives", "").await? else { return Ok(()) };
    let id = w.make("survives").await?;
    let staging = w.stage(&id).await?;
    std::fs::write(staging.join("data"), "kept")?;
    // A second driver on the same state directory is what a restart looks like to the first one's mappings.
    let dir = w.scratch.path();
    let text = w.ceph.config_in(dir, "rbd", &w.namespace, &w.namespace, "").replace("/sockets", "/sockets-2");
    let second = e2e::drivers::InProcess::start(&text).await?;
    let clients = second.clients().await?;
    let request = ask::stage(&id, &staging, ask::mount("ext4"));
    clients.node.clone().node_stage_volume(request).await?;
    ensure!(std::fs::read_to_string(staging.join("data"))? == "kept");
    clients.node.clone().node_unstage_volume(ask::unstage(&id, &staging)).await?;
    ensure!(!daemons_below(dir), "no helper is left");
    w.delete(&id).await
}

fn daemons_below(dir: &Path) -> bool {
    let own = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| {
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("qemu-storage-daemon") && line.contains(&own)
    })
}

/// A network namespace with a cable to this machine, both gone when this is dropped.
struct Network {
    name: String,
    address: String,
}

impl Network {
    fn new() -> Result<Self> {
        let number = std::process::id() % 200 + 20;
        let it = Self { name: format!("vctl{number}"), address: format!("10.251.{number}.1") };
        let (name, net) = (&it.name, format!("10.251.{number}"));
        for line in [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name c netns {name}"),
            format!("addr add {net}.1/24 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add {net}.2/24 dev c"),
            format!("-n {name} link set c up"),
        ] {
            it.ip(&line)?;
        }
        Ok(it)
    }

    fn ip(&self, line: &str) -> Result<()> {
        let output = Command::new("ip").args(line.split(' ')).output()?;
        ensure!(
            output.status.success(),
            "{}: ip {line}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.ip(&format!("link del {}", self.name));
        let _ = self.ip(&format!("netns del {}", self.name));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_cut_off_is_fenced_and_stays_so() -> Result<()> {
    if Ceph::shared("cut")?.is_none() || !e2e::has_program("cut", "ip") {
        return Ok(());
    }
    let network = match Network::new() {
        Ok(network) => network,
        Err(error) => {
            e2e::skip("cut", &format!("no network of its own: {error:#}"));
            return Ok(());
        }
    };
    let ceph = Ceph::start_at(1, &network.address)?;
    let scratch = e2e::scratch::Scratch::new()?;
    let volumectl = |args: &[&str]| -> Result<(i32, String)> {
        let (code, out, error) = ceph.volumectl(args)?;
        Ok((code, out + &error))
    };
    let (code, text) = volumectl(&["volume", "create", "rbd/cut", "--size", "64Mi"])?;
    ensure!(code == 0, "{text}");
    let mut inside = Command::new("nsenter");
    inside.arg(format!("--net=/run/netns/{}", network.name));
    inside.arg(storage_daemon().unwrap_or_else(|| "qemu-storage-daemon".into()));
    let owner = Client::start(inside, &ceph, scratch.path(), "image=cut")?;
    owner.write(b"before the cut")?;
    network.ip(&format!("link set {} down", network.name))?;
    let (code, text) = volumectl(&["lock", "recover", "rbd/cut", "--yes"])?;
    ensure!(code == 3 && text.contains("lives"), "nobody can know yet: {code}: {text}");
    let mut tries = 0;
    while !volumectl(&["lock", "ls", "--image", "rbd/cut"])?.1.contains("watch is gone") {
        ensure!(tries < 60, "its watch does not time out");
        tries += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (code, text) = volumectl(&["lock", "recover", "rbd/cut", "--yes"])?;
    ensure!(code == 0, "{code}: {text}");
    network.ip(&format!("link set {} up", network.name))?;
    let late = owner.write(b"after the cut");
    ensure!(late.is_err(), "a fenced client writes no more, back on the network or not");
    drop(owner);
    let (code, text) = volumectl(&["volume", "rm", "rbd/cut", "--yes"])?;
    ensure!(code == 0, "{code}: {text}");
    Ok(())
}
