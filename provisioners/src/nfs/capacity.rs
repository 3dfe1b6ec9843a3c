//! GetCapacity: what the server says is free (FSSTAT).

use super::params::Params;
use super::plan::supports;
use super::share::Told;
use super::store::Store;
use crate::size::MIB;
use crate::{Capacity, CapacityQuery, Result, StringMap};

impl Store {
    pub(super) fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        let params = Params::parse(&self.config, &query.parameters, &StringMap::new())?;
        if query.capabilities.iter().any(|it| supports(it).is_err()) {
            return Ok(Capacity { available: 0, maximum: Some(0), minimum: None });
        }
        let share = self.share(&params.share)?;
        let available = share.space().told(&share, "asking what is free")?.available;
        Ok(Capacity { available, maximum: Some(available - available % MIB), minimum: Some(MIB) })
    }
}
