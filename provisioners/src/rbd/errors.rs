//! What an errno of Ceph means for a volume, and what to do about it.

use super::ffi::{CommandError, Errno, Key, Settings};
use super::key::{AES256K, is_aes256k};
use crate::Error;

/// The error for a call that failed: `doing` says what, with the image's name; `user` and `place` say as whom and where.
pub(super) fn failed(doing: &str, errno: Errno, user: &str, place: &str) -> Error {
    let words = std::io::Error::from(errno);
    match errno {
        Errno::PERM | Errno::ACCESS => Error::Denied(format!(
            "{doing}: {words}: client.{user} may not; it needs: ceph auth caps client.{user} mon 'profile rbd' mgr 'profile rbd' osd 'profile rbd pool={place}' (and its pools for dataPool); what was changed there counts a moment later, repeat the call"
        )),
        Errno::NOENT => Error::NotFound(format!("{doing}: {words}")),
        Errno::EXIST => Error::AlreadyExists(format!("{doing}: {words}")),
        Errno::NOSPC | Errno::DQUOT => Error::Exhausted(format!(
            "{doing}: {words}: the pool is full or over its quota; see `ceph df` and `ceph osd pool get-quota`"
        )),
        Errno::TIMEDOUT => Error::Unavailable(format!(
            "{doing}: the cluster did not answer in time; see `ceph -s`, and repeat the call"
        )),
        Errno::SHUTDOWN | Errno::NOTCONN => Error::Unavailable(format!(
            "{doing}: the cluster has fenced this client (`ceph osd blocklist ls`); a new connection is made, repeat the call"
        )),
        Errno::BUSY => Error::Refused(format!("{doing}: {words}")),
        Errno::ROFS => Error::Refused(format!(
            "{doing}: {words}: another client holds the image's lock; see `volumectl lock ls`"
        )),
        _ => Error::io(doing.to_owned(), std::io::Error::from(errno)),
    }
}

/// The error for a connection that was not made.
pub(super) fn not_connected(cluster: &str, settings: &Settings, errno: Errno) -> Error {
    let (words, user) = (std::io::Error::from(errno), &settings.user);
    let monitors = match &settings.conf {
        Some(conf) if settings.monitors.is_empty() => conf.display().to_string(),
        _ => settings.monitors.clone(),
    };
    let doing = format!("connecting to cluster {cluster} ({monitors}) as client.{user}");
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::KEYREJECTED => Error::Denied(format!(
            "{doing}: {words}: the cluster does not know that user, or the key is another; compare userKey with `ceph auth get-key client.{user}`"
        )),
        Errno::NOENT => Error::Denied(format!(
            "{doing}: no key was found for that user (or cephConf is not there); give userKey in the secrets, or keyFile"
        )),
        Errno::TIMEDOUT => {
            Error::Unavailable(format!("{doing}: no monitor answered; check the addresses and the network"))
        }
        _ if settings.key.as_ref().is_some_and(|Key(key)| is_aes256k(key)) => {
            Error::Refused(format!("{doing}: {words}: {AES256K}"))
        }
        Errno::INVAL => {
            Error::invalid("monitors", format!("{doing}: {words}; check the monitors' addresses"))
        }
        _ => Error::Unavailable(format!("{doing}: {words}")),
    }
}

/// The error for a monitor command that failed.
pub(super) fn command_failed(command: &str, error: &CommandError, user: &str) -> Error {
    let said = if error.text.is_empty() { String::new() } else { format!(": {}", error.text.trim()) };
    match error.errno {
        Errno::ACCESS | Errno::PERM => Error::Denied(format!(
            "`ceph {command}`{said}: client.{user} may not; it needs mon 'profile rbd' (or mon 'allow r' for asking, 'allow command \"osd blocklist\"' for fencing)"
        )),
        Errno::TIMEDOUT => {
            Error::Unavailable(format!("`ceph {command}`: no monitor answered in time; see `ceph -s`"))
        }
        errno => Error::io(format!("`ceph {command}`{said}"), std::io::Error::from(errno)),
    }
}

/// What to say when Ceph's libraries are not here.
pub(super) fn no_libraries(problem: &str) -> Error {
    Error::Unsupported(format!(
        "the rbd backend needs Ceph's client libraries, which are not here ({problem}); install librbd1 (Debian: apt-get install librbd1)"
    ))
}
