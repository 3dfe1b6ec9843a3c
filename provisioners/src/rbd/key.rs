//! Users and their keys: where they come from, and what a key's text says of itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::config::RbdCluster;
use super::ffi::Key;
use crate::{Error, Result, Secrets};

/// What encrypts with a key: the first two bytes of its binary form (`CryptoKey::encode` of Ceph).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cipher {
    /// 128 bits, of every version: 40 characters that begin with `AQ`.
    Aes,
    /// 256 bits, what Ceph 20 makes by itself: 60 characters that begin with `Ag`.
    Aes256k,
}

/// What to say where a key of type `aes256k` was not taken.
pub const AES256K: &str = "its key is of type aes256k, which needs librados and librbd of Ceph 20, and on nodes with krbd a kernel 7.0 or later; or have the cluster allow the older type too (`ceph mon set auth_allowed_ciphers aes,aes256k`) and make a user with `--key_type aes`";

/// User and key: of the secrets, else of the configuration. `None`: neither has any.
pub(super) fn credentials(cluster: &RbdCluster, secrets: &Secrets) -> Result<Option<(String, Option<Key>)>> {
    match (secrets.get("userID"), secrets.get("userKey")) {
        (Some(user), Some(key)) => {
            let user = user_name(user);
            let key = checked("secrets[\"userKey\"]", &user, key)?;
            return Ok(Some((user, Some(key))));
        }
        (None, None) => {}
        (None, _) => return Err(Error::invalid("secrets[\"userID\"]", "is missing; userKey is there")),
        (_, None) => return Err(Error::invalid("secrets[\"userKey\"]", "is missing; userID is there")),
    }
    let Some(user) = cluster.user.as_deref().map(user_name) else {
        // A ceph.conf alone says all: the administrator's own way.
        return Ok(cluster.conf.as_ref().map(|_| ("admin".into(), None)));
    };
    let Some(file) = &cluster.key_file else { return Ok(Some((user, None))) };
    let text = std::fs::read_to_string(file)
        .map_err(|e| Error::io(format!("reading keyFile {}", file.display()), e))?;
    let key = checked(&format!("keyFile {}", file.display()), &user, &text)?;
    Ok(Some((user, Some(key))))
}

/// The user without `client.`, which some secrets have.
fn user_name(text: &str) -> String {
    text.trim().trim_start_matches("client.").to_owned()
}

/// A user's key in a text, if it is one at all.
fn checked(field: &str, user: &str, text: &str) -> Result<Key> {
    let key = key_in(text, user).map_err(|problem| Error::invalid(field, problem))?;
    cipher(&key).map_err(|problem| Error::invalid(field, problem))?;
    Ok(Key(key))
}

/// A user's key in a text that has it alone, or in a keyring. The problem never shows the text.
pub(super) fn key_in(text: &str, user: &str) -> Result<String, String> {
    let own = format!("client.{user}");
    let (mut section, mut keys) = (None, Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = Some(name.trim());
        } else if let Some(key) = line.strip_prefix("key").and_then(|rest| rest.trim().strip_prefix('=')) {
            keys.push((section, key.trim()));
        }
    }
    let key = match keys.as_slice() {
        [] if section.is_none() => text.trim(),
        [(None, key)] => key,
        all => match all.iter().find(|(section, _)| *section == Some(own.as_str())) {
            Some((_, key)) => key,
            None => {
                let others: Vec<_> = all.iter().filter_map(|(section, _)| *section).collect();
                return Err(format!("has no key of {own}; it has those of: {}", others.join(", ")));
            }
        },
    };
    match key {
        "" => Err(format!("holds no key of {own}")),
        key if key.contains(char::is_whitespace) => Err("is neither a key alone nor a keyring".into()),
        key => Ok(key.to_owned()),
    }
}

