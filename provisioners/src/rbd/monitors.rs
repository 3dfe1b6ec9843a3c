//! Monitors by name: librados takes none of them when one name has no address.

use std::net::{IpAddr, ToSocketAddrs as _};

use super::config::address;
use crate::{Error, Result};

/// Those of some monitors that are addresses, or names that have one now. If none is left: [`Error::Unavailable`], for names
/// may have addresses again. `has_address` is asked for names.
pub(super) fn usable(monitors: &str, has_address: impl Fn(&str) -> bool) -> Result<String> {
    let is_good = |monitor: &&str| name_of(monitor).is_none_or(|name| has_address(&name));
    let (good, bad): (Vec<&str>, Vec<&str>) = split(monitors).into_iter().partition(is_good);
    if !bad.is_empty() {
        let problem = format!("monitors: {} cannot be resolved now", bad.join(", "));
        if good.is_empty() {
            return Err(Error::Unavailable(format!(
                "{problem}; check the names and the DNS of this machine"
            )));
        }
        tracing::warn!("{problem}; going on with {}", good.join(", "));
    }
    Ok(good.join(","))
}

/// Whether a name has an address now.
pub(super) fn resolves(name: &str) -> bool {
    (name, 0).to_socket_addrs().is_ok_and(|mut addresses| addresses.next().is_some())
}

/// The monitors of a `mon_host`: separated by commas, semicolons and blanks, but for those within brackets.
fn split(monitors: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    let ends = |c: char| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        depth == 0 && matches!(c, ',' | ';' | ' ' | '\t')
    };
    monitors.split(ends).filter(|monitor| !monitor.is_empty()).collect()
}

/// The host's name of a monitor that is none of an address, and no vector of addresses.
fn name_of(monitor: &str) -> Option<String> {
    let (host, _) = address(monitor).into_iter().next().filter(|_| !monitor.starts_with('['))?;
    (host.parse::<IpAddr>().is_err() && !host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_an_address_are_passed_over() {
        let known = |name: &str| name == "good";
        for (monitors, usable_ones) in [
            ("10.0.0.1:6789,bad:6789,good", "10.0.0.1:6789,good"),
            ("bad;good:6789/0", "good:6789/0"),
            ("[v2:10.0.0.1:3300,v1:10.0.0.1:6789],bad", "[v2:10.0.0.1:3300,v1:10.0.0.1:6789]"),
            ("[2001:db8::1]:6789 2001:db8::2", "[2001:db8::1]:6789,2001:db8::2"),
            ("v1:10.0.0.1:6789/0,v2:bad:3300", "v1:10.0.0.1:6789/0"),
            ("10.0.0.1/0", "10.0.0.1/0"),
            ("", ""),
        ] {
            assert_eq!(usable(monitors, known).expect(monitors), usable_ones);
        }
        let problem = usable("bad:6789,worse", known).expect_err("none is left");
        assert!(
            matches!(&problem, Error::Unavailable(text) if text.contains("bad:6789, worse")),
            "{problem}"
        );
    }
}
