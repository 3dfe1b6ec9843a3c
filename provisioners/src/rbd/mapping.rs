//! Options for mapping and unmapping, as classes of Ceph's own driver write them: `krbd:a,b=c;nbd:d`.

/// The mounters of Ceph's own driver that options may be for, and ours.
const OTHERS: [&str; 2] = ["nbd", "fuse"];

/// A part's mounter, in lower case, and its options. Without a mounter before them, options are the kernel's.
fn part(text: &str) -> Result<(String, &str), String> {
    let text = text.trim();
    let Some((word, own)) = text.split_once(':') else { return Ok(("krbd".into(), text)) };
    let word = word.trim().to_lowercase();
    match word.as_str() {
        "krbd" => Ok((word, own)),
        other if OTHERS.contains(&other) => Ok((word, own)),
        // A colon within an option's value.
        other if other.contains(['=', ',']) => Ok(("krbd".into(), text)),
        other => Err(format!("options for {other:?}: known before the colon: krbd")),
    }
}

/// Whether some of the options are for rbd-nbd, which is not used here.
pub(super) fn has_nbd(text: &str) -> bool {
    text.split(';').any(|text| part(text).is_ok_and(|(word, own)| word == "nbd" && !own.trim().is_empty()))
}

/// The options for the kernel's client. They become a part of one line for the kernel, in which the key stands, too, so
/// only what can be an option is let through.
pub(super) fn kernel_options(text: &str) -> Result<Vec<String>, String> {
    let mut options = Vec::new();
    for text in text.split(';') {
        let (word, own) = part(text)?;
        if word != "krbd" {
            continue;
        }
        for option in own.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let key = option.split('=').next().unwrap_or_default();
            if ["name", "secret", "key", "_pool_ns", "fsid", "ip"].contains(&key) {
                return Err(format!("{key:?} is set by the driver; remove it"));
            }
            let good = |c: char| c.is_ascii_alphanumeric() || "_-=.:/[]|".contains(c);
            if let Some(bad) = option.chars().find(|c| !good(*c)) {
                return Err(format!("{bad:?} cannot be in an option"));
            }
            options.push(option.to_owned());
        }
    }
    Ok(options)
}

/// The options for unmapping.
pub(super) fn unmap_options(text: &str) -> Result<Vec<String>, String> {
    let options = kernel_options(text)?;
    match options.iter().find(|option| *option != "force") {
        Some(other) => Err(format!("{other:?} is unknown; known: force")),
        None => Ok(options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_part_is_taken_and_another_mounters_is_known() {
        for (text, options, nbd) in [
            ("noshare,queue_depth=256", &["noshare", "queue_depth=256"][..], false),
            (
                "KRBD: lock_on_read,queue_depth=1024;nbd:try-netlink",
                &["lock_on_read", "queue_depth=1024"],
                true,
            ),
            ("nbd:try-netlink", &[], true),
            ("nbd:;krbd:", &[], false),
            (
                "read_from_replica=localize,crush_location=zone:z1|region:east",
                &["read_from_replica=localize", "crush_location=zone:z1|region:east"],
                false,
            ),
        ] {
            assert_eq!(kernel_options(text).unwrap(), options, "{text}");
            assert_eq!(has_nbd(text), nbd, "{text}");
        }
        for wrong in ["iscsi:a", "secret=x", "a b", "krbd:name=admin"] {
            assert!(kernel_options(wrong).is_err(), "{wrong}");
        }
        assert_eq!(unmap_options("krbd:force;nbd:force").unwrap(), ["force"]);
        assert!(unmap_options("krbd:full-force").is_err());
    }
}
