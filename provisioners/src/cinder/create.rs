//! Making a volume: empty, from a snapshot, from a backup or from another volume.
//!
//! A volume is found again by its name and our metadata, which are set in the request that makes it, so there is no
//! moment at which it is not known whose it is. One request is never sent twice: when its answer is lost, the volume is
//! looked for. When two callers (two replicas of the controller, say) made one each, the older is kept, and each takes
//! away only what it has made itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::{CinderBackup, CinderSnapshot, CinderVolume, Thing};
use super::attempts::left_in_error;
use super::blank::inherited;
use super::cloud::{Ask, Cloud, Service};
use super::errors::Fault;
use super::handle::{Kind, is_uuid};
use super::plan::Plan;
use super::record::{ATTEMPT, NAME, RAW, RECORD};
use super::status::advice;
use super::store::{Found, Store, order, owner};
use super::watch::{For, Round, parsed};
use crate::size::{GIB, Unit, decide_for_source_in, decide_in};
use crate::{Ctx, Error, Result, Source, Volume, VolumeId};

/// How long a volume is looked for whose making was not answered.
const LOOKING: Duration = Duration::from_secs(5);

/// How a creation that was waited for ended.
enum Ended {
    Ready(CinderVolume),
    Failed(CinderVolume),
    Gone,
    /// Somebody made another of the same name, which is older.
    Twin(CinderVolume),
}

impl Store {
    /// Makes the planned volume, or finds the one made before.
    pub(super) async fn create(&self, ctx: &Ctx, plan: &Plan) -> Result<Volume> {
        let cloud = self.cloud_of_class(plan.cloud.as_deref())?.clone();
        ctx.stage("looking for it");
        let since = cloud.now();
        if let Some(found) = self.made_before(ctx, &cloud, plan).await? {
            return self.finish(ctx, plan, found, since, false).await;
        }
        ctx.check()?;
        let attempt = self.attempts.begin();
        let body = self.request(&cloud, plan, attempt.clone()).await?;
        ctx.check()?;
        ctx.stage("asking Cinder to make it");
        let made = match cloud.send(Ask::post(Service::Volume, "volumes", body)).await {
            Ok(mut value) => parsed::<CinderVolume>(value["volume"].take()).and_then(named),
            Err(fault) => Err(fault),
        };
        let made = match made {
            Ok(volume) => Found::new(&cloud, volume),
            Err(fault @ Fault::Lost(_)) => self.look_for(ctx, &cloud, plan, &attempt, fault).await?,
            Err(fault) if fault.is(404) && fault.says("olume type") => {
                let problem = fault.doing("not found").to_string();
                return Err(Error::invalid("parameters[\"type\"]", problem));
            }
            Err(fault) => return Err(fault.doing(&format!("creating volume {:?}", plan.display))),
        };
        ctx.check()?;
        self.finish(ctx, plan, made, since, true).await
    }

    /// The volume that an earlier call has made: of several the oldest. One that failed is removed if an attempt of this
    /// process has made it for nobody; any other may hold data and is an error. Twins are left, too: which of them was
    /// handed out is not known.
    async fn made_before(&self, ctx: &Ctx, cloud: &Arc<Cloud>, plan: &Plan) -> Result<Option<Found>> {
        let mut all = self.of_name(cloud, plan).await?;
        if let Some(volume) = all.iter().find(|volume| volume.status == "deleting") {
            return Err(Error::Unavailable(format!(
                "volume {} of the same name is being deleted; repeat the call; {}",
                volume.id,
                advice(volume).unwrap_or_default()
            )));
        }
        let failed = |volume: &CinderVolume| volume.status.starts_with("error");
        for volume in all.iter().filter(|volume| failed(volume) && self.attempts.made(*volume)) {
            ctx.stage("removing one that failed");
            self.remove_own(ctx, cloud, &volume.id).await?;
        }
        all.retain(|volume| !(failed(volume) && self.attempts.made(volume)));
        let mut all = all.into_iter();
        let Some(oldest) = all.next() else { return Ok(None) };
        if failed(&oldest) {
            return Err(left_in_error(&oldest, &plan.spec.name));
        }
        for twin in all {
            tracing::warn!(volume = %twin.id, used = %oldest.id, name = %plan.display, "two volumes have one name; see which of them is needed");
        }
        Ok(Some(Found::new(cloud, oldest)))
    }

