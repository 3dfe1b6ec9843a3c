//! Handles: `<root name>:<key>` for volumes, snapshots and groups alike.

use std::fmt;

use crate::naming::is_safe_component;
use crate::{Error, Result};

/// The longest name of a root, in bytes.
const ROOT_MAX: usize = 30;
/// The longest key, in bytes.
const KEY_MAX: usize = 63;

/// A parsed handle. Written out it has at most 94 bytes (CSI allows 128).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle {
    /// The configured name of the root.
    pub root: String,
    /// The key within it.
    pub key: String,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.root, self.key)
    }
}

/// Parses a handle strictly: what it accepts is written out again byte for byte. All else: [`Error::Invalid`].
pub fn parse_handle(text: &str) -> Result<Handle> {
    let (root, key) = text.split_once(':').unwrap_or((text, ""));
    if is_root_name(root) && key.len() <= KEY_MAX && is_safe_component(key) {
        return Ok(Handle { root: root.to_owned(), key: key.to_owned() });
    }
    Err(Error::invalid("handle", format!("{text:?} is not a handle of this backend (<root>:<key>)")))
}

/// Whether a text can name a root.
pub(super) fn is_root_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=ROOT_MAX).contains(&text.len())
        && text.bytes().all(|b| plain(b) || b == b'-')
        && text.bytes().next().is_some_and(plain)
}
