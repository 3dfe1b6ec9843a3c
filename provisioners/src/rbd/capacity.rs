//! GetCapacity: what a pool can still take, as the monitors count it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::params::Params;
use super::record::Found;
use super::session::Session;
use super::store::{PoolState, Store};
use crate::{Capacity, CapacityQuery, Result, Secrets};

impl Store {
    /// What is free for volumes of such parameters.
    pub(super) fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        for capability in &query.capabilities {
            if super::plan::supports(capability).is_err() {
                return Ok(Capacity::default());
            }
        }
        let params = Params::parse(&self.config, &query.parameters)?;
        let site = self.site(&params.place, &Secrets::default())?;
        let pool = params.options.data_pool.as_ref().unwrap_or(&params.place.pool);
        let state = self.pool_state(&site.session, pool, Duration::from_secs(1))?.unwrap_or_default();
        let left = if state.quota == 0 { u64::MAX } else { state.quota.saturating_sub(state.stored) };
        let available = if state.full { 0 } else { state.available.min(left) };
        Ok(Capacity { available, maximum: None, minimum: None })
    }
}

/// The pool that a volume's data is in.
pub(super) fn data_pool(found: &Found) -> &str {
    found.record.parameters.get("dataPool").unwrap_or(&found.handle.place.pool)
}

/// Every pool of a cluster: `ceph df detail`, whose `max_avail` counts replication, the fullest OSD and the full ratio;
/// and the flags of `ceph osd dump`.
pub(super) fn pools(session: &Arc<Session>) -> Result<BTreeMap<String, PoolState>> {
    let df = session.command("df", &[("detail", "detail".into())])?;
    let dump = session.command("osd dump", &[])?;
    let full = |name: &str| {
        let pool = list(&dump, "pools").find(|pool| pool["pool_name"] == name);
        let flags = pool.and_then(|pool| pool["flags_names"].as_str()).unwrap_or_default();
        flags.split(',').any(|flag| matches!(flag, "full" | "full_quota"))
    };
    let read = |pool: &Value| {
        let name = pool["name"].as_str()?.to_owned();
        let stats = &pool["stats"];
        let number = |key: &str| stats[key].as_u64().unwrap_or(0);
        let state = PoolState {
            full: full(&name),
            available: number("max_avail"),
            quota: number("quota_bytes"),
            stored: number("stored"),
        };
        Some((name, state))
    };
    Ok(list(&df, "pools").filter_map(read).collect())
}

/// The entries of a list in an answer.
pub(super) fn list<'a>(answer: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    answer[key].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
