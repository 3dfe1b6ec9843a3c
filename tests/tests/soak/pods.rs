//! Pods one after the other, each with a volume whose every byte is known.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use csi_proto::v1 as pb;
use e2e::random::Random;
use e2e::requests::{self as ask, MIB};

use crate::calls::{Caller, GIVE_UP};

const GIB: i64 = 1024 * MIB;
/// How long a pod waits for room, or for a server that hangs under its file system.
const PATIENCE: Duration = Duration::from_secs(120);

/// A call that is repeated until it succeeds.
macro_rules! call {
    ($caller:ident, $name:literal, $service:ident.$method:ident($request:ident)) => {
        $caller
            .call($name, |c| {
                let (mut service, mut request) = (c.$service, tonic::Request::new($request.clone()));
                request.set_timeout($crate::calls::ANSWER);
                async move { service.$method(request).await }
            })
            .await
    };
}
pub(crate) use call;

/// How a volume is asked for.
#[derive(Clone)]
pub struct Shape {
    capability: pb::VolumeCapability,
    parameters: BTreeMap<String, String>,
    size: i64,
    /// Its size is a limit.
    sized: bool,
}

fn shape(backend: &str, random: &mut Random) -> Shape {
    let (fs, size, parameters): (&str, i64, &[(&str, &str)]) = match (backend, random.below(3)) {
        ("nfs", _) => ("", 16 * MIB, &[]),
        ("local", 0) => ("ext4", 64 * MIB, &[("type", "file"), ("thick", "true")]),
        ("local", 1) => ("block", 16 * MIB, &[("thick", "true")]),
        ("local", _) => ("", 16 * MIB, &[("type", "directory")]),
        ("rbd", 0) => ("ext4", 64 * MIB, &[]),
        ("rbd", 1) => ("xfs", 320 * MIB, &[]),
        ("rbd", _) => ("block", 16 * MIB, &[]),
        (_, 0) => ("ext4", GIB, &[]),
        (_, 1) => ("xfs", GIB, &[]),
        (..) => ("block", GIB, &[]),
    };
    let capability = if fs == "block" { ask::block() } else { ask::mount(fs) };
    let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Shape { capability, parameters, size, sized: !fs.is_empty() }
}

/// A volume that a pod has.
pub struct Pod {
    pub name: String,
    pub volume: pb::Volume,
    pub shape: Shape,
    staging: PathBuf,
    target: PathBuf,
}

/// Pods until the time is over; the last one is taken down in order.
pub async fn live(caller: Caller, mut random: Random, name: String, end: Instant) -> Result<()> {
    let mut number = 0;
    while Instant::now() < end && !caller.world.is_stopped() {
        number += 1;
        let name = format!("{name}-{number}");
        caller.pod(&name, &mut random, end).await.with_context(|| format!("pod {name}"))?;
    }
    Ok(())
}

impl Caller {
    fn is_attached(&self) -> bool {
        matches!(self.backend, "rbd" | "cinder")
    }

    /// One pod's life.
    pub async fn pod(&self, name: &str, random: &mut Random, end: Instant) -> Result<()> {
        let shape = shape(self.backend, random);
        let mut pod = self.create(name, shape, None).await?;
        self.mount_first(&pod).await?;
        let mut data = content(random);
        self.write(&pod, &data).await?;
        for step in 0..random.below(5) {
            if Instant::now() > end {
                break;
            }
            match random.below(7) {
                0 | 1 => {
                    self.unmount(&pod).await?;
                    self.mount(&pod).await?;
                }
                2 | 3 => {
                    // A raw device in a pod cannot be made to stand still where blocks are not shared.
                    let still = self.backend == "local" && is_block(&pod);
                    if still {
                        self.unmount(&pod).await?;
                    }
                    self.check_copies(&pod, &data, random.below(2) == 0, step).await?;
                    if still {
                        self.mount(&pod).await?;
                    }
                }
                4 => self.grow(&mut pod).await?,
                // Cinder's own snapshots of a disk in use are copies here that nothing makes stand still.
                5 if self.backend != "cinder" => {
                    self.unmount(&pod).await?;
                    self.check_moving(&pod, random, step).await?;
                    self.mount(&pod).await?;
                }
                _ => {
                    data = content(random);
                    self.write(&pod, &data).await?;
                }
            }
            self.check(&pod, &data).await?;
        }
        self.unmount(&pod).await?;
        self.delete(&pod.volume.volume_id).await?;
        self.report().pod();
        Ok(())
    }

