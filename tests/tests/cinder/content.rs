//! What is on a disk decides whether it is formatted, not what a node has noted of it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use csi_proto::v1 as pb;
use e2e::clients::Clients;
use e2e::contract::refused;
use e2e::requests as ask;
use e2e::scratch::Scratch;
use provisioners::cinder::Service;
use serde_json::json;
use tonic::{Code, Status};

use super::world::World;

/// A node's driver, without credentials, killed on drop.
pub(super) struct Node {
    scratch: Scratch,
    pub(super) clients: Clients,
    child: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Node {
    /// `hidden`: a program that this node does not have.
    pub(super) async fn start(w: &World, hidden: Option<&str>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let d = scratch.path().display();
        let config = format!(
            "nodeId: node-1\nclusterId: x\nsocketDir: {d}/sockets\nstateDir: {d}/state\nkubeletDir: {d}/kubelet\nbackends:\n  - type: cinder\n    instanceId: {}\n    deviceRoot: {}\n",
            w.server,
            w.cloud.devices(&w.server).display()
        );
        let file = scratch.path().join("node.yaml");
        std::fs::write(&file, &config)?;
        let driver = e2e::drivers::binary("csi-driver")?;
        let mut command = match hidden {
            None => Command::new(&driver),
            // In a mount name space of its own, where the program is hidden by an empty directory.
            Some(program) => {
                let path = ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(program));
                let path =
                    path.iter().find(|path| path.is_file()).context("not installed")?.canonicalize()?;
                std::fs::create_dir(scratch.path().join("empty"))?;
                std::fs::write(scratch.path().join("none"), "")?;
                let dir = path.parent().context("no parent")?.display().to_string();
                let copy = scratch.path().join("programs");
                let script = format!(
                    "cp -a {dir} {0} && rm {0}/{program} && mount --bind {0} {dir} && exec {1} \"$@\"",
                    copy.display(),
                    driver.display()
                );
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation", "slave", "sh", "-c", &script, "sh"]);
                command
            }
        };
        let child = command
            .args(["--mode", "node", "--config"])
            .arg(&file)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let clients = Clients::ready(&scratch.path().join("sockets/cinder.csi.volumectl.io.sock")).await?;
        std::fs::create_dir_all(scratch.path().join("kubelet/staging"))?;
        Ok(Self { scratch, clients, child })
    }

    pub(super) fn staging(&self) -> std::path::PathBuf {
        self.scratch.path().join("kubelet/staging")
    }

    async fn stage(
        &self,
        id: &str,
        context: &std::collections::BTreeMap<String, String>,
    ) -> Result<(), Status> {
        let mut request = ask::stage(id, &self.staging(), ask::mount("xfs"));
        request.publish_context = context.clone().into_iter().collect();
        self.clients.node.clone().node_stage_volume(request).await.map(drop)
    }

    async fn unstage(&self, id: &str) -> Result<()> {
        self.clients.node.clone().node_unstage_volume(ask::unstage(id, &self.staging())).await?;
        Ok(())
    }
}

/// A node without mkfs.xfs tries; another formats and writes a database; the first tries again, with mkfs.xfs there.
#[tokio::test(flavor = "multi_thread")]
async fn a_format_that_failed_on_one_node_is_no_permission_after_another_s() -> Result<()> {
    let Some(w) = World::new("notes").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let context = w.attach(&id).await?;
    let first = Node::start(&w, Some("mkfs.xfs")).await?;
    refused(
        first.stage(&id, &context).await.map(tonic::Response::new),
        Code::FailedPrecondition,
        &["mkfs.xfs is not installed"],
    )?;
    ensure!(!first.scratch.path().join("state/cinder").exists(), "a note was left");
    let second = Node::start(&w, None).await?;
    second.stage(&id, &context).await?;
    std::fs::write(second.staging().join("database"), "kept")?;
    second.unstage(&id).await?;
    // What an older version has left on the first node, which has mkfs.xfs now.
    drop(first);
    let first = Node::start(&w, None).await?;
    let notes = first.scratch.path().join("state/cinder");
    std::fs::create_dir_all(&notes)?;
    std::fs::write(notes.join(format!("{id}.json")), r#"{"formatting":"xfs"}"#)?;
    first.stage(&id, &context).await?;
    ensure!(std::fs::read_to_string(first.staging().join("database"))? == "kept");
    first.unstage(&id).await?;
    drop((first, second));
    w.end().await
}

/// The controller vouches for a volume at its first attachment only, and hands an operator's permission out once.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_vouched_for_once() -> Result<()> {
    let Some(w) = World::new("vouched").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let first = w.attach(&id).await?;
    ensure!(first.contains_key("blank"), "a new volume is not vouched for: {first:?}");
    ensure!(w.attach(&id).await?.get("blank") == first.get("blank"), "the call again says the same");
    w.detach(&id).await?;
    let body = json!({"metadata": {"volumectl.allow-format": "abc"}});
    w.bare().ask(Service::Volume, &format!("volumes/{id}/metadata"), Some(body)).await?;
    let again = w.attach(&id).await?;
    ensure!(!again.contains_key("blank"), "it was attached before: {again:?}");
    ensure!(again.get("allowFormat").is_some_and(|code| code == "abc"), "{again:?}");
    ensure!(!w.attach(&id).await?.contains_key("allowFormat"), "the permission was handed out twice");
    w.detach(&id).await?;
    w.end().await
}

