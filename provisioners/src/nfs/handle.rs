//! Handles: `<share>:<key>`, or `<server>#<path>#<key>` for a share that only a class names.

use std::fmt;

use super::config::{check_path, check_server};
use crate::naming::is_safe_component;
use crate::{Error, Result};

/// The longest key, in bytes.
const KEY_MAX: usize = 63;
/// CSI: an id has at most so many bytes.
const ID_MAX: usize = 128;

/// Which share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum ShareId {
    /// By its configured name.
    Named(String),
    /// By server and path.
    Direct(String, String),
}

/// A parsed handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handle {
    pub(super) share: ShareId,
    pub(super) key: String,
}

impl fmt::Display for ShareId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Direct(server, path) => write!(f, "{server}#{path}"),
        }
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let between = if matches!(self.share, ShareId::Named(_)) { ':' } else { '#' };
        write!(f, "{}{between}{}", self.share, self.key)
    }
}

impl Handle {
    /// A handle that fits into a CSI id. Too long: [`Error::Invalid`].
    pub(super) fn new(share: ShareId, key: String) -> Result<Self> {
        let handle = Self { share, key };
        let length = handle.to_string().len();
        if length > ID_MAX {
            return Err(Error::invalid(
                "parameters[\"share\"]",
                format!(
                    "server and share make a handle of {length} bytes, more than {ID_MAX}; give the share a name in the driver's configuration"
                ),
            ));
        }
        Ok(handle)
    }

    /// Parses strictly: what it accepts is written out again byte for byte. All else: `None`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > ID_MAX {
            return None;
        }
        let (share, key) = match text.rsplit_once('#') {
            Some((share, key)) => {
                let (server, path) = share.split_once('#')?;
                check_server(server).and_then(|()| check_path(path)).ok()?;
                (ShareId::Direct(server.into(), path.into()), key)
            }
            None => {
                let (name, key) = text.split_once(':')?;
                let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                if name.is_empty() || name.len() > 30 || !name.bytes().all(good) {
                    return None;
                }
                (ShareId::Named(name.into()), key)
            }
        };
        (key.len() <= KEY_MAX && is_safe_component(key)).then(|| Self { share, key: key.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_come_back_byte_for_byte() {
        for text in ["main:pvc-1", "10.0.0.5#/srv/nfs#pvc-1", "[fe80::1]#/a#b"] {
            assert_eq!(Handle::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "main",
            "main:",
            "main:../x",
            "Main:x",
            "a#b",
            "host#relative#k",
            "host#/a/../b#k",
            "h#/a#.x",
        ] {
            assert!(Handle::parse(bad).is_none(), "{bad}");
        }
        assert!(Handle::new(ShareId::Direct("h".repeat(60), "/p".repeat(30)), "k".repeat(40)).is_err());
    }
}
