//! Handles: `<clusterID>:<pool>/[<namespace>/]<name>`, for volumes (the image's name), snapshots and groups (a key).

use std::fmt;

use crate::naming::is_safe_component;
use crate::{Error, Result};

/// The longest handle, in bytes (CSI "Size Limits").
const MAX: usize = 128;

/// Where images are: a namespace of a pool of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The configured `clusterID`.
    pub cluster: String,
    /// The pool's name.
    pub pool: String,
    /// The RADOS namespace; empty: the default one.
    pub namespace: String,
}

impl Place {
    /// `<pool>[/<namespace>]`.
    pub fn path(&self) -> String {
        if self.namespace.is_empty() {
            return self.pool.clone();
        }
        format!("{}/{}", self.pool, self.namespace)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cluster, self.path())
    }
}

/// A parsed handle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    /// Where.
    pub place: Place,
    /// Which.
    pub name: String,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.place, self.name)
    }
}

impl Handle {
    /// A handle that CSI can carry. Longer than 128 bytes: [`Error::Invalid`].
    pub(super) fn new(place: Place, name: String) -> Result<Self> {
        let handle = Self { place, name };
        let length = handle.to_string().len();
        if length <= MAX {
            return Ok(handle);
        }
        let problem = format!(
            "the handle {handle} has {length} bytes, more than the {MAX} that CSI allows; use a shorter clusterID, pool, radosNamespace, prefix or nameTemplate"
        );
        Err(Error::invalid("name", problem))
    }

    /// How `rbd` writes it: `<pool>[/<namespace>]/<image>`.
    pub fn spec(&self) -> String {
        format!("{}/{}", self.place.path(), self.name)
    }
}

/// Parses a handle strictly: what it accepts is written out again byte for byte. All else: [`Error::Invalid`].
pub fn parse_handle(text: &str) -> Result<Handle> {
    let (cluster, path) = text.split_once(':').unwrap_or((text, ""));
    let parts: Vec<&str> = path.split('/').collect();
    let (pool, namespace, name) = match parts.as_slice() {
        [pool, name] => (*pool, "", *name),
        [pool, namespace, name] if !namespace.is_empty() => (*pool, *namespace, *name),
        _ => ("", "", ""),
    };
    let safe = [cluster, pool, name].iter().all(|part| is_safe_component(part))
        && (namespace.is_empty() || is_safe_component(namespace));
    if text.len() <= MAX && safe {
        let place = Place { cluster: cluster.into(), pool: pool.into(), namespace: namespace.into() };
        return Ok(Handle { place, name: name.to_owned() });
    }
    Err(Error::invalid(
        "handle",
        format!("{text:?} is not a handle of this backend (<clusterID>:<pool>/[<namespace>/]<image>)"),
    ))
}

/// A text that can be a part of a handle, else why not.
pub(super) fn check_part(text: &str) -> Result<(), String> {
    if is_safe_component(text) {
        return Ok(());
    }
    Err("letters, digits, `.`, `_` and `-` only, a letter or digit first".into())
}
