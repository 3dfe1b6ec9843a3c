//! The tables of docs/migration.md.

use std::collections::BTreeSet;

/// What a row says of a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    Taken,
    NoChange,
    Ignored,
    Refused,
    Sidecar,
    Configured,
    Becomes(String),
}

impl Fate {
    fn read(text: &str) -> Self {
        match text {
            "taken" => Self::Taken,
            "no change" => Self::NoChange,
            "ignored" => Self::Ignored,
            "refused" => Self::Refused,
            "sidecar" => Self::Sidecar,
            "configured" => Self::Configured,
            other => {
                let place =
                    other.strip_prefix("becomes ").unwrap_or_else(|| panic!("{other:?} is no known word"));
                Self::Becomes(place.trim_matches('`').to_owned())
            }
        }
    }
}

struct Row {
    driver: String,
    kind: String,
    /// A key, a key with a value (`key: value`), or the beginning of keys (`key*`).
    key: String,
    fate: Fate,
}

impl Row {
    /// How well it fits: a value is nearer than a key, a key than a beginning.
    fn fits(&self, key: &str, value: &str) -> Option<u8> {
        if let Some((own, of)) = self.key.split_once(": ") {
            return (own.eq_ignore_ascii_case(key) && of.eq_ignore_ascii_case(value)).then_some(3);
        }
        match self.key.strip_suffix('*') {
            Some(start) => key.starts_with(start).then_some(1),
            None => self.key.eq_ignore_ascii_case(key).then_some(2),
        }
    }
}

pub(super) struct Table {
    rows: Vec<Row>,
    used: BTreeSet<usize>,
}

impl Table {
    /// Every row below a heading of a driver and one of a kind of object.
    pub(super) fn read(text: &str) -> Self {
        let (mut driver, mut kind, mut rows) = (String::new(), String::new(), Vec::new());
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("## ") {
                driver = title.trim_matches('`').to_owned();
                kind.clear();
            } else if let Some(title) = line.strip_prefix("### ") {
                kind = title.to_owned();
            } else if let Some(row) = line.strip_prefix("| `").filter(|_| !kind.is_empty()) {
                let cells: Vec<&str> = row.split(" | ").collect();
                for key in cells[0].split(", ") {
                    let (driver, kind, key) =
                        (driver.clone(), kind.clone(), key.trim_matches('`').to_owned());
                    rows.push(Row { driver, kind, key, fate: Fate::read(cells[1]) });
                }
            }
        }
        assert!(rows.len() > 100, "only {} rows", rows.len());
        Self { rows, used: BTreeSet::new() }
    }

    /// What is said of a parameter.
    pub(super) fn fate(&mut self, driver: &str, kind: &str, key: &str, value: &str) -> Fate {
        let of_object =
            self.rows.iter().enumerate().filter(|(_, row)| row.driver == driver && row.kind == kind);
        let found = of_object.filter_map(|(i, row)| Some((row.fits(key, value)?, i))).max();
        let (_, at) = found.unwrap_or_else(|| panic!("{driver} {kind}: no row for {key}: {value}"));
        self.used.insert(at);
        self.rows[at].fate.clone()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.rows.iter().any(|row| row.key.split(": ").next() == Some(key))
    }

    /// Rows that nobody has asked for.
    pub(super) fn unused(&self) -> Vec<String> {
        let rows = self.rows.iter().enumerate().filter(|(i, _)| !self.used.contains(i));
        rows.map(|(_, row)| format!("{} {} {}", row.driver, row.kind, row.key)).collect()
    }
}