    pub async fn create(
        &self,
        name: &str,
        shape: Shape,
        source: Option<pb::VolumeContentSource>,
    ) -> Result<Pod> {
        let mut request = ask::create(name, shape.size, shape.capability.clone());
        request.parameters.clone_from(&shape.parameters);
        request.volume_content_source = source;
        let answer = call!(self, "CreateVolume", controller.create_volume(request))?;
        let dir = self.world.scratch.path().join("kubelet").join(name);
        let volume = answer.volume.context("no volume")?;
        Ok(Pod { name: name.into(), volume, shape, staging: dir.join("staging"), target: dir.join("target") })
    }

    pub async fn mount(&self, pod: &Pod) -> Result<()> {
        let id = &pod.volume.volume_id;
        std::fs::create_dir_all(&pod.staging)?;
        let mut stage = ask::stage(id, &pod.staging, pod.shape.capability.clone());
        stage.volume_context.clone_from(&pod.volume.volume_context);
        if self.is_attached() {
            let request = ask::attach(id, &self.node, pod.shape.capability.clone());
            let attached =
                call!(self, "ControllerPublishVolume", controller.controller_publish_volume(request))?;
            stage.publish_context = attached.publish_context;
        }
        call!(self, "NodeStageVolume", node.node_stage_volume(stage))?;
        let request = ask::publish(id, &pod.staging, &pod.target, pod.shape.capability.clone());
        call!(self, "NodePublishVolume", node.node_publish_volume(request)).map(drop)
    }

    /// The first mount of a new volume: what a mkfs and a driver that were killed together have left on it is given up, as
    /// the refusal says. Of a volume that has data a refusal ends the soak.
    async fn mount_first(&self, pod: &Pod) -> Result<()> {
        loop {
            let Err(error) = self.mount(pod).await else { return Ok(()) };
            let text = error.to_string();
            let Some((_, how)) = text.split_once(GIVE_UP) else { return Err(error) };
            self.report().fault("give up a torn format");
            let how = how.split('`').next().unwrap_or_default();
            self.world.give_up(how).await.with_context(|| how.to_owned())?;
            if self.is_attached() {
                let request = ask::detach(&pod.volume.volume_id, &self.node);
                call!(self, "ControllerUnpublishVolume", controller.controller_unpublish_volume(request))?;
            }
        }
    }

    pub async fn unmount(&self, pod: &Pod) -> Result<()> {
        let id = &pod.volume.volume_id;
        let request = ask::unpublish(id, &pod.target);
        call!(self, "NodeUnpublishVolume", node.node_unpublish_volume(request))?;
        let request = ask::unstage(id, &pod.staging);
        call!(self, "NodeUnstageVolume", node.node_unstage_volume(request))?;
        ensure!(!pod.target.exists(), "{} is still there", pod.target.display());
        if self.is_attached() {
            let request = ask::detach(id, &self.node);
            call!(self, "ControllerUnpublishVolume", controller.controller_unpublish_volume(request))?;
        }
        Ok(())
    }

    pub async fn delete(&self, id: &str) -> Result<()> {
        let request = ask::delete(id);
        call!(self, "DeleteVolume", controller.delete_volume(request)).map(drop)
    }

    /// A clone, or a snapshot's restored volume, has the data.
    async fn check_copies(&self, pod: &Pod, data: &Arc<Vec<u8>>, clone: bool, step: usize) -> Result<()> {
        let source = &pod.volume.volume_id;
        if clone {
            return self
                .check_copy(pod, data, &format!("{}-clone-{step}", pod.name), ask::from_volume(source))
                .await;
        }
        let request = ask::snapshot(source, &format!("{}-snapshot-{step}", pod.name));
        let taken = call!(self, "CreateSnapshot", controller.create_snapshot(request))?;
        let id = taken.snapshot.context("no snapshot")?.snapshot_id;
        self.check_copy(pod, data, &format!("{}-restore-{step}", pod.name), ask::from_snapshot(&id)).await?;
        let request = ask::delete_snapshot(&id);
        call!(self, "DeleteSnapshot", controller.delete_snapshot(request)).map(drop)
    }

