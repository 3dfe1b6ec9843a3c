//! Attaching by Nova. A state that passes is waited for; what Cinder says of the volume decides, not what Nova answered.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::answer::{Attached, CinderVolume, Server};
use super::cloud::{Ask, Service};
use super::delete::settled;
use super::errors::Fault;
use super::handle::is_uuid;
use super::record::{PUBLISHED, Published};
use super::session::MULTIATTACH;
use super::status::advice;
use super::store::{Found, Store, present};
use super::watch::{For, parsed};
use crate::record::{Publication, seal, unseal};
use crate::{AccessType, Ctx, Error, NodeId, PublishRequest, Result, StringMap, VolumeId};

/// How long an attachment that Nova has begun may stay `available` before it counts as failed.
const BEGINS: Duration = Duration::from_secs(10);
/// How long a detachment may take before force is used, where that is allowed.
const LETS_GO: Duration = Duration::from_secs(60);
/// A request that found the server or volume busy is repeated after this.
const BUSY: Duration = Duration::from_millis(500);

impl Store {
    /// Attaches a volume to a server. Attached there: `Ok`; elsewhere: [`Error::Refused`], naming it.
    pub(super) async fn publish(
        &self,
        ctx: &Ctx,
        id: &VolumeId,
        request: &PublishRequest,
    ) -> Result<StringMap> {
        super::plan::supports(&request.capability)?;
        let server = &request.node.0;
        let how = Publication {
            read_only: request.read_only,
            mode: request.capability.mode,
            block: request.capability.access == AccessType::Block,
        };
        loop {
            let found = settled(ctx, self.volume(id).await?).await?;
            ctx.check()?;
            if found.volume.is_on(server) {
                found.check_mode(server, &how)?;
                return found.publish_context(server).await;
            }
            if !is_uuid(server) {
                return Err(Error::NotFound(format!(
                    "node {server} is not there: Nova's servers have UUIDs"
                )));
            }
            found.check_free(server, &how)?;
            if found.needs_note(&how)? {
                found.note(server, &how).await?;
            }
            let first = found.note_use(server, &how).await?;
            ctx.stage("asking Nova to attach it");
            let place = found.take_place(&self.attaching, server, self.config.max_disks).await?;
            let asked = found.ask_attach(server).await?;
            drop(place);
            match asked {
                Asked::Again => tokio::time::sleep(BUSY).await,
                Asked::Begun => {
                    if let Some(volume) = found.wait_attached(ctx, server).await? {
                        tracing::info!(volume = %id, %server, "attached");
                        let mut attached = Found { volume, ..found };
                        if let Some(first) = &first {
                            attached.confirm_first(server, first).await?;
                        }
                        return attached.publish_context(server).await;
                    }
                }
            }
        }
    }

    /// Detaches a volume from a server, or (`None`) from all. None such, or not attached: `Ok`.
    pub(super) async fn unpublish(&self, ctx: &Ctx, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        let Some(found) = self.volume_if_any(id).await? else { return Ok(()) };
        let Some(found) = present(settled(ctx, found).await)? else { return Ok(()) };
        let wanted = |attached: &&Attached| node.is_none_or(|node| node.0 == attached.server_id);
        for attached in found.volume.attachments.iter().filter(wanted) {
            ctx.check()?;
            self.detach(ctx, &found, attached).await?;
            tracing::info!(volume = %id, server = %attached.server_id, "detached");
        }
        match found.noted() {
            Ok(Some(noted)) if node.is_none_or(|node| node.0 == noted.server) => {
                found.remove_metadata(PUBLISHED, &format!("unpublishing volume {id}")).await
            }
            Ok(_) => Ok(()),
            // It may be of another publication, so it stays, and the next one says so; detaching does not need it.
            Err(error) => {
                tracing::warn!(volume = %id, %error, "the note of how the volume is published stays");
                Ok(())
            }
        }
    }

    async fn detach(&self, ctx: &Ctx, found: &Found, attached: &Attached) -> Result<()> {
        let (id, server) = (&found.handle, &attached.server_id);
        ctx.stage("asking Nova to detach it");
        let path = format!("servers/{server}/os-volume_attachments/{}", id.id);
        let begun = Instant::now();
        loop {
            match found.cloud.send(Ask::delete(Service::Compute, path.clone())).await {
                Ok(_) | Err(Fault::Lost(_)) => break,
                // The server is gone, or does not have it: what Cinder still notes is taken away there.
                Err(fault) if fault.is(404) => {
                    found.drop_attachment(attached).await?;
                    break;
                }
                // The server is busy with something that passes.
                Err(fault) if fault.is(409) && begun.elapsed() < LETS_GO => tokio::time::sleep(BUSY).await,
                Err(fault) if fault.is(400) => break,
                Err(fault) => return Err(fault.doing(&format!("detaching volume {id} from server {server}"))),
            }
            ctx.check()?;
        }
        ctx.stage("waiting for Nova to detach it");
        let limit = self.config.force_detach.then_some(LETS_GO);
        match found.wait_detached(ctx, attached, limit).await? {
            Left::Yes => Ok(()),
            Left::Refused(volume) => {
                Err(Found { volume: *volume, ..found.clone() }.failed("detaching").await)
            }
            Left::Late => {
                found.force_detach(attached).await?;
                match found.wait_detached(ctx, attached, None).await? {
                    Left::Yes => Ok(()),
                    Left::Late | Left::Refused(_) => Err(found.failed("detaching by force").await),
                }
            }
        }
    }
}

