//! The NFS backend's part of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::Version;
use super::handle::ShareId;
use super::params::OnDelete;
use crate::identity::host;
use crate::{Error, Result};

/// The longest name of a share, in bytes.
const NAME_MAX: usize = 30;

/// The NFS backend's configuration.
#[derive(Debug, Clone)]
pub struct NfsConfig {
    /// The shares that volumes may be on.
    pub shares: Vec<NfsShare>,
    /// Whether a class may name a server and share that are not configured.
    pub any_share: bool,
    /// The cluster that owns the volumes, kept in every record. Volumes of another cluster are not deleted.
    pub owner: String,
    /// Bytes of a volume for which no size is asked.
    pub default_size: u64,
    /// What becomes of a deleted volume's directory where the class says nothing.
    pub on_delete: Option<OnDelete>,
    /// How long the server may take for one call.
    pub call_timeout: Duration,
    /// How many connections copy or remove one tree.
    pub tree_workers: usize,
    /// How long a deleted directory's removal waits for the next sweep when it was interrupted. What was half made is
    /// removed when nobody has worked on it for ten times as long.
    pub sweep: Duration,
    /// Where shares are noted that only classes name; `None`: on the configured shares alone.
    pub state: Option<PathBuf>,
    /// Ends the process, as far as a test is concerned.
    #[cfg(test)]
    pub(super) death: Option<super::tests::Death>,
}

impl Default for NfsConfig {
    fn default() -> Self {
        Self {
            shares: Vec::new(),
            any_share: false,
            owner: "default".into(),
            default_size: 1 << 30,
            on_delete: None,
            call_timeout: Duration::from_secs(10),
            tree_workers: 8,
            sweep: Duration::from_secs(30),
            state: None,
            #[cfg(test)]
            death: None,
        }
    }
}

/// One export of one server.
#[derive(Debug, Clone, Default)]
pub struct NfsShare {
    /// What handles call it: `[a-z0-9-]`, at most 30 characters.
    pub name: String,
    /// The server: a host name or address.
    pub server: String,
    /// The exported path, as the server's clients mount it.
    pub path: String,
    /// The version of the protocol; `None`: the first of 4.2, 4.1 and 3 that the server speaks.
    pub version: Option<Version>,
    /// NFS's port, where it is not the usual one.
    pub port: Option<u16>,
    /// The mount protocol's port (version 3), where the port mapper is not to be asked.
    pub mount_port: Option<u16>,
    /// The user and group that the controller's calls are made as.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Whether calls come from any port, not one below 1024 (`insecure` of exports(5)).
    pub any_port: bool,
    /// Mount options of every volume of this share, before the class's own.
    pub mount_options: Vec<String>,
    /// The share's content as a directory of this machine: nodes bind it instead of mounting the share.
    pub local: Option<PathBuf>,
    /// By what the controller gets at the share.
    pub client: NfsClient,
}

/// By what the controller gets at a share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NfsClient {
    /// The client in this program: no mount, no privilege.
    #[default]
    User,
    /// mount(2), in a helper process that can be killed: for servers that want Kerberos, say.
    Mount,
    /// The share's content on this machine ([`NfsShare::local`]).
    Local,
}

impl NfsConfig {
    /// For how long nothing happens to what was abandoned, before it is removed.
    pub(super) fn lease(&self) -> Duration {
        self.sweep * 10
    }

    /// How often what is being made is marked as alive.
    pub(super) fn beat(&self) -> Duration {
        (self.lease() / 20).clamp(Duration::from_millis(500), Duration::from_secs(5))
    }

    /// What a server and a path name: a configured share by its name, or by the one spelling.
    pub(super) fn share_at(&self, server: &str, path: &str) -> ShareId {
        let configured = self.shares.iter().find(|share| share.is_at(server, path));
        configured.map_or_else(
            || ShareId::Direct(plain_server(server), plain_path(path)),
            |share| ShareId::Named(share.name.clone()),
        )
    }

