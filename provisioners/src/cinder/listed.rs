//! A list of Cinder's, entry by entry.

use serde_json::Value;

use super::answer::Thing;
use crate::{Error, Result};

/// A list, with what could not be read of it: that harms no other entry.
pub(super) struct Listed<T> {
    pub(super) good: Vec<T>,
    /// Id and error.
    pub(super) damaged: Vec<(String, Error)>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { good: Vec::new(), damaged: Vec::new() }
    }
}

impl<T: Thing> Listed<T> {
    pub(super) fn add(&mut self, entry: Value) {
        let id = entry["id"].as_str().unwrap_or_default().to_owned();
        match serde_json::from_value::<T>(entry) {
            Ok(thing) if !id.is_empty() => self.good.push(thing),
            other => {
                let problem =
                    other.err().map_or_else(|| "it has no id".to_owned(), |error| error.to_string());
                let what = format!("{} {id:?} in Cinder's list", T::ONE);
                self.damaged.push((id, Error::Corrupt { what, problem }));
            }
        }
    }

    /// The entries where one that cannot be read is just not shown; it is logged.
    pub(super) fn readable(self) -> Vec<T> {
        for (_, error) in &self.damaged {
            tracing::warn!(%error, "an entry was passed over");
        }
        self.good
    }

    /// The entries where each matters: one that cannot be read is an error.
    pub(super) fn whole(self) -> Result<Vec<T>> {
        match self.damaged.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(self.good),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::answer::CinderVolume;
    use super::*;

    #[test]
    fn b11_a_damaged_entry_harms_no_other() {
        let mut listed = Listed::<CinderVolume>::default();
        for entry in [json!({"id": "a"}), json!({"id": "b", "size": "large"}), json!({}), json!({"id": "c"})]
        {
            listed.add(entry);
        }
        let damaged: Vec<_> = listed.damaged.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(damaged, ["b", ""]);
        assert_eq!(listed.readable().iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        let mut listed = Listed::<CinderVolume>::default();
        listed.add(json!({"id": "b", "size": "large"}));
        let error = listed.whole().unwrap_err();
        assert!(error.label() == "corrupt" && error.to_string().contains("\"b\""), "{error}");
    }
}