/// What became of a request to attach.
enum Asked {
    /// It is being attached.
    Begun,
    /// The state has changed or passes: look again.
    Again,
}

/// Whether a server has let a volume go.
enum Left {
    Yes,
    Late,
    Refused(Box<CinderVolume>),
}

impl Found {
    /// Published there already: as it is asked for now?
    fn check_mode(&self, server: &str, how: &Publication) -> Result<()> {
        let noted = self.noted()?.filter(|noted| noted.server == server).map(|noted| noted.how);
        let usual = self.try_record()?.map(|record| record.usual);
        match noted.or(usual) {
            Some(has) if has != *how => Err(Error::AlreadyExists(format!(
                "volume {} is published to node {server} as {has:?}, not as {how:?}; unpublish it first",
                self.handle
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a server may have it now.
    fn check_free(&self, server: &str, how: &Publication) -> Result<()> {
        let (id, volume) = (&self.handle, &self.volume);
        let others: Vec<_> = volume.servers().filter(|other| *other != server).collect();
        if !others.is_empty() && !how.mode.is_multi_node() {
            return Err(Error::Refused(format!(
                "volume {id} is attached to server {}; unpublish it there first",
                others.join(", ")
            )));
        }
        if !others.is_empty() && !volume.multiattach {
            return Err(Error::Refused(format!(
                "volume {id} is attached to server {}, and its type is not for several servers (property multiattach)",
                others.join(", ")
            )));
        }
        if let Some(advice) = advice(volume) {
            return Err(Error::Refused(format!("volume {id} cannot be attached: {advice}")));
        }
        Ok(())
    }

    /// How it was published last, if that is not what it was made for. A note that is damaged, or of a newer version, is
    /// refused by the name of its key.
    fn noted(&self) -> Result<Option<Published>> {
        let what = || format!("metadata {PUBLISHED} of volume {}", self.handle);
        let note = self.volume.metadata.get(PUBLISHED);
        note.map(|text| unseal(&what(), text.as_bytes())).transpose()
    }

    /// As it was made to be used needs no note; a note of an earlier publication is put right.
    fn needs_note(&self, how: &Publication) -> Result<bool> {
        let usual = self.try_record()?.is_none_or(|record| record.usual == *how);
        Ok(self.noted()?.is_some() || !usual)
    }

    async fn note(&self, server: &str, how: &Publication) -> Result<()> {
        let note = Published { server: server.to_owned(), how: how.clone() };
        let text = String::from_utf8_lossy(&seal(&note)?).into_owned();
        self.set_metadata(PUBLISHED, text, &format!("noting how volume {} is published", self.handle)).await
    }

    async fn ask_attach(&self, server: &str) -> Result<Asked> {
        let id = &self.handle;
        if !self.volume.attachments.is_empty() {
            let connected = self.cloud.connected().await?;
            if connected.minor(Service::Compute) < MULTIATTACH {
                return Err(Error::Refused(format!(
                    "volume {id} cannot be attached to a second server: Nova's microversion is below 2.{MULTIATTACH}"
                )));
            }
        }
        let body = json!({"volumeAttachment": {"volumeId": id.id}});
        // Sent twice it is "already attached", which is looked at.
        let ask =
            Ask::post(Service::Compute, format!("servers/{server}/os-volume_attachments"), body).repeatable();
        let fault = match self.cloud.send(ask).await {
            Ok(_) | Err(Fault::Lost(_)) => return Ok(Asked::Begun),
            Err(fault) => fault,
        };
        if fault.is(404) {
            let gone = if fault.says("olume") { format!("volume {id}") } else { format!("node {server}") };
            return Err(Error::NotFound(format!("{gone} is not there: {}", fault.doing("attaching"))));
        }
        // Somebody was quicker, or the server is busy with something that passes.
        let passes = ["already attached", "task_state", "status must be", "Invalid volume"];
        if (fault.is(400) || fault.is(409)) && passes.iter().any(|words| fault.says(words)) {
            return Ok(Asked::Again);
        }
        Err(fault.doing(&format!("attaching volume {id} to server {server}")))
    }

    /// Waits until the server has it; `None`: the volume is free again, so that it is to be looked at anew.
    async fn wait_attached(&self, ctx: &Ctx, server: &str) -> Result<Option<CinderVolume>> {
        ctx.stage("waiting for Nova to attach it");
        let begun = Instant::now();
        let what = For { id: &self.handle.id, since: self.cloud.now(), all: false };
        let judge = |volume: Option<&CinderVolume>, _: &_| {
            let Some(volume) = volume else {
                return Some(Err(self.gone()));
            };
            match volume.status.as_str() {
                "in-use" if volume.is_on(server) => Some(Ok(Some(volume.clone()))),
                "available" | "in-use" if begun.elapsed() > BEGINS => Some(Ok(None)),
                status if status.starts_with("error") => Some(Err(Error::Refused(format!(
                    "attaching volume {} to server {server}: {}",
                    self.handle,
                    advice(volume).unwrap_or_default()
                )))),
                _ => None,
            }
        };
        let attached = self.cloud.until(ctx, &what, judge).await?;
        if attached.is_none() {
            self.require_server(server).await?;
        }
        Ok(attached)
    }

    /// Why a server did not take a volume: it may be gone, or broken.
    async fn require_server(&self, server: &str) -> Result<()> {
        match self.server(server).await? {
            None => Err(Error::NotFound(format!("node {server} is not there: Nova has no such server"))),
            Some(found) if found.status == "ERROR" => Err(Error::Refused(format!(
                "node {server}: Nova gives the server the status ERROR; see `openstack server show {server}`"
            ))),
            Some(_) => Ok(()),
        }
    }

    async fn server(&self, server: &str) -> Result<Option<Server>> {
        match self.cloud.send(Ask::get(Service::Compute, format!("servers/{server}"))).await {
            Ok(mut value) => {
                parsed(value["server"].take()).map(Some).map_err(|f| f.doing("asking for a server"))
            }
            Err(fault) if fault.is_gone(server) => Ok(None),
            Err(fault) => Err(fault.unless_gone(server).doing(&format!("asking for server {server}"))),
        }
    }

    async fn wait_detached(&self, ctx: &Ctx, attached: &Attached, limit: Option<Duration>) -> Result<Left> {
        let begun = Instant::now();
        let what = For { id: &self.handle.id, since: self.cloud.now(), all: false };
        let judge = |volume: Option<&CinderVolume>, _: &_| match volume {
            None => Some(Ok(Left::Yes)),
            Some(volume) if !volume.is_on(&attached.server_id) && volume.status != "detaching" => {
                Some(Ok(Left::Yes))
            }
            Some(volume) if volume.status == "error_detaching" => {
                Some(Ok(Left::Refused(Box::new(volume.clone()))))
            }
            Some(_) => limit.filter(|limit| begun.elapsed() > *limit).map(|_| Ok(Left::Late)),
        };
        self.cloud.until(ctx, &what, judge).await
    }

    /// Takes away an attachment of which Nova knows nothing any more.
    async fn drop_attachment(&self, attached: &Attached) -> Result<()> {
        if self.server(&attached.server_id).await?.is_some() {
            // The server lives and does not have it: it was detached just now, or Cinder is about to notice.
            return Ok(());
        }
        let path = format!("attachments/{}", attached.attachment_id);
        match self.cloud.send(Ask::delete(Service::Volume, path)).await {
            Ok(_) => Ok(()),
            Err(fault) if fault.is(404) => Ok(()),
            Err(fault) => Err(fault.doing(&format!(
                "removing the attachment of volume {} to server {}, which is gone",
                self.handle, attached.server_id
            ))),
        }
    }

    /// Detaches a volume of a server that is shut off or gone, without the server (Cinder's `os-force_detach`).
    async fn force_detach(&self, attached: &Attached) -> Result<()> {
        let (id, server) = (&self.handle, &attached.server_id);
        let status = self.server(server).await?.map(|found| found.status);
        if let Some(status) =
            status.filter(|status| !["SHUTOFF", "DELETED", "SOFT_DELETED"].contains(&status.as_str()))
        {
            return Err(Error::Unavailable(format!(
                "detaching volume {id} from server {server}: Nova does not let go, and the server has status {status}, so no force is used; repeat the call"
            )));
        }
        tracing::warn!(volume = %id, %server, "detaching by force");
        let body =
            json!({"os-force_detach": {"attachment_id": attached.attachment_id, "connector": Value::Null}});
        let ask = Ask::post(Service::Volume, format!("volumes/{}/action", id.id), body);
        match self.cloud.send(ask).await {
            Ok(_) | Err(Fault::Lost(_)) => Ok(()),
            Err(fault) => Err(fault.doing(&format!("detaching volume {id} from server {server} by force"))),
        }
    }

    /// What the node is told: it has no credentials to look it up.
    async fn publish_context(&self, server: &str) -> Result<StringMap> {
        let attached = self.volume.attachments.iter().find(|attached| attached.server_id == server);
        let device = attached.and_then(|attached| attached.device.clone()).unwrap_or_default();
        let mut context = StringMap::from([
            ("volumeId".to_owned(), self.handle.id.clone()),
            ("bytes".to_owned(), self.volume.bytes().to_string()),
            ("device".to_owned(), device),
        ]);
        self.content_context(server, &mut context);
        if let Some(code) = self.take_permit().await? {
            context.insert("allowFormat".into(), code);
        }
        Ok(context)
    }
}