    async fn check_copy(
        &self,
        pod: &Pod,
        data: &Arc<Vec<u8>>,
        name: &str,
        source: Option<pb::VolumeContentSource>,
    ) -> Result<()> {
        let copy = self.create(name, pod.shape.clone(), source).await?;
        self.mount(&copy).await?;
        self.check(&copy, data).await?;
        self.unmount(&copy).await?;
        self.delete(&copy.volume.volume_id).await
    }

    /// At the controller, then on the node.
    async fn grow(&self, pod: &mut Pod) -> Result<()> {
        let (id, size) = (pod.volume.volume_id.clone(), pod.shape.size * 2);
        if size > 2 * GIB {
            return Ok(());
        }
        let request = ask::expand(&id, size);
        let grown = call!(self, "ControllerExpandVolume", controller.controller_expand_volume(request))?;
        let request = pb::NodeExpandVolumeRequest {
            staging_target_path: pod.staging.display().to_string(),
            ..ask::node_expand(&id, &pod.target, grown.capacity_bytes)
        };
        call!(self, "NodeExpandVolume", node.node_expand_volume(request))?;
        pod.shape.size = size;
        let request = ask::stats(&id, &pod.target);
        let stats = call!(self, "NodeGetVolumeStats", node.node_get_volume_stats(request))?;
        let bytes = stats.usage.iter().find(|u| u.unit() == pb::volume_usage::Unit::Bytes);
        let total = bytes.context("no bytes")?.total;
        ensure!(!pod.shape.sized || total > size * 3 / 4, "{total} bytes after growing to {size}");
        Ok(())
    }

    /// Writes all of it durably.
    async fn write(&self, pod: &Pod, data: &Arc<Vec<u8>>) -> Result<()> {
        let data = data.clone();
        self.durably(pod, move |file| file.write_all_at(&data, 0)).await
    }

    /// Writes to a pod's file durably; no room is waited for.
    pub async fn durably<W>(&self, pod: &Pod, write: W) -> Result<()>
    where
        W: Fn(&File) -> std::io::Result<()> + Clone + Send + 'static,
    {
        let begun = Instant::now();
        loop {
            let (path, create, write) = (file_of(pod), !is_block(pod), write.clone());
            let all = move || {
                let file = File::options().write(true).create(create).truncate(false).open(&path)?;
                write(&file)?;
                file.sync_all()
            };
            match tokio::task::spawn_blocking(all).await? {
                Ok(()) => return Ok(()),
                Err(e) if is_full(&e) && begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                Err(e) => bail!("writing {}: {e}", file_of(pod).display()),
            }
        }
    }

    /// Every byte is as it was written.
    async fn check(&self, pod: &Pod, data: &Arc<Vec<u8>>) -> Result<()> {
        let (path, length) = (file_of(pod), data.len());
        let read = move || {
            let mut found = vec![0; length];
            File::open(&path)?.read_exact(&mut found).map(|()| found)
        };
        let found = tokio::task::spawn_blocking(read).await?;
        let found = found.with_context(|| format!("reading {}", file_of(pod).display()))?;
        ensure!(found == **data, "{} has other data than was written", file_of(pod).display());
        self.report().checksum();
        Ok(())
    }
}

fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

pub fn is_block(pod: &Pod) -> bool {
    matches!(pod.shape.capability.access_type, Some(pb::volume_capability::AccessType::Block(_)))
}

pub fn file_of(pod: &Pod) -> PathBuf {
    let target: &Path = &pod.target;
    if is_block(pod) { target.to_owned() } else { target.join("data") }
}

/// Up to two MiB that no run of zeros or pattern could be taken for.
fn content(random: &mut Random) -> Arc<Vec<u8>> {
    let words = 8192 + random.below(1 << 18);
    Arc::new((0..words).flat_map(|_| random.next().to_le_bytes()).collect())
}
