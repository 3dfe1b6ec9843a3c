//! ControllerPublishVolume and ControllerUnpublishVolume, where the backend attaches.

use anyhow::{Result, ensure};
use csi_proto::v1 as pb;
use pb::controller_service_capability::rpc::Type as Can;
use tonic::Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};

use super::{Subject, refused};
use crate::requests as ask;

/// Done twice is done once, and shown by the list.
pub async fn attach_is_idempotent(s: &Subject) -> Result<()> {
    if !s.can(Can::PublishUnpublishVolume).await? {
        return Ok(());
    }
    let (id, node, mut c) =
        (s.create("contract-attach").await?.volume_id, s.node().await?, s.clients.controller.clone());
    let request = ask::attach(&id, &node, s.capability.clone());
    let first = c.controller_publish_volume(request.clone()).await?.into_inner();
    ensure!(c.controller_publish_volume(request).await?.into_inner() == first);
    let published = s.get(&id).await?.status.unwrap_or_default().published_node_ids;
    ensure!(published == [node.clone()], "{published:?}");
    c.controller_unpublish_volume(ask::detach(&id, &node)).await?;
    c.controller_unpublish_volume(ask::detach(&id, &node)).await?;
    c.controller_unpublish_volume(ask::detach(&id, "")).await?;
    c.controller_unpublish_volume(ask::detach("no-such-volume", &node)).await?;
    ensure!(s.get(&id).await?.status.unwrap_or_default().published_node_ids.is_empty());
    s.delete(&[&id]).await
}

/// What cannot be is refused with the specification's code.
pub async fn attach_conflicts_are_refused(s: &Subject) -> Result<()> {
    if !s.can(Can::PublishUnpublishVolume).await? {
        return Ok(());
    }
    let (id, node, mut c) =
        (s.create("contract-conflict").await?.volume_id, s.node().await?, s.clients.controller.clone());
    let good = ask::attach(&id, &node, s.capability.clone());
    let missing = ask::attach("no-such-volume", &node, s.capability.clone());
    refused(c.controller_publish_volume(missing).await, NotFound, &["no-such-volume"])?;
    let nowhere = ask::attach(&id, "no-such-node", s.capability.clone());
    refused(c.controller_publish_volume(nowhere).await, NotFound, &["no-such-node"])?;
    let no_node = ask::attach(&id, "", s.capability.clone());
    refused(c.controller_publish_volume(no_node).await, InvalidArgument, &["node_id"])?;
    let long = ask::attach(&id, &"n".repeat(257), s.capability.clone());
    refused(c.controller_publish_volume(long).await, InvalidArgument, &["node_id", "256"])?;
    c.controller_publish_volume(good.clone()).await?;
    let other = pb::ControllerPublishVolumeRequest { readonly: true, ..good };
    refused(c.controller_publish_volume(other).await, AlreadyExists, &[&node])?;
    c.controller_unpublish_volume(ask::detach(&id, &node)).await?;
    s.delete(&[&id]).await
}

/// CSI DeleteVolume, "Volume in use".
pub async fn a_published_volume_is_not_deleted(s: &Subject) -> Result<()> {
    if !s.can(Can::PublishUnpublishVolume).await? {
        return Ok(());
    }
    let (id, node, mut c) =
        (s.create("contract-in-use").await?.volume_id, s.node().await?, s.clients.controller.clone());
    c.controller_publish_volume(ask::attach(&id, &node, s.capability.clone())).await?;
    refused(c.delete_volume(ask::delete(&id)).await, FailedPrecondition, &[&id, &node])?;
    c.controller_unpublish_volume(ask::detach(&id, "")).await?;
    s.delete(&[&id]).await
}
