//! The contract that every backend passes: one list of cases, run unchanged against each.
//!
//! A backend's test file gives a function that sets a [`Subject`] up and calls [`crate::contract_suite`]. Each case is
//! a test of its own, starts from nothing, and must leave nothing: no volume, snapshot, mount or device.

pub mod lists;
pub mod node;
pub mod node_targets;
pub mod publish;
pub mod snapshots;
pub mod validation;
pub mod volumes;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use csi_proto::v1 as pb;
use tonic::{Code, Response, Status};

use crate::clients::{Clients, repeated};
use crate::requests as ask;
use crate::scratch::Scratch;

/// One backend under test, and how its volumes are asked for.
pub struct Subject {
    /// Its services.
    pub clients: Clients,
    /// The server: stopped when this is dropped, before its files are removed.
    pub alive: Box<dyn Any + Send>,
    /// Where staging and target paths go.
    pub scratch: Scratch,
    /// StorageClass parameters of every volume.
    pub parameters: BTreeMap<String, String>,
    /// How its volumes are used.
    pub capability: pb::VolumeCapability,
    /// A size that its volumes can have, in bytes.
    pub size: i64,
    /// A larger one.
    pub grown: i64,
    /// Whether a staged volume of this kind can grow here; else why not.
    pub grows_staged: Result<(), String>,
    /// A parameter with a slip, and the right one.
    pub slip: (&'static str, &'static str),
    /// A parameter that can be changed later, and a value.
    pub mutable: (&'static str, &'static str),
    /// Whether it knows that a volume is in use.
    pub guards_use: bool,
    /// Whether its size is a limit that the device or file system shows.
    pub sized: bool,
    /// Whether a volume must be published to the node before it can be staged there.
    pub attached: bool,
    /// How long a stage or unstage that is UNAVAILABLE is repeated, as kubelet does for as long as it takes: a kernel's
    /// client of NFS sends a request that was not answered again after a minute only.
    pub patience: Duration,
}

/// A volume staged and published, and where.
pub struct Used {
    /// Its handle.
    pub id: String,
    /// Its staging path.
    pub staging: PathBuf,
    /// Its target path.
    pub target: PathBuf,
}

impl Subject {
    /// A backend whose volumes have a size, know their users, and need no attachment; `alive` ends with it.
    pub fn new(
        clients: Clients,
        scratch: Scratch,
        capability: pb::VolumeCapability,
        size: i64,
        alive: impl Any + Send,
    ) -> Self {
        Self {
            clients,
            scratch,
            parameters: BTreeMap::new(),
            capability,
            size,
            grown: size * 2,
            grows_staged: Ok(()),
            slip: ("mkfsOption", "mkfsOptions"),
            mutable: ("mode", "0770"),
            guards_use: true,
            sized: true,
            attached: false,
            patience: Duration::ZERO,
            alive: Box::new(alive),
        }
    }

    /// Runs one case and checks that it left nothing.
    pub async fn run(&self, case: impl AsyncFnOnce(&Self) -> Result<()>) -> Result<()> {
        case(self).await?;
        let volumes = self.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?;
        ensure!(volumes.get_ref().entries.is_empty(), "volumes left: {:?}", volumes.get_ref().entries);
        let snapshots =
            self.clients.controller.clone().list_snapshots(pb::ListSnapshotsRequest::default()).await?;
        ensure!(snapshots.get_ref().entries.is_empty(), "snapshots left: {:?}", snapshots.get_ref().entries);
        ensure!(self.scratch.mounts().is_empty(), "mounts left: {:?}", self.scratch.mounts());
        ensure!(self.scratch.loops().is_empty(), "loop devices left: {:?}", self.scratch.loops());
        Ok(())
    }

    /// The right CreateVolume for this backend.
    pub fn create_request(&self, name: &str) -> pb::CreateVolumeRequest {
        let mut request = ask::create(name, self.size, self.capability.clone());
        request.parameters.clone_from(&self.parameters);
        request
    }

    /// Creates a volume.
    pub async fn create(&self, name: &str) -> Result<pb::Volume> {
        self.make(self.create_request(name)).await
    }

    /// Creates a volume by a request.
    pub async fn make(&self, request: pb::CreateVolumeRequest) -> Result<pb::Volume> {
        let answer = self.clients.controller.clone().create_volume(request).await?;
        answer.into_inner().volume.context("CreateVolume answered without a volume")
    }

