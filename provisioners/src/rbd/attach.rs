//! Attaching by the controller: who may have the volume is noted in its image; a single writer stays single.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::alive::Users;
use super::fence::{Recovery, fence_client};
use super::record::{CLAIM, Found, PUBLISHED, Publication, Published, seal};
use super::site::Site;
use super::store::Store;
use crate::{AccessType, Ctx, Error, NodeId, NodeState, PublishRequest, Result, StringMap, VolumeId};

/// How often a change is tried that another one came before.
pub(super) const TURNS: usize = 5;

impl Store {
    /// Notes that a volume is published to a node; `nodes` says how each node is that plays a part, `None` where there is
    /// no Kubernetes to ask.
    pub(super) fn publish(
        &self,
        ctx: &Ctx,
        id: &VolumeId,
        request: &PublishRequest,
        nodes: Option<&BTreeMap<String, NodeState>>,
    ) -> Result<StringMap> {
        super::plan::supports(&request.capability)?;
        let node = &request.node;
        if let Some(NodeState::Gone) = nodes.and_then(|nodes| nodes.get(&node.0)) {
            return Err(Error::NotFound(format!("node {node} does not exist in Kubernetes")));
        }
        let how = Publication {
            read_only: request.read_only,
            mode: request.capability.mode,
            block: request.capability.access == AccessType::Block,
        };
        for _ in 0..TURNS {
            let (site, found) = self.usable(id, ctx.secrets())?;
            if found.is_deleted() {
                return Err(Error::Refused(format!("volume {id} is being deleted")));
            }
            if self.publish_over(ctx, &site, &found, node, &how, nodes)? {
                return Ok(StringMap::new());
            }
            ctx.check()?;
        }
        Err(changing(id))
    }

    /// Publishes in one step with what was read; `false`: it was changed meanwhile, and is to be read again.
    fn publish_over(
        &self,
        ctx: &Ctx,
        site: &Site,
        found: &Found,
        node: &NodeId,
        how: &Publication,
        nodes: Option<&BTreeMap<String, NodeState>>,
    ) -> Result<bool> {
        let published = found.published()?;
        if let Some(has) = published.get(&node.0) {
            if has.how == *how {
                return Ok(true);
            }
            return Err(Error::AlreadyExists(format!(
                "volume {} is published to node {node} as {:?}, not as {how:?}; unpublish it first",
                found.handle, has.how
            )));
        }
        let mut taken = Vec::new();
        for (holder, has) in &published {
            if !(how.mode.is_multi_node() && has.how.mode.is_multi_node()) {
                self.take_over(ctx, site, found, holder, state_of(nodes, holder).as_ref())?;
                taken.push(format!("{PUBLISHED}{holder}"));
            }
        }
        let value = seal(&Published { how: how.clone(), since: Timestamp::now() })?;
        let taken: Vec<_> = taken.iter().map(String::as_str).collect();
        site.update_in_turn(found, &[(&format!("{PUBLISHED}{node}"), &value)], &taken)
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
        let clients = found.clients()?;
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
        if !found.is_auto()? {
            return refuse(format!(
                "which is gone or out of service; recover it by `volumectl lock recover {spec}`, or set lockRecovery: auto in the class"
            ));
        }
        ctx.stage("fencing the dead holder");
        let address = clients.get(holder).map(|note| note.address.clone());
        self.recover_dead(site, found, Recovery::of_node(holder, address))
    }

    /// Notes that it no longer is, on one node or all. A node's client that can still write keeps the publication, or is
    /// fenced where its node is proved dead.
    pub(super) fn unpublish(
        &self,
        ctx: &Ctx,
        id: &VolumeId,
        node: Option<&NodeId>,
        nodes: Option<&BTreeMap<String, NodeState>>,
    ) -> Result<()> {
        for _ in 0..TURNS {
            let (site, found) = match self.usable(id, ctx.secrets()) {
                Err(Error::NotFound(_)) => return Ok(()),
                other => other?,
            };
            let mut keys = Vec::new();
            for holder in found.published()?.into_keys().filter(|it| node.is_none_or(|node| node.0 == *it)) {
                ctx.stage("looking whether the node has let go");
                Self::let_go(&site, &found, &holder, state_of(nodes, &holder).as_ref())?;
                keys.push(format!("{PUBLISHED}{holder}"));
                if found.claim()?.is_some_and(|claim| claim.node == holder) {
                    keys.push(CLAIM.to_owned());
                }
            }
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            if keys.is_empty() || site.update_in_turn(&found, &[], &keys)? {
                return Ok(());
            }
        }
        Err(changing(id))
    }

    /// Makes sure that a node's client cannot write any more.
    ///
    /// In order, NodeUnstageVolume comes first, and nobody has the image open. Kubernetes skips it for a node with the
    /// out-of-service taint, and after six minutes for one that is not ready; that node may be cut off and write on.
    fn let_go(site: &Site, found: &Found, holder: &str, state: Option<&NodeState>) -> Result<()> {
        let users = site.users(&found.header.image)?;
        let clients = clients_of(found, holder, &users)?;
        let dead = matches!(state, Some(NodeState::Gone | NodeState::OutOfService));
        if dead && found.is_auto()? {
            let fenced = Self::surroundings(site)?.fenced;
            for client in clients.iter().filter(|client| !fenced.contains_key(*client)) {
                fence_client(site, &found.handle, client, holder)?;
            }
            return Ok(());
        }
        let Some(client) = clients.iter().find(|client| users.is_watching(client)) else { return Ok(()) };
        let spec = found.handle.spec();
        let seen = format!("volume {} is still open on node {holder}, by {client}", found.handle);
        if dead {
            return Err(Error::Refused(format!(
                "{seen}, and that node is out of service or gone: its client may write on; recover it by `volumectl lock recover {spec} --force`, or set lockRecovery: auto in the class"
            )));
        }
        Err(Error::Unavailable(format!(
            "{seen}: it stays published until that node has unstaged it, or its client is gone for 30 s; taint the node node.kubernetes.io/out-of-service if it is shut down, and see `volumectl lock ls --image {spec}`"
        )))
    }
}

/// The clients by which a node has a volume: the noted one; without a note every one that nobody else has noted.
fn clients_of(found: &Found, holder: &str, users: &Users) -> Result<Vec<String>> {
    let noted = found.clients()?;
    let elsewhere =
        |client: &String| noted.iter().any(|(node, note)| node != holder && note.address == *client);
    let own = noted.get(holder).map(|note| note.address.clone());
    let unknown = users.watching.iter().chain(users.locker.iter().map(|locker| &locker.address));
    // The note is of the last mapping that was completed; another one may be on its way.
    let alone = found.nodes().len() == 1;
    let mut all: Vec<String> = own.into_iter().collect();
    all.extend(unknown.filter(|_| alone || all.is_empty()).cloned().collect::<Vec<_>>());
    all.sort();
    all.dedup();
    all.retain(|client| !elsewhere(client));
    Ok(all)
}

/// How a node is. Kubernetes is there, but was not asked about this one: it came meanwhile.
fn state_of(nodes: Option<&BTreeMap<String, NodeState>>, node: &str) -> Option<NodeState> {
    let unknown = || NodeState::Unknown("it was published there meanwhile; repeat the call".into());
    nodes.map(|nodes| nodes.get(node).cloned().unwrap_or_else(unknown))
}

fn changing(id: &VolumeId) -> Error {
    Error::Unavailable(format!("who has volume {id} changes again and again at this moment; repeat the call"))
}
