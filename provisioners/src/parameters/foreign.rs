//! Parameters of other drivers, which mean nothing here, or something that this driver does not do. None is passed over
//! without a word, and none gets another meaning: see docs/migration.md.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::{field_of, is_key};
use crate::StringMap;

/// How many different things are said once, at most: keys are what users write.
const TOLD_MAX: usize = 256;

/// A parameter that another driver has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// The key, as that driver writes it.
    pub(crate) name: &'static str,
    /// Values that say what holds here anyway.
    pub(crate) fine: &'static [&'static str],
    /// What becomes of any other value.
    pub(crate) otherwise: Otherwise,
}

/// What becomes of a parameter that is not done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// It is passed over: why that does no harm.
    Ignored(&'static str),
    /// It is refused: what to do instead.
    Refused(&'static str),
}

/// A table of [`Foreign`]: name, values that are fine, `Ignored` or `Refused`, the reason.
macro_rules! foreign {
    ($($name:literal, [$($fine:literal),*], $otherwise:ident, $why:literal;)*) => {
        [$($crate::parameters::Foreign {
            name: $name,
            fine: &[$($fine),*],
            otherwise: $crate::parameters::Otherwise::$otherwise($why),
        }),*]
    };
}
pub(crate) use foreign;

impl Foreign {
    fn is_fine(&self, value: &str) -> bool {
        self.fine.iter().any(|fine| fine.eq_ignore_ascii_case(value.trim()))
    }

    /// What to do instead, where it is refused.
    pub(crate) fn check(&self, value: &str) -> Result<(), String> {
        match self.otherwise {
            Otherwise::Refused(instead) if !self.is_fine(value) => Err(format!("{value:.80?}: {instead}")),
            _ => Ok(()),
        }
    }
}

/// Something that was given and has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ignored {
    /// Such as `parameters["cephLogDir"]`.
    pub(crate) field: String,
    /// Why that does no harm.
    pub(crate) why: String,
}

/// What of a map has no effect by a table.
pub(crate) fn others(field: &str, map: &StringMap, table: &[Foreign]) -> Vec<Ignored> {
    let ignored = map.iter().filter_map(|(key, value)| {
        let other = table.iter().find(|other| is_key(other.name, key) && !other.is_fine(value))?;
        match other.otherwise {
            Otherwise::Ignored(why) => Some(Ignored { field: field_of(field, key), why: why.to_owned() }),
            Otherwise::Refused(_) => None,
        }
    });
    ignored.collect()
}

/// What was said, so that it is said once.
#[derive(Debug, Default)]
pub(crate) struct Once(Mutex<BTreeSet<String>>);

impl Once {
    /// Logs what has no effect, each once in the life of this process.
    pub(crate) fn tell(&self, backend: &str, ignored: &[Ignored]) {
        for Ignored { field, why } in ignored {
            if self.is_new(field) {
                tracing::warn!(backend, "{field} is ignored: {why}; see docs/migration.md (said once)");
            }
        }
    }

    fn is_new(&self, field: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < TOLD_MAX && told.insert(field.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_said_once_and_not_without_end() {
        let told = Once::default();
        assert!(told.is_new("a") && !told.is_new("a") && told.is_new("b"));
        let new = (0..1000).filter(|i| told.is_new(&i.to_string())).count();
        assert_eq!(new, TOLD_MAX - 2);
    }

    #[test]
    fn values_that_hold_anyway_are_neither_refused_nor_mentioned() {
        const TABLE: [Foreign; 2] = foreign! {
            "thick", ["false", ""], Refused, "leave it out";
            "logDir", [], Ignored, "no logs";
        };
        let map =
            |value: &str| StringMap::from([("Thick".into(), value.into()), ("logdir".into(), "/x".into())]);
        assert!(TABLE[0].check("False").is_ok());
        assert_eq!(TABLE[0].check("true").unwrap_err(), "\"true\": leave it out");
        let field = "parameters[\"logdir\"]".to_owned();
        assert_eq!(others("parameters", &map("false"), &TABLE), [Ignored { field, why: "no logs".into() }]);
    }
}
