//! Snapshots: Cinder's own, or backups where the class says so. Found again by name and metadata, as volumes are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;

use super::answer::{CinderBackup, CinderSnapshot, CinderVolume, time};
use super::attempts::left_in_error;
use super::blank::inherited;
use super::cloud::{Ask, Cloud, Service};
use super::create::made_unanswered;
use super::delete::settled;
use super::errors::Fault;
use super::handle::{Handle, Kind, is_uuid};
use super::params::SnapshotParams;
use super::record::{ATTEMPT, CLUSTER, NAME, RAW, SOURCE};
use super::store::{Found, Store, handle_of, owner};
use super::watch::{For, Watched, parsed};
use crate::record::check_owner;
use crate::size::GIB;
use crate::{Ctx, Error, Result, Snapshot, SnapshotId, SnapshotSpec, VolumeId};

/// A snapshot or a backup, as far as they are alike.
pub(super) trait Copy: Watched {
    const KIND: Kind;
    fn volume_id(&self) -> &str;
    /// GiB.
    fn gib(&self) -> u64;
}

impl Copy for CinderSnapshot {
    const KIND: Kind = Kind::Plain;
    fn volume_id(&self) -> &str {
        &self.volume_id
    }
    fn gib(&self) -> u64 {
        self.size
    }
}

impl Copy for CinderBackup {
    const KIND: Kind = Kind::Backup;
    fn volume_id(&self) -> &str {
        &self.volume_id
    }
    fn gib(&self) -> u64 {
        self.size
    }
}

impl Store {
    /// For keeping two calls of one name apart; the id is Cinder's to give.
    pub(super) fn snapshot_key(&self, spec: &SnapshotSpec) -> Result<SnapshotId> {
        SnapshotParams::parse(&spec.parameters)?;
        let source = self
            .handle(&spec.source.0)
            .map_err(|_| Error::NotFound(format!("source_volume_id: there is no volume {}", spec.source)))?;
        Ok(SnapshotId(format!("{}/name:{}", source.cloud.unwrap_or_default(), spec.name)))
    }

    /// Takes a snapshot, or finds the one taken before.
    pub(super) async fn snapshot(&self, ctx: &Ctx, spec: &SnapshotSpec) -> Result<Snapshot> {
        let params = SnapshotParams::parse(&spec.parameters)?;
        let handle = self
            .handle(&spec.source.0)
            .map_err(|_| Error::NotFound(format!("source_volume_id: there is no volume {}", spec.source)))?;
        let none = || Error::NotFound(format!("source_volume_id: there is no volume {}", spec.source));
        let cloud = self.cloud(handle.cloud.as_deref()).ok_or_else(none)?.clone();
        if params.backup {
            self.take::<CinderBackup>(ctx, &cloud, spec, &params).await
        } else {
            self.take::<CinderSnapshot>(ctx, &cloud, spec, &params).await
        }
    }

    async fn take<T: Copy>(
        &self,
        ctx: &Ctx,
        cloud: &Arc<Cloud>,
        spec: &SnapshotSpec,
        params: &SnapshotParams,
    ) -> Result<Snapshot> {
        ctx.stage("looking for it");
        if let Some(found) = self.taken_before::<T>(ctx, cloud, &spec.name).await? {
            if Self::identity(&source_of(cloud, &found).0) != Self::identity(&spec.source.0) {
                return Err(Error::AlreadyExists(format!(
                    "a snapshot named {:?} exists, of volume {}; use another name",
                    spec.name,
                    source_of(cloud, &found)
                )));
            }
            return self.complete(ctx, cloud, &found, params, &spec.name).await;
        }
        let source = settled(ctx, self.volume(&spec.source).await?).await?;
        if source.volume.status == "in-use" && !params.force {
            return Err(Error::Refused(format!(
                "volume {} is in use; its snapshot holds what was written so far: set force-create: \"true\", or unpublish it",
                spec.source
            )));
        }
        ctx.check()?;
        ctx.stage("asking Cinder to take it");
        let attempt = self.attempts.begin();
        let body = self.copy_request::<T>(spec, params, &source, attempt.clone());
        let fault = match cloud.send(Ask::post(Service::Volume, T::MANY, body)).await {
            Ok(mut value) => match parsed::<T>(value[T::ONE].take()) {
                // The answer to a new backup has little more than its id.
                Ok(made) if is_uuid(made.id()) => {
                    return self.complete(ctx, cloud, &made, params, &spec.name).await;
                }
                Ok(_) => Fault::Lost("the answer names no snapshot".into()),
                Err(fault) => fault,
            },
            Err(fault) => fault,
        };
        if !matches!(fault, Fault::Lost(_)) {
            return Err(fault.doing(&format!("taking snapshot {:?} of volume {}", spec.name, spec.source)));
        }
        match made_unanswered(ctx, || self.of_attempt_copy::<T>(cloud, &spec.name, &attempt)).await? {
            Some(found) => self.complete(ctx, cloud, &found, params, &spec.name).await,
            None => Err(fault.doing(&format!("taking snapshot {:?} of volume {}", spec.name, spec.source))),
        }
    }

