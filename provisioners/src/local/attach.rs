//! Attaching by the controller: a line in the record, for a local volume is where it is.

use super::record::Publication;
use super::store::Store;
use crate::{AccessType, Error, NodeId, PublishRequest, Result, StringMap, VolumeId};

impl Store {
    /// Notes that a volume is published to this node.
    pub(super) fn publish(&self, id: &VolumeId, request: &PublishRequest) -> Result<StringMap> {
        let found = self.volume(id)?;
        let node = &request.node;
        if *node != self.config.node {
            return Err(Error::NotFound(format!(
                "node {node} does not have volume {id}, which is on node {}",
                self.config.node
            )));
        }
        super::plan::supports(&request.capability)?;
        let wish = Publication {
            read_only: request.read_only,
            mode: request.capability.mode,
            block: request.capability.access == AccessType::Block,
        };
        found.update(|record| match record.published.get(&node.0) {
            Some(has) if *has == wish => Ok(false),
            Some(has) => Err(Error::AlreadyExists(format!(
                "volume {id} is published to node {node} as {has:?}, not as {wish:?}; unpublish it first"
            ))),
            None => {
                record.published.insert(node.0.clone(), wish);
                Ok(true)
            }
        })?;
        Ok(StringMap::new())
    }

    /// Notes that it no longer is, on one node or all.
    pub(super) fn unpublish(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<()> {
        let found = match self.volume(id) {
            Ok(found) => found,
            Err(Error::NotFound(_)) => return Ok(()),
            Err(other) => return Err(other),
        };
        found.update(|record| match node {
            Some(node) => Ok(record.published.remove(&node.0).is_some()),
            None => Ok(!std::mem::take(&mut record.published).is_empty()),
        })?;
        Ok(())
    }
}
