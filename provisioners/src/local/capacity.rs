//! Free space.

use super::params::{Params, VolumeType};
use super::plan::{includes, supports};
use super::size::{MIB, Space, minimum};
use super::store::Store;
use crate::{AccessType, Capability, Capacity, CapacityQuery, Error, Result, StringMap};

impl Store {
    /// What volumes of such parameters can still take here; elsewhere, or for a use that is not possible: nothing.
    pub(super) fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let none = StringMap::new();
        // Without an answer the scheduler takes every node for full, and nobody sees what is wrong with the class. Creating
        // the volume says it.
        let params = match Params::parse(&self.config, &query.parameters, &none) {
            Err(Error::Invalid { field, problem }) => {
                tracing::warn!(field, problem, "the free space is asked for with a parameter that is wrong");
                Params::parse(&self.config, &none, &none)?
            }
            other => other?,
        };
        let here = query.topology.as_ref().is_none_or(|term| includes(term, &self.topology()));
        let block = query.capabilities.iter().any(|it| it.access == AccessType::Block);
        let possible = query.capabilities.iter().all(|it| supports(it).is_ok());
        if !here || !possible || block && params.kind == VolumeType::Directory {
            return Ok(Capacity { available: 0, maximum: Some(0), minimum: None });
        }
        let root = self.root(&params.root)?;
        root.ensure()?;
        let available = Space::of(&root.path, self.config.reserve)?.available();
        let fs_type = query.capabilities.iter().find_map(wished).or(params.fs_type);
        let (smallest, _) = minimum(params.kind, block, fs_type.as_deref());
        Ok(Capacity { available, maximum: Some(available - available % MIB), minimum: Some(smallest) })
    }
}

fn wished(capability: &Capability) -> Option<String> {
    match &capability.access {
        AccessType::Mount { fs_type, .. } if !fs_type.is_empty() => Some(fs_type.clone()),
        _ => None,
    }
}