    fn copy_request<T: Copy>(
        &self,
        spec: &SnapshotSpec,
        params: &SnapshotParams,
        source: &Found,
        attempt: String,
    ) -> serde_json::Value {
        let mut metadata: BTreeMap<String, String> = params.tags.clone();
        metadata.insert(CLUSTER.into(), self.config.owner.clone());
        metadata.insert(NAME.into(), spec.name.clone());
        metadata.insert(ATTEMPT.into(), attempt);
        metadata.insert(SOURCE.into(), source.handle.to_string());
        if inherited(&source.volume.metadata) {
            metadata.insert(RAW.into(), "true".into());
        }
        let mut body = json!({
            "volume_id": source.handle.id, "name": spec.name, "force": true, "metadata": metadata,
        });
        if let Some(zone) = params.zone.as_ref().filter(|_| params.backup) {
            body["availability_zone"] = json!(zone);
        }
        json!({ T::ONE: body })
    }

    /// The snapshot of this name that an earlier call has taken; of several the oldest. One that failed is removed if an
    /// attempt of this process has taken it for nobody; any other may hold data.
    async fn taken_before<T: Copy>(&self, ctx: &Ctx, cloud: &Arc<Cloud>, name: &str) -> Result<Option<T>> {
        for one in self.named::<T>(cloud, name, name).await? {
            match one.status() {
                status if !status.starts_with("error") => return Ok(Some(one)),
                _ if self.attempts.made(&one) => self.remove_copy(ctx, cloud, &one).await?,
                _ => return Err(left_in_error(&one, name)),
            }
        }
        Ok(None)
    }

    /// The snapshot of an attempt.
    async fn of_attempt_copy<T: Copy>(&self, cloud: &Cloud, name: &str, attempt: &str) -> Result<Option<T>> {
        let all = self.named::<T>(cloud, name, name).await?;
        Ok(all.into_iter().find(|one| one.metadata().get(ATTEMPT).is_some_and(|it| it == attempt)))
    }

    /// Waits until a snapshot can be used. One of this process' that failed is removed, and the error has Cinder's words.
    async fn complete<T: Copy>(
        &self,
        ctx: &Ctx,
        cloud: &Arc<Cloud>,
        taken: &T,
        params: &SnapshotParams,
        name: &str,
    ) -> Result<Snapshot> {
        ctx.stage("waiting for Cinder to take it");
        let (begun, id) = (Instant::now(), taken.id().to_owned());
        let what = For { id: taken.id(), since: cloud.now(), all: false };
        let judge = |one: Option<&T>, _: &_| match one {
            None => Some(Err(Error::Unavailable(
                "the snapshot was deleted while it was taken; repeat the call".into(),
            ))),
            Some(one) if one.status() == "available" => Some(Ok((one.clone(), true))),
            Some(one) if one.status().starts_with("error") => Some(Ok((one.clone(), false))),
            Some(one) if params.backup && begun.elapsed() > backup_limit(one.gib(), params.per_gib) => {
                Some(Err(Error::Deadline(format!(
                    "backup {id} is not done in {} s; Cinder goes on with it, repeat the call, or raise backup-max-duration-seconds-per-gb",
                    begun.elapsed().as_secs()
                ))))
            }
            Some(_) => None,
        };
        let (one, good) = if taken.status() == "available" {
            (taken.clone(), true)
        } else {
            cloud.until(ctx, &what, judge).await?
        };
        if !good {
            // The answer to a new backup has no metadata, so what is seen now decides.
            if !self.attempts.made(&one) {
                return Err(left_in_error(&one, name));
            }
            let said = cloud.messages(one.id()).await.join("; ");
            self.remove_copy(ctx, cloud, &one).await?;
            return Err(Error::Internal(format!(
                "taking a snapshot of volume {}: it has status {:?}: {said}",
                one.volume_id(),
                one.status()
            )));
        }
        let snapshot = show(cloud, &one)?;
        self.attempts.answered(&one);
        tracing::info!(snapshot = %snapshot.id, volume = %snapshot.source, "taken");
        Ok(snapshot)
    }

