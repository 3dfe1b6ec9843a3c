//! StorageClass parameters: read once, each key known or refused with the nearest one that is.

use std::str::FromStr;

use crate::{Error, Result, StringMap};

mod foreign;
mod sidecars;

pub(crate) use foreign::{Foreign, Ignored, Once, Otherwise, foreign, others};
pub use sidecars::split_parameters;

#[cfg(test)]
mod tests;

/// What is said of one parameter in the documentation and used to refuse others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterDoc {
    /// The key, as written in a StorageClass.
    pub name: &'static str,
    /// What it does, with its unit.
    pub meaning: &'static str,
    /// What holds when it is not given.
    pub default: &'static str,
    /// Whether ControllerModifyVolume can change it.
    pub mutable: bool,
}

/// A table of parameters: name, meaning, default, whether it can be changed.
macro_rules! docs {
    ($($name:literal, $meaning:literal, $default:literal, $mutable:literal;)*) => {
        [$($crate::ParameterDoc { name: $name, meaning: $meaning, default: $default, mutable: $mutable }),*]
    };
}
pub(crate) use docs;

/// A reader over a parameter map whose keys are all known. Case makes no difference in keys, as the other drivers have it.
#[derive(Debug, Clone, Copy)]
pub struct Parameters<'a> {
    map: &'a StringMap,
    field: &'a str,
    foreign: &'static [Foreign],
}

impl<'a> Parameters<'a> {
    /// Checks every key of a map against those that are known. `field` is the request's name for the map, such as
    /// `parameters` or `mutable_parameters`. An unknown key, or one given twice in upper and lower case:
    /// [`Error::Invalid`] with the nearest known one.
    pub fn new(field: &'a str, map: &'a StringMap, known: &[ParameterDoc]) -> Result<Self> {
        Self::with_foreign(field, map, known, &[])
    }

    /// The same beside parameters of other drivers, each of which is passed over or refused as its table says.
    pub(crate) fn with_foreign(
        field: &'a str,
        map: &'a StringMap,
        known: &[ParameterDoc],
        foreign: &'static [Foreign],
    ) -> Result<Self> {
        let it = Self { map, field, foreign };
        for (key, value) in map {
            it.check_twin(key)?;
            if known.iter().any(|doc| is_key(doc.name, key)) {
                continue;
            }
            match foreign.iter().find(|other| is_key(other.name, key)) {
                Some(other) => {
                    other.check(value).map_err(|problem| Error::invalid(it.field_of(key), problem))?;
                }
                None => return Err(Error::invalid(it.field_of(key), unknown(key, known))),
            }
        }
        Ok(it)
    }

    /// What of the map has no effect here, and why.
    pub(crate) fn ignored(&self) -> Vec<Ignored> {
        others(self.field, self.map, self.foreign)
    }

    /// The same for a VolumeAttributesClass: only parameters that can be changed.
    pub(crate) fn mutable(map: &'a StringMap, known: &[ParameterDoc]) -> Result<Self> {
        let it = Self::new("mutable_parameters", map, known)?;
        if let Some(doc) = known.iter().find(|doc| !doc.mutable && it.get(doc.name).is_some()) {
            let mutable: Vec<_> = known.iter().filter(|doc| doc.mutable).map(|doc| doc.name).collect();
            let problem = format!("cannot be changed after creation; those that can: {}", mutable.join(", "));
            return Err(Error::invalid(it.field_of(doc.name), problem));
        }
        Ok(it)
    }

    fn check_twin(&self, key: &str) -> Result<()> {
        let twin = self.map.keys().find(|other| *other != key && other.eq_ignore_ascii_case(key));
        match twin {
            Some(twin) => {
                let problem = format!("given twice, as {key:?} and as {twin:?}; give it once");
                Err(Error::invalid(self.field_of(key), problem))
            }
            None => Ok(()),
        }
    }