    /// All volumes of this cluster that were made for the plan's CSI name, the oldest first.
    async fn of_name(&self, cloud: &Cloud, plan: &Plan) -> Result<Vec<CinderVolume>> {
        let mut all = self.named::<CinderVolume>(cloud, &plan.display, &plan.spec.name).await?;
        all.retain(|volume| self.is_of(volume, plan) && !volume.is_marked());
        Ok(all)
    }

    /// The volume of an attempt.
    async fn of_attempt(&self, cloud: &Cloud, plan: &Plan, attempt: &str) -> Result<Option<CinderVolume>> {
        let mut all = self.of_name(cloud, plan).await?.into_iter();
        Ok(all.find(|volume| volume.metadata.get(ATTEMPT).is_some_and(|it| it == attempt)))
    }

    fn is_of(&self, volume: &CinderVolume, plan: &Plan) -> bool {
        owner(volume) == Some(&self.config.owner)
            && volume.metadata.get(NAME) == Some(&plan.spec.name)
            && volume.metadata.contains_key(RECORD)
    }

    /// Looks for a volume whose making was not answered.
    async fn look_for(
        &self,
        ctx: &Ctx,
        cloud: &Arc<Cloud>,
        plan: &Plan,
        attempt: &str,
        fault: Fault,
    ) -> Result<Found> {
        match made_unanswered(ctx, || self.of_attempt(cloud, plan, attempt)).await? {
            Some(volume) => Ok(Found::new(cloud, volume)),
            None => Err(fault.doing(&format!(
                "creating volume {:?}: it was looked for and not found, and a repeated call looks again before it makes one",
                plan.display
            ))),
        }
    }

    /// Waits until a volume is usable and is the one of its name, and checks that it is what is asked for.
    async fn finish(
        &self,
        ctx: &Ctx,
        plan: &Plan,
        found: Found,
        since: Timestamp,
        fresh: bool,
    ) -> Result<Volume> {
        let cloud = found.cloud.clone();
        let ended = if fresh || is_making(&found.volume.status) {
            ctx.stage("waiting for Cinder to make it");
            let ended = self.made(ctx, plan, &found, since, fresh).await?;
            // Whoever makes it has taken it away if there is an older one by now.
            if !fresh && self.of_name(&cloud, plan).await?.first().is_none_or(|it| it.id != found.volume.id) {
                return Err(Error::Unavailable(format!(
                    "volume {} was made beside another of its name; repeat the call",
                    found.handle
                )));
            }
            ended
        } else {
            Ended::Ready(found.volume.clone())
        };
        let volume = match ended {
            Ended::Ready(volume) => volume,
            Ended::Gone => {
                return Err(Error::Unavailable(format!(
                    "volume {} was deleted while it was made; repeat the call",
                    found.handle
                )));
            }
            Ended::Failed(volume) => {
                if !self.attempts.made(&volume) {
                    return Err(left_in_error(&volume, &plan.spec.name));
                }
                let failed = Found { volume, ..found };
                let error = failed.failed("creating").await;
                self.remove_own(ctx, &cloud, &failed.volume.id).await?;
                return Err(error);
            }
            Ended::Twin(older) => {
                tracing::warn!(volume = %found.handle, kept = %older.id, "another was made meanwhile; removing this one");
                self.remove_own(ctx, &cloud, &found.volume.id).await?;
                return Err(Error::Unavailable(format!(
                    "volume {} of the same name was made meanwhile by somebody else; repeat the call",
                    older.id
                )));
            }
        };
        self.confirm(ctx, plan, Found { volume, ..found }, fresh).await
    }