    /// One snapshot. None such: [`Error::NotFound`].
    pub(super) async fn get_snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let none = || Error::NotFound(format!("there is no snapshot {id}"));
        let handle = self.handle(&id.0).map_err(|_| none())?;
        let cloud = self.cloud(handle.cloud.as_deref()).ok_or_else(none)?;
        match handle.kind {
            Kind::Plain => show(cloud, &get::<CinderSnapshot>(cloud, &handle).await?.ok_or_else(none)?),
            Kind::Backup => show(cloud, &get::<CinderBackup>(cloud, &handle).await?.ok_or_else(none)?),
        }
    }

    /// Deletes a snapshot. None such: `Ok`. A volume that waited for this goes, too.
    pub(super) async fn delete_snapshot(&self, ctx: &Ctx, id: &SnapshotId) -> Result<()> {
        let Ok(handle) = self.handle(&id.0) else { return Ok(()) };
        let Some(cloud) = self.cloud(handle.cloud.as_deref()) else {
            return Err(Error::Refused(format!("snapshot {id} is in a cloud that is not configured")));
        };
        match handle.kind {
            Kind::Plain => self.delete_copy::<CinderSnapshot>(ctx, cloud, &handle).await,
            Kind::Backup => self.delete_copy::<CinderBackup>(ctx, cloud, &handle).await,
        }
    }

    async fn delete_copy<T: Copy>(&self, ctx: &Ctx, cloud: &Arc<Cloud>, handle: &Handle) -> Result<()> {
        let Some(found) = get::<T>(cloud, handle).await? else { return Ok(()) };
        match owner(&found) {
            Some(owner) => check_owner(&format!("snapshot {handle}"), owner, &self.config.owner)?,
            None => {
                return Err(Error::Refused(format!(
                    "snapshot {handle} has no record of this driver, so it is not deleted; `openstack volume {} delete {}` removes it",
                    T::ONE,
                    handle.id
                )));
            }
        }
        self.remove_copy(ctx, cloud, &found).await?;
        tracing::info!(snapshot = %handle, "deleted");
        let doing = |fault: Fault| fault.doing(&format!("asking for volume {}", found.volume_id()));
        match cloud.one::<CinderVolume>(found.volume_id()).await.map_err(doing)? {
            Some(volume) => self.release(ctx, &Found::new(cloud, volume)).await,
            None => Ok(()),
        }
    }

    async fn remove_copy<T: Copy>(&self, ctx: &Ctx, cloud: &Arc<Cloud>, one: &T) -> Result<()> {
        ctx.stage("asking Cinder to delete it");
        let doing = format!("deleting {} {}", T::ONE, one.id());
        if cloud.ask_delete::<T>(one.id()).await.map_err(|fault| fault.doing(&doing))? {
            return Ok(());
        }
        ctx.stage("waiting for Cinder to delete it");
        let what = For { id: one.id(), since: cloud.now(), all: false };
        let judge = |one: Option<&T>, _: &_| match one {
            None => Some(Ok(())),
            Some(one) if one.status().starts_with("error_") => {
                Some(Err(Error::Internal(format!("{doing}: it has status {:?}", one.status()))))
            }
            Some(_) => None,
        };
        cloud.until(ctx, &what, judge).await
    }
}

/// How long a backup is waited for by one call: at least half a minute.
fn backup_limit(gib: u64, per_gib: u64) -> Duration {
    Duration::from_secs(gib.saturating_mul(per_gib).max(30))
}

async fn get<T: Copy>(cloud: &Cloud, handle: &Handle) -> Result<Option<T>> {
    cloud.one::<T>(&handle.id).await.map_err(|fault| fault.doing(&format!("asking for snapshot {handle}")))
}

/// The handle of the volume that a snapshot was taken of.
fn source_of<T: Copy>(cloud: &Cloud, one: &T) -> VolumeId {
    let noted = one.metadata().get(SOURCE).cloned();
    VolumeId(noted.unwrap_or_else(|| handle_of(cloud, Kind::Plain, one.volume_id()).to_string()))
}

/// A snapshot as the rest of the program sees it.
pub(super) fn show<T: Copy>(cloud: &Cloud, one: &T) -> Result<Snapshot> {
    let created: Timestamp = time(one.created())
        .ok_or_else(|| Error::Internal(format!("snapshot {}: {:?} is no time", one.id(), one.created())))?;
    Ok(Snapshot {
        id: SnapshotId(handle_of(cloud, T::KIND, one.id()).to_string()),
        source: source_of(cloud, one),
        size: one.gib().saturating_mul(GIB),
        created,
        ready: one.status() == "available",
        group: None,
    })
}
