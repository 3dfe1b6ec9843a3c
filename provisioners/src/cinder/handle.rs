//! Handles: `[<cloud>/][backup:]<uuid>`. Those of the first configured cloud have no name before them, so they are the
//! ones that Cinder itself and its own CSI driver use.

use std::fmt;

use crate::naming::is_safe_component;
use crate::{Error, Identity, Result};

/// The longest handle, in bytes (CSI "Size Limits").
const MAX: usize = 128;
/// What stands before the id of a backup that is a snapshot.
const BACKUP: &str = "backup:";

/// What a handle names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// A volume or a snapshot.
    Plain,
    /// A backup.
    Backup,
}

/// A parsed handle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Handle {
    /// The cloud's name; `None`: the first.
    pub(super) cloud: Option<String>,
    pub(super) kind: Kind,
    /// The UUID, in lower case.
    pub(super) id: String,
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cloud) = &self.cloud {
            write!(f, "{cloud}/")?;
        }
        let kind = if self.kind == Kind::Backup { BACKUP } else { "" };
        write!(f, "{kind}{}", self.id)
    }
}

impl Handle {
    /// As this driver writes it: without the name of the first cloud.
    pub(super) fn without(mut self, first: Option<&str>) -> Self {
        self.cloud = self.cloud.filter(|name| Some(name.as_str()) != first);
        self
    }

    /// What it names: UUIDs are given once, whatever a cloud is called here, and by whichever of its names.
    pub(super) fn identity(&self) -> Identity {
        Identity::new(Self { cloud: None, ..self.clone() })
    }
}

/// Parses a handle strictly: what it accepts is written out again byte for byte. All else: [`Error::Invalid`].
pub(super) fn parse_handle(text: &str) -> Result<Handle> {
    let (cloud, rest) = match text.split_once('/') {
        Some((cloud, rest)) => (Some(cloud), rest),
        None => (None, text),
    };
    let (kind, id) = match rest.strip_prefix(BACKUP) {
        Some(id) => (Kind::Backup, id),
        None => (Kind::Plain, rest),
    };
    if text.len() <= MAX && is_uuid(id) && cloud.is_none_or(is_safe_component) {
        return Ok(Handle { cloud: cloud.map(str::to_owned), kind, id: id.to_owned() });
    }
    Err(Error::invalid(
        "handle",
        format!("{text:?} is not a handle of this backend ([<cloud>/][backup:]<uuid>)"),
    ))
}

/// Whether a text is a UUID as OpenStack writes it: lower case, with dashes.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, byte)| match i {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    #[test]
    fn handles_are_read_back() {
        for text in [ID.to_owned(), format!("east/{ID}"), format!("backup:{ID}"), format!("east/backup:{ID}")]
        {
            assert_eq!(parse_handle(&text).unwrap().to_string(), text);
        }
        for wrong in ["", "x", "/", &ID.to_uppercase(), &format!("/{ID}"), &format!("a/b/{ID}"), &ID[1..]] {
            assert!(parse_handle(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        /// With `cloud/` and without, of volumes, snapshots and backups: the name says nothing of which it is.
        #[test]
        fn c12_all_spellings_of_one_handle_are_one_identity(
            a in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            b in "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            clouds in proptest::collection::vec("[a-z0-9][a-zA-Z0-9._-]{0,62}", 2),
        ) {
            let of = |id: &str| {
                let with = clouds.iter().map(|cloud| format!("{cloud}/{id}"));
                let all: Vec<_> = std::iter::once(id.to_owned()).chain(with).collect();
                let all: Vec<_> = all.iter().map(|text| parse_handle(text).unwrap().identity()).collect();
                prop_assert!(all.iter().all(|it| *it == all[0]), "{all:?}");
                Ok(all[0].clone())
            };
            let backup = format!("backup:{a}");
            prop_assert_ne!(of(&a)?, of(&backup)?);
            prop_assert_eq!(of(&a)? == of(&b)?, a == b);
            let first = parse_handle(&format!("{}/{a}", clouds[0])).unwrap().without(Some(&clouds[0]));
            prop_assert_eq!(first.to_string(), a);
        }

        #[test]
        fn no_text_is_read_and_written_otherwise(text in "[a-z0-9:/-]{0,60}") {
            if let Ok(handle) = parse_handle(&text) {
                prop_assert_eq!(handle.to_string(), text);
            }
        }
    }
}