/// Cinder writes a volume once more after it has called it `available`: the note is of the last write, whichever of many
/// volumes that are made at once it is.
#[tokio::test(flavor = "multi_thread")]
async fn every_new_volume_is_noted_as_cinder_leaves_it() -> Result<()> {
    let Some(w) = World::new("rest").await? else { return Ok(()) };
    let names: Vec<String> = (0..8).map(|i| format!("v{i}")).collect();
    for made in e2e::join_all(names.iter().map(|name| w.make(name)).collect()).await {
        let id = made?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let shown = w.show(&id).await?;
        let noted = &shown["metadata"]["volumectl.new"];
        ensure!(noted.is_string() && *noted == shown["updated_at"], "noted too early: {shown}");
    }
    w.end().await
}

/// Somebody attached it by hand, however briefly, and left no note: not vouched for.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_was_attached_by_hand_is_not_vouched_for() -> Result<()> {
    let Some(w) = World::new("byhand").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let body = json!({"volumeAttachment": {"volumeId": id}});
    let path = format!("servers/{}/os-volume_attachments", w.server);
    w.bare().ask(Service::Compute, &path, Some(body)).await?;
    wait_for(&w, &id, "in-use").await?;
    w.detach(&id).await?;
    wait_for(&w, &id, "available").await?;
    let context = w.attach(&id).await?;
    ensure!(!context.contains_key("blank"), "it was attached before: {context:?}");
    w.detach(&id).await?;
    w.end().await
}

async fn wait_for(w: &World, id: &str, status: &str) -> Result<()> {
    for _ in 0..300 {
        if w.show(id).await?["status"] == status {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("volume {id} did not become {status}")
}

/// Published as a raw block device once: never formatted, nor a copy of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_a_raw_block_device_is_told_to_every_node() -> Result<()> {
    let Some(w) = World::new("raw").await? else { return Ok(()) };
    let id = w.make("v").await?;
    let request = ask::attach(&id, &w.server, ask::block());
    w.clients.controller.clone().controller_publish_volume(request).await?;
    w.detach(&id).await?;
    let context = w.attach(&id).await?;
    ensure!(context.contains_key("raw") && !context.contains_key("blank"), "{context:?}");
    let node = Node::start(&w, None).await?;
    let words = &["used as a raw block device before", "not formatting"];
    refused(node.stage(&id, &context).await.map(tonic::Response::new), Code::FailedPrecondition, words)?;
    w.detach(&id).await?;
    let snapshot = w.snapshot(&id, "s").await?.snapshot_id;
    let mut request = World::request("copy", &[]);
    request.volume_content_source = ask::from_snapshot(&snapshot);
    let copy = w.create(request).await?.volume_id;
    ensure!(w.attach(&copy).await?.contains_key("raw"), "the copy does not know");
    w.detach(&copy).await?;
    drop(node);
    w.end().await
}

/// A node forgets a volume when its disk has gone, but not that the word for its first format was used: brought again, by
/// an attachment that Kubernetes still has, it makes nobody format what was written since.
#[tokio::test(flavor = "multi_thread")]
async fn a_note_goes_with_its_disk_and_its_word_stays_used() -> Result<()> {
    let Some(w) = World::new("forgotten").await? else { return Ok(()) };
    let (id, node) = (w.make("v").await?, Node::start(&w, None).await?);
    let first = w.attach(&id).await?;
    ensure!(first.contains_key("blank"), "{first:?}");
    node.stage(&id, &first).await?;
    node.unstage(&id).await?;
    let note = node.scratch.path().join(format!("state/cinder/{id}.json"));
    let file = std::fs::File::options().write(true).open(&note)?;
    file.set_modified(SystemTime::now() - Duration::from_secs(7200))?;
    let info = || async { node.clients.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await };
    info().await?;
    ensure!(note.exists(), "its disk is here");
    w.detach(&id).await?;
    info().await?;
    ensure!(!note.exists(), "the note stays");
    w.attach(&id).await?;
    let disk = w.cloud.devices(&w.server).join(format!("virtio-{}", &id[..20]));
    let written = Command::new("sh")
        .args(["-c", "blkdiscard -z \"$1\" && printf database | dd of=\"$1\" bs=1M seek=64 conv=fsync", "sh"])
        .arg(&disk)
        .output()?;
    ensure!(written.status.success(), "{written:?}");
    let words = &["holds", "not formatting"];
    refused(node.stage(&id, &first).await.map(tonic::Response::new), Code::FailedPrecondition, words)?;
    w.detach(&id).await?;
    drop(node);
    w.end().await
}