    /// Checks all fields: [`Error::Invalid`] names the first that is wrong.
    pub(super) fn validate(&self) -> Result<()> {
        if self.shares.is_empty() && !self.any_share {
            return Err(Error::invalid(
                "shares",
                "none given; name at least one, such as {name: main, server: 10.0.0.5, share: /srv/nfs}, or set anyShare: true",
            ));
        }
        for (i, share) in self.shares.iter().enumerate() {
            share.validate(i)?;
            if self.shares[..i].iter().any(|other| other.name == share.name) {
                return Err(Error::invalid(
                    format!("shares[{i}].name"),
                    format!("{:?} is given twice", share.name),
                ));
            }
            let same = |other: &&NfsShare| other.is_at(&share.server, &share.path);
            if let Some(other) = self.shares[..i].iter().find(same) {
                let problem = format!("{}:{} is share {:?} already", share.server, share.path, other.name);
                return Err(Error::invalid(format!("shares[{i}].share"), problem));
            }
        }
        if self.default_size == 0 || i64::try_from(self.default_size).is_err() {
            return Err(Error::invalid("defaultSize", "must be from 1 byte to 2^63-1 bytes"));
        }
        if self.tree_workers == 0 || self.tree_workers > 64 {
            return Err(Error::invalid("treeWorkers", "must be from 1 to 64"));
        }
        Ok(())
    }
}

impl NfsShare {
    /// Whether it is what a server and a path name, in whatever spelling.
    pub(super) fn is_at(&self, server: &str, path: &str) -> bool {
        plain_server(&self.server) == plain_server(server) && plain_path(&self.path) == plain_path(path)
    }

    /// The same in the one spelling that all have.
    pub(super) fn plain(self) -> Self {
        Self { server: plain_server(&self.server), path: plain_path(&self.path), ..self }
    }

    fn validate(&self, i: usize) -> Result<()> {
        let wrong = |key: &str, problem: &str| Err(Error::invalid(format!("shares[{i}].{key}"), problem));
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let named = (1..=NAME_MAX).contains(&self.name.len())
            && self.name.bytes().all(|b| plain(b) || b == b'-')
            && self.name.bytes().next().is_some_and(plain);
        if !named {
            return wrong("name", "is 1 to 30 characters of a-z, 0-9 and `-`, a letter or digit first");
        }
        check_server(&self.server).or_else(|problem| wrong("server", &problem))?;
        check_path(&self.path).or_else(|problem| wrong("share", &problem))?;
        if self.local.as_ref().is_some_and(|path| !path.is_absolute()) {
            return wrong("localPath", "must be an absolute path");
        }
        if self.local.is_none() && self.client == NfsClient::Local {
            return wrong("localPath", "is required for client: local");
        }
        Ok(())
    }
}

/// A server in the one form of all its spellings, with an IPv6 address in brackets.
pub(super) fn plain_server(server: &str) -> String {
    let host = host(server);
    if host.contains(':') { format!("[{host}]") } else { host }
}

/// A path without the slashes that say nothing.
pub(super) fn plain_path(path: &str) -> String {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

/// A host name or an address, and nothing that a handle or mount source could be confused by.
pub(super) fn check_server(server: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || ".-:[]_".contains(c);
    if server.is_empty() || server.len() > 253 || !server.chars().all(good) || server.starts_with('-') {
        return Err(format!("{server:?} is not a host name or address"));
    }
    Ok(())
}

/// An absolute path without `..` and control characters.
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let bad = |part: &str| part == ".." || part == "." || part.len() > 255;
    if !path.starts_with('/')
        || path.len() > 1024
        || path.split('/').any(bad)
        || path.chars().any(char::is_control)
    {
        return Err(format!("{path:?} is not an absolute path without `.` and `..`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_spellings_of_a_share_are_one() {
        for (server, plain) in [
            ("NAS.Example.org", "nas.example.org"),
            ("nas.example.org.", "nas.example.org"),
            ("10.0.0.5", "10.0.0.5"),
            ("FD00:0:0::5", "[fd00::5]"),
            ("[fd00::5]", "[fd00::5]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(plain_server(server), plain);
            assert!(check_server(plain).is_ok());
        }
        for (path, plain) in [
            ("/export", "/export"),
            ("/export/", "/export"),
            ("//export///Team//", "/export/Team"),
            ("//", "/"),
        ] {
            assert_eq!(plain_path(path), plain);
        }
        let share = |name: &str, server: &str, path: &str| NfsShare {
            name: name.into(),
            server: server.into(),
            path: path.into(),
            ..NfsShare::default()
        };
        let shares = vec![share("a", "fd00::5", "/export"), share("b", "[FD00::5]", "/export//")];
        let error = NfsConfig { shares, ..NfsConfig::default() }.validate().unwrap_err();
        assert!(error.to_string().contains("is share \"a\" already"), "{error}");
    }
}