    /// The value of a key, if given.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        let found =
            self.map.get_key_value(key).or_else(|| self.map.iter().find(|(given, _)| is_key(key, given)));
        found.map(|(_, value)| value.as_str())
    }

    /// A value read by `read`, whose error text says what would be right.
    pub fn read<T>(&self, key: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        read(value)
            .map(Some)
            .map_err(|problem| Error::invalid(self.field_of(key), format!("{value:?}: {problem}")))
    }

    /// `true` or `false`, also as Go's `strconv.ParseBool` takes them, by which the other drivers read; `None` when not
    /// given.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, |value| flag(value).ok_or_else(|| "write \"true\" or \"false\"".into()))
    }

    /// A whole number.
    pub fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>> {
        self.read(key, |value| {
            let parsed = is_digits(value).then(|| value.parse().ok()).flatten();
            parsed.ok_or_else(|| "write a whole number in range, such as \"1000\"".into())
        })
    }

    /// Permission bits in octal, such as `0770`; at most `7777`.
    pub fn mode(&self, key: &str) -> Result<Option<u32>> {
        self.read(key, |value| {
            let octal = (3..=5).contains(&value.len()) && value.bytes().all(|b| matches!(b, b'0'..=b'7'));
            let parsed = octal.then(|| u32::from_str_radix(value, 8).ok()).flatten();
            parsed
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| "write permission bits in octal, such as \"0770\"".into())
        })
    }

    /// A user or group id; the largest number means "leave as it is" to chown(2), so it is none.
    pub(crate) fn owner(&self, key: &str) -> Result<Option<u32>> {
        match self.number::<u32>(key)? {
            Some(u32::MAX) => {
                Err(Error::invalid(self.field_of(key), "4294967295 is not an id; use a smaller number"))
            }
            id => Ok(id),
        }
    }

    /// One of several words.
    pub fn one_of(&self, key: &str, words: &[&'static str]) -> Result<Option<&'static str>> {
        self.read(key, |value| {
            words
                .iter()
                .copied()
                .find(|word| *word == value)
                .ok_or_else(|| format!("known: {}", words.join(", ")))
        })
    }

    /// One of several words, in upper or lower case.
    pub(crate) fn word(&self, key: &str, words: &[&'static str]) -> Result<Option<&'static str>> {
        self.read(key, |value| {
            let found = words.iter().copied().find(|word| word.eq_ignore_ascii_case(value));
            found.ok_or_else(|| format!("known: {}", words.join(", ")))
        })
    }

    /// How an error names a key, as it was given: `parameters["mode"]`.
    pub fn field_of(&self, key: &str) -> String {
        let given = self.map.keys().find(|given| is_key(key, given));
        field_of(self.field, given.map_or(key, String::as_str))
    }
}

/// How an error names a key of a request's map.
pub(crate) fn field_of(field: &str, key: &str) -> String {
    format!("{field}[{key:?}]")
}

/// Whether a key as given is a known one.
pub(crate) fn is_key(known: &str, given: &str) -> bool {
    known.eq_ignore_ascii_case(given)
}

/// A map with its known keys in their one spelling, for what is stored and read later.
pub(crate) fn canonical(map: &StringMap, known: &[ParameterDoc]) -> StringMap {
    let name =
        |key: &str| known.iter().find(|doc| is_key(doc.name, key)).map_or(key, |doc| doc.name).to_owned();
    map.iter().map(|(key, value)| (name(key), value.clone())).collect()
}

/// A flag as Go's `strconv.ParseBool` reads it.
pub(crate) fn flag(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn unknown(key: &str, known: &[ParameterDoc]) -> String {
    if known.is_empty() {
        return "unknown; no parameters are known here".into();
    }
    let names: Vec<&str> = known.iter().map(|doc| doc.name).collect();
    let list = names.join(", ");
    match nearest(key, &names) {
        Some(name) => format!("unknown; did you mean {name:?}? known: {list}"),
        None => format!("unknown; known: {list}"),
    }
}

/// The word most like `text`, if any is like it at all.
pub(crate) fn nearest<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    let lower = text.to_lowercase();
    let score = |word: &str| strsim::jaro_winkler(&lower, &word.to_lowercase());
    let best = words.iter().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) >= 0.75).then_some(*best)
}

/// Parses `10Gi`, `1.5G`, `500M`, `1073741824`, `1e9`: bytes, rounded up to a whole byte as Kubernetes does with its
/// quantities; `10GiB` and `10GB` are understood, too. More than `i64::MAX`, negative or not a size:
/// [`Error::Invalid`], field `size`.
pub fn parse_size(text: &str) -> Result<u64> {
    quantity(text.trim()).ok_or_else(|| {
        Error::invalid(
            "size",
            format!("{text:?} is not a size; write such as 10Gi, 500M or 1073741824 (bytes), up to 2^63-1"),
        )
    })
}

fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let scale = scale(suffix)?;
    // Eighteen digits after the point say more than any byte count can.
    if fraction.len() > 18 {
        return None;
    }
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let bytes = digits.checked_mul(scale)?.div_ceil(divisor);
    u64::try_from(bytes).ok().filter(|bytes| i64::try_from(*bytes).is_ok())
}

fn scale(suffix: &str) -> Option<u128> {
    if let Some(exponent) = suffix.strip_prefix(['e', 'E']).filter(|rest| is_digits(rest)) {
        return exponent.parse().ok().filter(|e| *e <= 18).map(|e| 10_u128.pow(e));
    }
    let unit = suffix.strip_suffix('B').unwrap_or(suffix);
    let power = |letter: &str| "kMGTPE".find(letter).and_then(|at| u32::try_from(at + 1).ok());
    match unit {
        "" => Some(1),
        "K" => Some(1000),
        _ if unit.len() == 1 => power(unit).map(|p| 1000_u128.pow(p)),
        "Ki" => Some(1024),
        _ if unit.len() == 2 && unit.ends_with('i') && !unit.starts_with('k') => {
            power(&unit[..1]).map(|p| 1024_u128.pow(p))
        }
        _ => None,
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}