    async fn made(
        &self,
        ctx: &Ctx,
        plan: &Plan,
        found: &Found,
        since: Timestamp,
        fresh: bool,
    ) -> Result<Ended> {
        let id = &found.handle.id;
        let judge = |volume: Option<&CinderVolume>, round: &Round<CinderVolume>| {
            let Some(volume) = volume else { return Some(Ok(Ended::Gone)) };
            if volume.status.starts_with("error") {
                return Some(Ok(Ended::Failed(volume.clone())));
            }
            if is_making(&volume.status) {
                return None;
            }
            let twins = round.seen.values().filter(|other| other.id != *id && self.is_of(other, plan));
            let older = twins
                .filter(|other| other.created() <= volume.created() && !other.status.starts_with("error"));
            let older = older
                .filter(|other| !other.is_marked() && other.status != "deleting")
                .min_by(|a, b| order(*a).cmp(&order(*b)));
            Some(Ok(match older.filter(|_| fresh) {
                Some(twin) => Ended::Twin(twin.clone()),
                None => Ended::Ready(volume.clone()),
            }))
        };
        found.cloud.until(ctx, &For { id, since, all: fresh }, judge).await
    }

    async fn confirm(&self, ctx: &Ctx, plan: &Plan, found: Found, fresh: bool) -> Result<Volume> {
        if fresh {
            if plan.is_shared() && !found.volume.multiattach {
                self.remove_own(ctx, &found.cloud, &found.volume.id).await?;
                let of = found.volume.volume_type.as_deref().unwrap_or("the default");
                let problem = format!(
                    "volume type {of} is not for several servers; make one with `openstack volume type set --property multiattach=\"<is> True\"` and set it as parameters[\"type\"]"
                );
                return Err(Error::invalid("volume_capabilities", problem));
            }
            if plan.spec.source.is_none() && !plan.is_block() {
                found.note_new().await;
            }
            tracing::info!(volume = %found.handle, name = %plan.display, gib = found.volume.size, "created");
        } else if let Some(what) = plan.differs(&found)? {
            return Err(Error::AlreadyExists(format!(
                "a volume named {:?} exists and differs in: {what}; use another name or the same parameters",
                plan.spec.name
            )));
        }
        self.attempts.answered(&found.volume);
        ctx.stage("created");
        Ok(self.show(&found))
    }

    /// The request that makes the volume.
    async fn request(&self, cloud: &Arc<Cloud>, plan: &Plan, attempt: String) -> Result<Value> {
        let minimum = (GIB, "a volume of Cinder");
        let mut volume = json!({
            "name": plan.display,
            "metadata": plan.metadata(&self.config.owner, attempt)?,
        });
        let bytes = match &plan.spec.source {
            None => decide_in(Unit::GIB, plan.spec.range, self.config.default_size, minimum)?,
            Some(source) => {
                let (key, id, size, raw) = self.origin(cloud, source).await?;
                volume[key] = json!(id);
                if raw {
                    volume["metadata"][RAW] = json!("true");
                }
                decide_for_source_in(Unit::GIB, plan.spec.range, size, minimum)?
            }
        };
        volume["size"] = json!(bytes / GIB);
        if let Some(name) = &plan.params.volume_type {
            volume["volume_type"] = json!(name);
        }
        if let Some(zone) = &plan.zone {
            volume["availability_zone"] = json!(zone);
        }
        Ok(hinted(json!({ "volume": volume }), plan))
    }