    /// Deletes volumes.
    pub async fn delete(&self, ids: &[&str]) -> Result<()> {
        for id in ids {
            self.clients
                .controller
                .clone()
                .delete_volume(ask::delete(id))
                .await
                .with_context(|| format!("deleting {id}"))?;
        }
        Ok(())
    }

    /// Takes a snapshot.
    pub async fn snapshot(&self, source: &str, name: &str) -> Result<pb::Snapshot> {
        let answer = self.clients.controller.clone().create_snapshot(ask::snapshot(source, name)).await?;
        answer.into_inner().snapshot.context("CreateSnapshot answered without a snapshot")
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        self.clients.controller.clone().delete_snapshot(ask::delete_snapshot(id)).await?;
        Ok(())
    }

    /// One volume with its status.
    pub async fn get(&self, id: &str) -> Result<pb::ControllerGetVolumeResponse> {
        let request = pb::ControllerGetVolumeRequest { volume_id: id.into() };
        Ok(self.clients.controller.clone().controller_get_volume(request).await?.into_inner())
    }

    /// Handles of all volumes.
    pub async fn ids(&self) -> Result<Vec<String>> {
        let answer = self.clients.controller.clone().list_volumes(pb::ListVolumesRequest::default()).await?;
        Ok(answer.into_inner().entries.into_iter().filter_map(|e| Some(e.volume?.volume_id)).collect())
    }

