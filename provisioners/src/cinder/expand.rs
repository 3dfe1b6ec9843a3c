//! Growing a volume, also while it is in use; and giving it another type.

use std::time::{Duration, Instant};

use serde_json::json;

use super::answer::CinderVolume;
use super::cloud::{Ask, Service};
use super::delete::settled;
use super::errors::Fault;
use super::params::DOCS;
use super::session::GROWS_ONLINE;
use super::store::{Found, Store};
use super::watch::For;
use crate::parameters::Parameters;
use crate::size::{GIB, Unit, grown_in};
use crate::{CapacityRange, Ctx, Error, ExpandOutcome, Result, StringMap, VolumeId};

/// How long a volume may stand still before a change that was asked for counts as failed.
const STANDS_STILL: Duration = Duration::from_secs(10);
/// The same when it is not known whether the request has arrived.
const UNANSWERED: Duration = Duration::from_secs(2);

impl Store {
    /// Grows a volume to the range. Never shrinks.
    pub(super) async fn expand(
        &self,
        ctx: &Ctx,
        id: &VolumeId,
        range: CapacityRange,
    ) -> Result<ExpandOutcome> {
        let found = settled(ctx, self.volume(id).await?).await?;
        let has = found.volume.bytes();
        let wanted = grown_in(Unit::GIB, id, range, has)?;
        if wanted > has {
            found.extend(ctx, wanted / GIB).await?;
            tracing::info!(volume = %id, from = has, to = wanted, "grown");
        }
        Ok(ExpandOutcome { capacity: wanted, node_expansion_required: true })
    }

    /// Changes the volume's type.
    pub(super) async fn modify(&self, ctx: &Ctx, id: &VolumeId, parameters: &StringMap) -> Result<()> {
        let reader = Parameters::mutable(parameters, &DOCS)?;
        let found = settled(ctx, self.volume(id).await?).await?;
        let Some(wanted) = reader.get("type") else { return Ok(()) };
        let wanted = found.type_name(wanted).await?;
        if found.volume.volume_type.as_deref() == Some(wanted.as_str()) {
            return Ok(());
        }
        found.retype(ctx, &wanted).await?;
        tracing::info!(volume = %id, to = wanted, "retyped");
        Ok(())
    }
}

impl Found {
    /// Asks for a change, and waits until it is done. Back in the state before without it: the change has failed, or, if
    /// the request was not answered, was perhaps never asked for.
    async fn change(
        &self,
        ctx: &Ctx,
        doing: &str,
        body: serde_json::Value,
        done: impl Fn(&CinderVolume) -> bool,
    ) -> Result<()> {
        ctx.stage(format!("asking Cinder: {doing}"));
        let ask = Ask::post(Service::Volume, format!("volumes/{}/action", self.handle.id), body);
        let lost = match self.cloud.send(ask).await {
            Ok(_) => None,
            Err(fault @ Fault::Lost(_)) => Some(fault),
            Err(fault) => return Err(fault.doing(&format!("{doing} volume {}", self.handle))),
        };
        ctx.stage(format!("waiting for Cinder: {doing}"));
        let patience = if lost.is_some() { UNANSWERED } else { STANDS_STILL };
        match (self.wait(ctx, patience, done).await?, lost) {
            (None, _) => Ok(()),
            (Some(volume), Some(fault)) if !volume.status.starts_with("error") => {
                Err(fault.doing(&format!("{doing} volume {}", self.handle)))
            }
            (Some(volume), _) => Err(Self { volume, ..self.clone() }.failed(doing).await),
        }
    }

    async fn extend(&self, ctx: &Ctx, gib: u64) -> Result<()> {
        let minor = self.cloud.connected().await?.minor(Service::Volume);
        if self.volume.status != "available" && minor < GROWS_ONLINE {
            return Err(Error::Refused(format!(
                "volume {} has status {:?}, and this Cinder grows only volumes that are not in use (its microversion is below 3.{GROWS_ONLINE}); unpublish it first",
                self.handle, self.volume.status
            )));
        }
        self.change(ctx, "growing", json!({"os-extend": {"new_size": gib}}), |volume| volume.size >= gib)
            .await
    }

    /// Cinder shows types by name; a class may have the id.
    async fn type_name(&self, wanted: &str) -> Result<String> {
        match self
            .cloud
            .send(Ask::get(Service::Volume, format!("types/{}", super::store::escape(wanted))))
            .await
        {
            Ok(value) => Ok(value["volume_type"]["name"].as_str().unwrap_or(wanted).to_owned()),
            Err(fault) if !fault.is(404) => Err(fault.doing(&format!("asking for volume type {wanted:?}"))),
            Err(_) => self.type_by_name(wanted).await,
        }
    }

    async fn type_by_name(&self, wanted: &str) -> Result<String> {
        let listed = self.cloud.send(Ask::get(Service::Volume, "types")).await;
        let listed = listed.map_err(|fault| fault.doing("listing volume types"))?;
        let all = listed["volume_types"].as_array().into_iter().flatten();
        let names: Vec<&str> = all.filter_map(|one| one["name"].as_str()).collect();
        if names.contains(&wanted) {
            return Ok(wanted.to_owned());
        }
        let problem =
            format!("{wanted:?} is no volume type that this project sees; known: {}", names.join(", "));
        Err(Error::invalid("mutable_parameters[\"type\"]", problem))
    }

    async fn retype(&self, ctx: &Ctx, wanted: &str) -> Result<()> {
        let body = json!({"os-retype": {"new_type": wanted, "migration_policy": "on-demand"}});
        self.change(ctx, "retyping", body, |volume| volume.volume_type.as_deref() == Some(wanted)).await
    }

    /// Waits until a change is done. The volume, if it was not: it failed, or stood still for so long.
    async fn wait(
        &self,
        ctx: &Ctx,
        patience: Duration,
        done: impl Fn(&CinderVolume) -> bool,
    ) -> Result<Option<CinderVolume>> {
        let begun = Instant::now();
        let what = For { id: &self.handle.id, since: self.cloud.now(), all: false };
        let judge = |volume: Option<&CinderVolume>, _: &_| {
            let Some(volume) = volume else {
                return Some(Err(self.gone()));
            };
            let resting = volume.status == "available" || volume.status == "in-use";
            if resting && done(volume) {
                return Some(Ok(None));
            }
            let failed = volume.status.starts_with("error") || resting && begun.elapsed() > patience;
            failed.then(|| Ok(Some(volume.clone())))
        };
        self.cloud.until(ctx, &what, judge).await
    }
}
