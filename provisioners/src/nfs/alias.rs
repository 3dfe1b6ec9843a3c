//! One share under several names: that of the configuration, and server and path in their spellings.

use super::config::{NfsConfig, NfsShare, plain_path};
use super::handle::{Handle, ShareId};
use crate::Identity;
use crate::identity::{firsts, host};

/// NFS's port (RFC 8881, 2.9.3).
const PORT: u16 = 2049;

/// The configured shares, each under one name.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    /// Each share's name and place, and the name of the first that is the same.
    shares: Vec<(String, Option<String>, String)>,
}

impl Aliases {
    pub(super) fn new(config: &NfsConfig) -> Self {
        let firsts = firsts(&config.shares, same);
        let shares = config.shares.iter().zip(firsts);
        let shares = shares.map(|(share, first)| {
            // By server and path alone the usual port is meant.
            let place = (port(share) == PORT).then(|| place(&share.server, &share.path));
            (share.name.clone(), place, config.shares[first].name.clone())
        });
        Self { shares: shares.collect() }
    }

    fn at(&self, server: &str, path: &str) -> Option<&(String, Option<String>, String)> {
        let place = place(server, path);
        self.shares.iter().find(|(_, has, _)| has.as_ref() == Some(&place))
    }

    /// The name of the configured share that a server and a path mean.
    pub(super) fn configured(&self, server: &str, path: &str) -> Option<&str> {
        self.at(server, path).map(|(name, ..)| name.as_str())
    }

    /// What a handle names; a text that is none names itself.
    pub(super) fn identity(&self, text: &str) -> Identity {
        let Some(handle) = Handle::parse(text) else { return Identity::new(text) };
        let known = match &handle.share {
            ShareId::Named(name) => self.shares.iter().find(|(has, _, _)| has == name),
            ShareId::Direct(server, path) => self.at(server, path),
        };
        match (known, &handle.share) {
            (Some((_, _, first)), _) => Identity::new(format_args!("{first}:{}", handle.key)),
            (None, ShareId::Direct(server, path)) => {
                Identity::new(format_args!("{}#{}", place(server, path), handle.key))
            }
            (None, ShareId::Named(_)) => Identity::new(text),
        }
    }
}

fn same(a: &NfsShare, b: &NfsShare) -> bool {
    let of = |share: &NfsShare| (place(&share.server, &share.path), port(share));
    of(a) == of(b) || a.local.is_some() && a.local == b.local
}

fn port(share: &NfsShare) -> u16 {
    share.port.unwrap_or(PORT)
}

/// Server and path in one form.
fn place(server: &str, path: &str) -> String {
    format!("{}#{}", host(server), plain_path(path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(name: &str, server: &str, path: &str) -> NfsShare {
        NfsShare { name: name.into(), server: server.into(), path: path.into(), ..NfsShare::default() }
    }

    fn aliases(shares: Vec<NfsShare>) -> Aliases {
        Aliases::new(&NfsConfig { shares, any_share: true, ..NfsConfig::default() })
    }

    /// A share's server and path in another spelling.
    fn spelled(server: &str, path: &str, how: u8) -> String {
        let server = if how & 1 == 0 { server.to_owned() } else { server.to_uppercase() };
        let server = if how & 2 == 0 { server } else { format!("{server}.") };
        let path = if how & 4 == 0 { path.to_owned() } else { path.replace('/', "//") };
        let path = if how & 8 == 0 { path } else { format!("{path}/") };
        format!("{server}#{path}")
    }

    proptest! {
        #[test]
        fn c12_all_spellings_of_one_handle_are_one_identity(
            how in 0u8..16,
            other in 0u8..16,
            key in "[a-z][a-z0-9-]{0,20}",
            at in 0usize..4,
            against in 0usize..4,
        ) {
            let places = [("nas.example", "/srv"), ("nas.example", "/srv/team"), ("nas2.example", "/srv"), ("free.example", "/x")];
            let known = aliases(vec![share("a", "nas.example", "/srv/"), share("b", "NAS.example", "/srv/team"), share("c", "nas2.example", "/srv")]);
            let of = |at: usize, how: u8| known.identity(&format!("{}#{key}", spelled(places[at].0, places[at].1, how)));
            prop_assert_eq!(of(at, how), of(at, other));
            prop_assert_eq!(of(at, how) == of(against, other), at == against);
            if at < 3 {
                let named = known.identity(&format!("{}:{key}", ["a", "b", "c"][at]));
                prop_assert_eq!(named, of(at, how));
            }
            prop_assert_ne!(known.identity(&format!("a:{key}x")), of(0, how));
        }
    }

    #[test]
    fn shares_are_the_same_where_the_configuration_says_so() {
        let local =
            |name: &str, server: &str| NfsShare { local: Some("/srv".into()), ..share(name, server, "/srv") };
        let known = aliases(vec![
            local("a", "one"),
            local("b", "two"),
            NfsShare { port: Some(12049), ..share("c", "one", "/srv") },
        ]);
        let of = |text: &str| known.identity(text);
        assert_eq!(of("a:k"), of("b:k"));
        assert_eq!(of("two#/srv#k"), of("a:k"));
        assert_ne!(of("c:k"), of("a:k"), "another server of the machine");
        assert_eq!(of("[::1]#/e#k"), of("::1#/e/#k"));
        assert_eq!(of("gone:k").as_str(), "gone:k");
    }
}
