//! Attaching by the controller: who may have the volume is noted in its image; a single writer stays single.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::fence::Recovery;
use super::params::Params;
use super::record::{Found, PUBLISHED, Publication, Published};
use super::site::Site;
use super::store::Store;
use crate::{AccessType, Ctx, Error, NodeId, NodeState, PublishRequest, Result, StringMap, VolumeId};

impl Store {
    /// Notes that a volume is published to a node; `nodes` says how each node is that plays a part.
    pub(super) fn publish(
        &self,
        ctx: &Ctx,
        id: &VolumeId,
        request: &PublishRequest,
        nodes: &BTreeMap<String, NodeState>,
    ) -> Result<StringMap> {
        let (site, found) = self.volume(id, ctx.secrets())?;
        super::plan::supports(&request.capability)?;
        let node = &request.node;
        if let Some(NodeState::Gone) = nodes.get(&node.0) {
            return Err(Error::NotFound(format!("node {node} does not exist in Kubernetes")));
        }
        let how = Publication {
            read_only: request.read_only,
            mode: request.capability.mode,
            block: request.capability.access == AccessType::Block,
        };
        let published = found.published();
        if let Some(has) = published.get(&node.0) {
            if has.how == how {
                return Ok(StringMap::new());
            }
            return Err(Error::AlreadyExists(format!(
                "volume {id} is published to node {node} as {:?}, not as {how:?}; unpublish it first",
                has.how
            )));
        }
        for (holder, has) in &published {
            let shared = how.mode.is_multi_node() && has.how.mode.is_multi_node();
            if !shared {
                self.take_over(ctx, &site, &found, holder, nodes.get(holder))?;
            }
        }
        let note = Published { how, since: Timestamp::now() };
        let value = serde_json::to_vec(&note).map_err(|e| Error::Internal(e.to_string()))?;
        site.update(&found.header.image, &[(&format!("{PUBLISHED}{node}"), &value)], &[])?;
        Ok(StringMap::new())
    }

    /// Takes a volume from the node that holds it, if that is proved dead and the class allows it; refuses otherwise.
    fn take_over(
        &self,
        ctx: &Ctx,
        site: &Site,
        found: &Found,
        holder: &str,
        state: Option<&NodeState>,
    ) -> Result<()> {
        let (handle, spec) = (&found.handle, found.handle.spec());
        ctx.stage("looking at the holder");
        let image = site.look(&found.header.image)?;
        let watchers = match image {
            Some(image) => image.watchers().map_err(|e| site.fail("listing watchers", e))?,
            None => Vec::new(),
        };
        let clients = found.clients();
        let refuse = |why: String| {
            Err(Error::Refused(format!("volume {handle} is published to node {holder}, {why}")))
        };
        if !watchers.is_empty() {
            let who: Vec<_> = watchers.iter().map(|watcher| watcher.address.clone()).collect();
            return refuse(format!(
                "and is open by {}: a live holder; unpublish it there first (`volumectl lock ls --image {spec}`)",
                who.join(", ")
            ));
        }
        match state {
            Some(NodeState::Gone | NodeState::OutOfService) => {}
            Some(NodeState::Ready) => {
                return refuse("which Kubernetes calls Ready; unpublish it there first".into());
            }
            Some(NodeState::NotReady) => {
                return refuse(
                    "which is not ready, but may come back; taint it node.kubernetes.io/out-of-service if it is shut down".into(),
                );
            }
            Some(NodeState::Unknown(why)) => {
                return refuse(format!(
                    "and how that node is could not be learned ({why}); unpublish it there first"
                ));
            }
            None => {
                return refuse(format!(
                    "and no Kubernetes is configured to ask whether that is dead; unpublish it, or `volumectl lock recover {spec}`"
                ));
            }
        }
        let auto = Params::parse(&self.config, &found.record.parameters)?.auto_recovery;
        if !auto {
            return refuse(format!(
                "which is gone or out of service; recover it by `volumectl lock recover {spec}`, or set lockRecovery: auto in the class"
            ));
        }
        ctx.stage("fencing the dead holder");
        let address = clients.get(holder).map(|note| note.address.clone());
        self.recover_dead(site, found, Recovery::of_node(holder, address))?;
        site.update(&found.header.image, &[], &[&format!("{PUBLISHED}{holder}")])
    }

    /// Notes that it no longer is, on one node or all.
    pub(super) fn unpublish(&self, ctx: &Ctx, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        let (site, found) = match self.volume(id, ctx.secrets()) {
            Err(Error::NotFound(_)) => return Ok(()),
            other => other?,
        };
        let keys: Vec<String> = found
            .published()
            .into_keys()
            .filter(|name| node.is_none_or(|node| node.0 == *name))
            .map(|name| format!("{PUBLISHED}{name}"))
            .collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        site.update(&found.header.image, &[], &keys)
    }
}