    /// Whether the controller announces a capability.
    pub async fn can(&self, wanted: pb::controller_service_capability::rpc::Type) -> Result<bool> {
        use pb::controller_service_capability::Type;
        let request = pb::ControllerGetCapabilitiesRequest {};
        let answer = self.clients.controller.clone().controller_get_capabilities(request).await?.into_inner();
        Ok(answer
            .capabilities
            .iter()
            .any(|c| matches!(&c.r#type, Some(Type::Rpc(r)) if r.r#type() == wanted)))
    }

    /// A path below the kubelet directory of the subject, its parent made.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join("kubelet").join(name);
        std::fs::create_dir_all(path.parent().context("no parent")?)?;
        Ok(path)
    }

    /// Stages and publishes a volume as kubelet does.
    pub async fn mount(&self, id: &str, name: &str) -> Result<Used> {
        let (staging, target) =
            (self.path(&format!("{name}/globalmount"))?, self.path(&format!("{name}/target"))?);
        std::fs::create_dir_all(&staging)?;
        let mut node = self.clients.node.clone();
        let request = self.stage_request(id, &staging, self.capability.clone()).await?;
        repeated(self.patience, async || node.node_stage_volume(request.clone()).await)
            .await
            .context("staging")?;
        let request = ask::publish(id, &staging, &target, self.capability.clone());
        node.node_publish_volume(request).await.context("publishing")?;
        Ok(Used { id: id.into(), staging, target })
    }

    /// Takes back what [`Subject::mount`] did.
    pub async fn unmount(&self, used: &Used) -> Result<()> {
        let mut node = self.clients.node.clone();
        node.node_unpublish_volume(ask::unpublish(&used.id, &used.target)).await.context("unpublishing")?;
        self.unstage(used).await.context("unstaging")?;
        if self.attached {
            let request = ask::detach(&used.id, &self.node().await?);
            self.clients
                .controller
                .clone()
                .controller_unpublish_volume(request)
                .await
                .context("detaching")?;
        }
        Ok(())
    }

    /// NodeUnstageVolume.
    pub async fn unstage(&self, used: &Used) -> Result<(), Status> {
        let mut node = self.clients.node.clone();
        let request = ask::unstage(&used.id, &used.staging);
        repeated(self.patience, async || node.node_unstage_volume(request.clone()).await).await.map(drop)
    }

    /// The node's id.
    pub async fn node(&self) -> Result<String> {
        let answer = self.clients.node.clone().node_get_info(pb::NodeGetInfoRequest {}).await?;
        Ok(answer.into_inner().node_id)
    }

    /// NodeStageVolume with what the controller says of the volume; attached first where that has to be.
    pub async fn stage_request(
        &self,
        id: &str,
        staging: &Path,
        capability: pb::VolumeCapability,
    ) -> Result<pb::NodeStageVolumeRequest> {
        let mut request = ask::stage(id, staging, capability.clone());
        if self.attached {
            let attach = ask::attach(id, &self.node().await?, capability);
            let answer = self
                .clients
                .controller
                .clone()
                .controller_publish_volume(attach)
                .await
                .context("attaching")?;
            request.publish_context = answer.into_inner().publish_context;
            request.volume_context = self.get(id).await?.volume.unwrap_or_default().volume_context;
        }
        Ok(request)
    }

    fn is_block(&self) -> bool {
        matches!(self.capability.access_type, Some(pb::volume_capability::AccessType::Block(_)))
    }

    /// Writes data that a later [`Subject::read`] must find, durably.
    pub fn write(&self, used: &Used, data: &[u8]) -> Result<()> {
        use std::io::Write as _;
        let path = if self.is_block() { used.target.clone() } else { used.target.join("data") };
        let mut file = std::fs::OpenOptions::new().write(true).create(!self.is_block()).open(&path)?;
        file.write_all(data)?;
        Ok(file.sync_all()?)
    }

    /// Reads as much as `len` of the data.
    pub fn read(&self, used: &Used, len: usize) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let path = if self.is_block() { used.target.clone() } else { used.target.join("data") };
        let mut data = vec![0; len];
        std::fs::File::open(&path)?.read_exact(&mut data)?;
        Ok(data)
    }
}

/// Checks that a call was refused with a code, and that the message has some words.
pub fn refused<T: Debug>(answer: Result<Response<T>, Status>, code: Code, words: &[&str]) -> Result<()> {
    let status = match answer {
        Ok(answer) => bail!("expected {code:?}, but it was answered: {:?}", answer.into_inner()),
        Err(status) => status,
    };
    ensure!(status.code() == code, "expected {code:?}, got {:?}: {}", status.code(), status.message());
    for word in words {
        ensure!(status.message().contains(word), "{word:?} is not in: {}", status.message());
    }
    Ok(())
}

/// The cases, each a test: `contract_suite!(setup)` where `async fn setup(case: &str) -> Result<Option<Subject>>`;
/// `None` when it said why it skips. `contract_suite!(data setup)`: only those in which data is written, for a further
/// file system where the controller does the same as for the first and is slow.
#[macro_export]
macro_rules! contract_suite {
    ($setup:ident) => {
        $crate::contract_suite!(@cases $setup;
            validation::{identity_says_what_it_is, capabilities_agree_with_the_services, create_refuses_wrong_fields, ids_are_required_everywhere,
                unknown_parameters_name_the_nearest, paths_and_capabilities_are_checked_on_the_node,
                form_comes_before_state},
            volumes::{create_and_delete_are_idempotent, the_same_name_with_other_wishes_is_taken,
                names_of_any_length_work, sizes_are_kept, a_missing_volume_is_not_found, repeated_calls_join,
                many_volumes_at_once, capabilities_are_validated, expansion_grows_and_never_shrinks,
                what_cannot_be_modified_is_refused, mutable_parameters_are_set_at_creation_and_later},
            lists::{paging_shows_each_volume_once, bad_tokens_are_aborted, capacity_is_real},
            publish::{attach_is_idempotent, attach_conflicts_are_refused, a_published_volume_is_not_deleted}
        );
        $crate::contract_suite!(data $setup);
    };
    (data $setup:ident) => {
        $crate::contract_suite!(@cases $setup;
            snapshots::{snapshots_are_idempotent, snapshot_names_of_any_length_work, a_restore_has_the_data_of_the_snapshot, a_clone_has_the_data,
                sources_are_checked, snapshots_can_be_listed_and_filtered, snapshots_outlive_their_volume,
                groups_are_all_or_nothing},
            node::{a_volume_lives_its_whole_life, data_survives_unstage, statistics_are_given,
                a_path_of_no_volume_or_another_is_not_found,
                read_only_is_read_only, two_pods_share_a_volume, one_pod_only_means_one, a_staged_volume_grows,
                an_unstaged_volume_grows},
            node_targets::{bad_targets_are_refused, a_busy_volume_is_not_unmounted, a_foreign_mount_is_left_alone,
                unpublish_and_unstage_of_nothing_are_fine}
        );
    };
    (@cases $setup:ident; $($module:ident::{$($case:ident),* $(,)?}),* $(,)?) => {
        $(mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() -> anyhow::Result<()> {
                match super::$setup(concat!(stringify!($module), "::", stringify!($case))).await? {
                    Some(subject) => subject.run($crate::contract::$module::$case).await,
                    None => Ok(()),
                }
            })*
        })*
    };
}