/// The type of a key; the problem says what else it is, without showing it.
pub(super) fn cipher(key: &str) -> Result<Cipher, String> {
    let form =
        "a key of Ceph begins with AQ (type aes) or Ag (aes256k) and is what `ceph auth get-key` prints";
    let bytes =
        STANDARD.decode(key).map_err(|_| format!("is no key of Ceph: it is not in base64; {form}"))?;
    if let Ok(inner) = std::str::from_utf8(&bytes)
        && cipher(inner.trim()).is_ok()
    {
        return Err("was encoded in base64 twice: a Secret's `data` takes it encoded once more, `stringData` as it is".into());
    }
    // The type, the time of its making (seconds, nanoseconds) and the length of what follows.
    let Some((head, secret)) = bytes.split_at_checked(12) else {
        return Err(format!("is no key of Ceph: it is too short; {form}"));
    };
    if usize::from(u16::from_le_bytes([head[10], head[11]])) != secret.len() {
        return Err(format!("is no key of Ceph: it was cut short, or is something else; {form}"));
    }
    match u16::from_le_bytes([head[0], head[1]]) {
        1 => Ok(Cipher::Aes),
        2 => Ok(Cipher::Aes256k),
        other => Err(format!("is a key of type {other}, which is not known; {form}")),
    }
}

/// Whether a key is of a type that older libraries and kernels cannot use.
#[must_use]
pub fn is_aes256k(key: &str) -> bool {
    cipher(key) == Ok(Cipher::Aes256k)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key of a type, with a secret of so many bytes.
    fn made(kind: u8, length: u8) -> String {
        let head = [kind, 0, 1, 2, 3, 4, 5, 6, 7, 8, length, 0];
        STANDARD.encode([&head[..], &vec![9; length.into()]].concat())
    }

    #[test]
    fn the_type_of_a_key_is_told() {
        let (aes, aes256k) = (made(1, 16), made(2, 32));
        assert_eq!((aes.len(), &aes[..2]), (40, "AQ"));
        assert_eq!((aes256k.len(), &aes256k[..2]), (60, "Ag"));
        assert_eq!(cipher(&aes), Ok(Cipher::Aes));
        assert!(is_aes256k(&aes256k) && !is_aes256k(&aes) && !is_aes256k("no key"));
    }

    #[test]
    fn what_is_no_key_is_told_without_showing_it() {
        let good = made(1, 16);
        let bad = [
            (STANDARD.encode(&good), "twice"),
            (STANDARD.encode(format!("{good}\n")), "twice"),
            ("pass word".replace(' ', "-"), "not in base64"),
            (STANDARD.encode("a password"), "too short"),
            (STANDARD.encode("a password that is longer"), "cut short"),
            (good[..36].to_owned(), "cut short"),
            (made(7, 16), "type 7"),
        ];
        for (text, word) in bad {
            let problem = cipher(&text).expect_err(word);
            assert!(problem.contains(word) && !problem.contains(&text), "{word}: {problem}");
        }
    }

    #[test]
    fn a_key_is_found_alone_and_in_a_keyring() {
        assert_eq!(key_in("AQ==\n", "admin"), Ok("AQ==".into()));
        assert_eq!(key_in("key = AQ==\n", "admin"), Ok("AQ==".into()));
        let several = "[client.admin]\n\tkey = AQ==\n\tcaps mon = \"x\"\n[client.csi]\nkey=Ag==\n";
        assert_eq!(key_in(several, "admin"), Ok("AQ==".into()));
        assert_eq!(key_in(several, "csi"), Ok("Ag==".into()));
        let problem = key_in(several, "other").expect_err("no such section");
        assert!(
            problem.contains("client.other") && problem.contains("client.admin, client.csi"),
            "{problem}"
        );
        assert!(key_in("two words", "csi").is_err() && key_in("", "csi").is_err());
        assert!(key_in("[client.csi]\n", "csi").is_err());
    }

    #[test]
    fn credentials_name_the_field_that_is_wrong() {
        let cluster = RbdCluster::default();
        let of = |user: &str, key: &str| {
            let map = [("userID", user), ("userKey", key)].map(|(k, v)| (k.to_owned(), v.to_owned()));
            credentials(&cluster, &Secrets::new(map.into()))
        };
        let good = made(1, 16);
        let section = format!("[client.csi]\n\tkey = {good}\n");
        for text in [&good, &format!(" {good}\n"), &section] {
            let (user, key) = of("client.csi", text).expect("good").expect("some");
            assert_eq!((user.as_str(), key), ("csi", Some(Key(good.clone()))));
        }
        let problem = of("csi", &STANDARD.encode(&good)).expect_err("twice").to_string();
        assert!(problem.contains("userKey") && !problem.contains("monitors"), "{problem}");
    }
}
