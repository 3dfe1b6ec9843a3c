//! What a handle names, apart from how it is spelled.

use std::fmt;

/// One volume, snapshot or group snapshot: two handles that a backend takes for the same thing have one identity, handles
/// of different things never do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(String);

impl Identity {
    /// By a text that only this thing has in its backend.
    pub fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Of each thing that is configured, the first that is the same: several names of one cluster, share or directory have
/// one. `same` need not be transitive: what is the same as one and as another makes these the same.
pub(crate) fn firsts<T>(all: &[T], same: impl Fn(&T, &T) -> bool) -> Vec<usize> {
    let mut firsts: Vec<usize> = (0..all.len()).collect();
    for i in 0..all.len() {
        for j in 0..i {
            if same(&all[i], &all[j]) {
                let (keep, other) = (firsts[i].min(firsts[j]), firsts[i].max(firsts[j]));
                firsts.iter_mut().filter(|first| **first == other).for_each(|first| *first = keep);
            }
        }
    }
    firsts
}

/// A host's name or address in one form.
pub(crate) fn host(text: &str) -> String {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => bare.trim_end_matches('.').to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_are_the_same_as_makes_them_the_same() {
        let near = |a: &i32, b: &i32| (a - b).abs() <= 1;
        assert_eq!(firsts(&[1, 3, 2, 9], near), [0, 0, 0, 3]);
        assert_eq!(firsts(&[5, 1, 2, 9, 8], near), [0, 1, 1, 3, 3]);
        assert!(firsts(&[], near).is_empty());
    }

    #[test]
    fn hosts_have_one_form() {
        for text in ["nas.example", "NAS.Example.", "nas.EXAMPLE"] {
            assert_eq!(host(text), "nas.example");
        }
        for text in ["::1", "[::1]", "[0:0:0:0:0:0:0:1]"] {
            assert_eq!(host(text), "::1");
        }
        assert_eq!(host("::ffff:10.0.0.5"), host("10.0.0.5"));
        assert_ne!(host("10.0.0.5"), host("10.0.0.6"));
    }
}
