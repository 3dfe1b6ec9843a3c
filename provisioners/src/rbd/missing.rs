//! What is not there for an image to be made.

use super::ffi::Errno;
use super::handle::Place;
use super::plan::Plan;
use super::site::{INTENTS, Site, creation};
use super::store::Store;
use crate::Error;

impl Store {
    /// The error for an image that Ceph did not make because something was not found: what.
    pub(super) fn why_missing(site: &Site, plan: &Plan, from_source: bool) -> Error {
        let place = &site.place;
        let namespaces = site.pool.namespaces().unwrap_or_default();
        if !place.namespace.is_empty() && !namespaces.contains(&place.namespace) {
            if let Err(error) = site.forget(INTENTS, &[&creation(&plan.handle.name)]) {
                tracing::warn!(place = %place, %error, "a note is left in a namespace that does not exist");
            }
            return Error::invalid(
                "parameters[\"radosNamespace\"]",
                format!(
                    "pool {} of cluster {} has no namespace {:?}; make it with `rbd namespace create {}/{}`",
                    place.pool, place.cluster, place.namespace, place.pool, place.namespace
                ),
            );
        }
        let data = plan.params.options.data_pool.as_ref();
        let data = data.map(|pool| Place { pool: pool.clone(), namespace: String::new(), ..place.clone() });
        let is_missing = |data: &Place| matches!(site.session.site(data), Err(Error::NotFound(_)));
        if let Some(data) = data.filter(is_missing) {
            return Error::invalid(
                "parameters[\"dataPool\"]",
                format!("cluster {} has no pool {:?}; see `ceph osd pool ls`", data.cluster, data.pool),
            );
        }
        let image = plan.handle.spec();
        if from_source {
            let why = "the parents of its source changed meanwhile";
            return Error::Unavailable(format!("creating image {image}: {why}; repeat the call"));
        }
        site.fail(&format!("creating image {image}"), Errno::NOENT)
    }
}