    /// What a volume is filled from: the request's key, the id, the size in bytes, and whether it was used as a raw disk.
    async fn origin(&self, cloud: &Arc<Cloud>, source: &Source) -> Result<(&'static str, String, u64, bool)> {
        let (text, what) = match source {
            Source::Volume(id) => (&id.0, "volume"),
            Source::Snapshot(id) => (&id.0, "snapshot"),
        };
        let none = || Error::NotFound(format!("volume_content_source: there is no {what} {text}"));
        let handle = self.handle(text).map_err(|_| none())?;
        let of = self.cloud(handle.cloud.as_deref()).ok_or_else(none)?;
        if of.spec.name != cloud.spec.name {
            return Err(Error::invalid(
                "volume_content_source",
                format!(
                    "{text} is in cloud {}, the volume shall be in {}; data cannot be cloned across",
                    of.spec.name, cloud.spec.name
                ),
            ));
        }
        let doing = |fault: Fault| fault.doing(&format!("volume_content_source: asking for {what} {text}"));
        let (key, found) = match (source, handle.kind) {
            (Source::Volume(_), _) => {
                let volume = self.volume(&VolumeId(text.clone())).await?.volume;
                ("source_volid", Some((volume.size, inherited(&volume.metadata))))
            }
            (Source::Snapshot(_), Kind::Plain) => {
                let found = cloud.one::<CinderSnapshot>(&handle.id).await.map_err(doing)?;
                ("snapshot_id", found.map(|snapshot| (snapshot.size, inherited(&snapshot.metadata))))
            }
            (Source::Snapshot(_), Kind::Backup) => {
                let found = cloud.one::<CinderBackup>(&handle.id).await.map_err(doing)?;
                ("backup_id", found.map(|backup| (backup.size, inherited(&backup.metadata))))
            }
        };
        let (size, raw) = found.ok_or_else(none)?;
        Ok((key, handle.id, size.saturating_mul(GIB), raw))
    }
}

/// An answer that has no volume's id is not Cinder's.
fn named(volume: CinderVolume) -> Result<CinderVolume, Fault> {
    if is_uuid(&volume.id) { Ok(volume) } else { Err(Fault::Lost("the answer names no volume".into())) }
}

/// Looks for what a request that was not answered has made: it may have been done, and it may be done yet.
pub(super) async fn made_unanswered<T, F: Future<Output = Result<Option<T>>>>(
    ctx: &Ctx,
    look: impl Fn() -> F,
) -> Result<Option<T>> {
    ctx.stage("looking for what an unanswered request has made");
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(Some(found));
        }
        ctx.check()?;
        if begun.elapsed() > LOOKING {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
}

/// The request with the scheduler's hints.
fn hinted(mut body: Value, plan: &Plan) -> Value {
    let hints = [("same_host", &plan.params.same_host), ("different_host", &plan.params.different_host)];
    for (hint, ids) in hints.into_iter().filter(|(_, ids)| !ids.is_empty()) {
        body["OS-SCH-HNT:scheduler_hints"][hint] = json!(ids);
    }
    body
}

/// Whether a volume with this status is still being made.
fn is_making(status: &str) -> bool {
    ["creating", "downloading", "restoring-backup", "backing-up", ""].contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_come_from_the_class_and_from_the_claim() {
        let id = "7a1d4b0e-3a6c-4b7e-9d6f-0123456789ab";
        let mut pvc = crate::PvcMeta::default();
        pvc.annotations.insert("cinder.csi.openstack.org/anti-affinity".into(), format!("{id}, {id}"));
        let spec = crate::VolumeSpec {
            name: "v".into(),
            range: crate::CapacityRange::default(),
            capabilities: Vec::new(),
            parameters: crate::StringMap::from([("affinity".to_owned(), id.to_owned())]),
            mutable_parameters: crate::StringMap::new(),
            source: None,
            topology: None,
            pvc,
            secrets: crate::Secrets::default(),
        };
        let plan = Plan::new(&super::super::CinderConfig::default(), spec).unwrap();
        let hints = &hinted(json!({}), &plan)["OS-SCH-HNT:scheduler_hints"];
        assert_eq!(hints["same_host"], json!([id]));
        assert_eq!(hints["different_host"], json!([id, id]));
    }

    #[test]
    fn of_one_second_the_smaller_id_is_older() {
        let volume = |created: &str, id: &str| CinderVolume {
            created_at: created.into(),
            id: id.into(),
            ..CinderVolume::default()
        };
        assert!(order(&volume("2026-01-01T00:00:00", "b")) < order(&volume("2026-01-01T00:00:01", "a")));
        assert!(order(&volume("2026-01-01T00:00:00", "a")) < order(&volume("2026-01-01T00:00:00", "b")));
    }
}
