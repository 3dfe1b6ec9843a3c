//! Mount options: which are the kernel's flags, which the file system's, which mount(8)'s alone, and which one the kernel
//! has refused.

use std::io::Read as _;

use provisioners::{Error, Result};
use rustix::mount::{FsOpenFlags, MountFlags};

/// The options that are flags of mount(2).
pub const FLAGS: [(&str, MountFlags); 12] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("lazytime", MountFlags::LAZYTIME),
    ("silent", MountFlags::SILENT),
];

/// Options that are the default, or the opposite of a flag, and so need nothing.
const DEFAULTS: [&str; 13] = [
    "rw",
    "defaults",
    "suid",
    "dev",
    "exec",
    "async",
    "atime",
    "diratime",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "loud",
    "nomand",
];

/// What mount(8) keeps for itself and systemd, and tells no kernel (mount(8), "FILESYSTEM-INDEPENDENT MOUNT OPTIONS").
const WORDS: [&str; 11] = [
    "_netdev", "auto", "group", "noauto", "nofail", "nogroup", "noowner", "nouser", "owner", "user", "users",
];

/// The same with a value, or as a family.
const FAMILIES: [&str; 6] = ["comment=", "helper=", "uhelper=", "x-", "X-", "user="];

/// What would make something else of the mount.
const OTHERS: [&str; 13] = [
    "bind",
    "rbind",
    "move",
    "remount",
    "loop",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// Options that people mean, for naming the nearest to one that is not known.
const KNOWN: [&str; 46] = [
    "acl",
    "actimeo",
    "allocsize",
    "barrier",
    "bsize",
    "commit",
    "compress",
    "data",
    "discard",
    "errors",
    "grpquota",
    "hard",
    "inode64",
    "largeio",
    "local_lock",
    "logbsize",
    "logbufs",
    "lookupcache",
    "minorversion",
    "nconnect",
    "nfsvers",
    "noac",
    "noacl",
    "nobarrier",
    "noctocl",
    "nocto",
    "nodiscard",
    "noquota",
    "noresvport",
    "norecovery",
    "nolock",
    "nosharecache",
    "nouuid",
    "port",
    "prjquota",
    "proto",
    "retrans",
    "rsize",
    "sec",
    "soft",
    "ssd",
    "timeo",
    "usrquota",
    "vers",
    "wsize",
    "noload",
];

/// Splits mount options into the kernel's flags and the file system's own data; what is mount(8)'s alone is left out. Those
/// that would turn the mount into something else are refused.
pub fn parse(options: &[String]) -> Result<(MountFlags, Vec<String>)> {
    let (mut flags, mut data) = (MountFlags::empty(), Vec::new());
    for option in options.iter().flat_map(|o| o.split(',')).map(str::trim).filter(|o| !o.is_empty()) {
        if OTHERS.contains(&option) {
            return Err(Error::invalid("mount_flags", format!("{option:?} is not for a volume; remove it")));
        }
        match FLAGS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= *flag,
            None if DEFAULTS.contains(&option) || is_of_mount8(option) => {}
            None => data.push(option.to_owned()),
        }
    }
    Ok((flags, data))
}

fn is_of_mount8(option: &str) -> bool {
    WORDS.contains(&option) || FAMILIES.iter().any(|family| option.starts_with(family))
}

/// Which of some options a file system does not take, with the kernel's own words. `None`: the kernel does not tell, or
/// takes each of them alone. A value may be secret, and is not shown.
pub fn refused(fs_type: &str, data: &[String]) -> Option<String> {
    let context = rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).ok()?;
    let bad = data.iter().find(|option| {
        let taken = match option.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(&context, key, value),
            None => rustix::mount::fsconfig_set_flag(&context, option.as_str()),
        };
        taken.is_err()
    })?;
    let key = bad.split('=').next().unwrap_or(bad);
    // Each read(2) is one line: its kind, a blank, the words.
    let mut line = [0; 512];
    let length = std::fs::File::from(context).read(&mut line).unwrap_or(0);
    let words = String::from_utf8_lossy(&line[..length]).trim().to_owned();
    let words = words.split_once(' ').map_or("the kernel does not take it", |(_, words)| words).to_owned();
    let nearest = KNOWN.iter().map(|known| (strsim::damerau_levenshtein(key, known), known)).min();
    let hint = match nearest {
        Some((distance, known)) if (1..=2).contains(&distance) => format!("; is {known:?} meant?"),
        _ => String::new(),
    };
    Some(format!("mount option {key:?}: {words}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(options: &[&str]) -> Result<(MountFlags, Vec<String>)> {
        parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_become_flags_and_data() {
        let (flags, data) = split(&["noatime,nodev", "rw", "errors=remount-ro", "discard"]).unwrap();
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::NODEV);
        assert_eq!(data, ["errors=remount-ro", "discard"]);
    }

    #[test]
    fn options_that_change_what_is_mounted_are_refused() {
        for bad in ["bind", "remount,ro", "move"] {
            assert_eq!(split(&[bad]).unwrap_err().label(), "invalid");
        }
    }

    #[test]
    fn words_of_mount8_are_left_out() {
        let words = [
            "_netdev,nofail",
            "noauto",
            "users",
            "comment=x",
            "x-systemd.automount",
            "X-mount.mkdir",
            "user=7",
        ];
        let (flags, data) = split(&[&words[..], &["norelatime", "defaults", " discard "]].concat()).unwrap();
        assert_eq!((flags, data), (MountFlags::empty(), vec!["discard".to_owned()]));
    }

    #[test]
    fn the_option_that_the_kernel_refuses_is_named() {
        let of = |data: &[&str]| refused("tmpfs", &data.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&["size=1m", "mode=755"]), None);
        let Some(told) = of(&["size=1m", "discrad"]) else {
            eprintln!("skip: this process may not make mount contexts");
            return;
        };
        assert!(told.contains("\"discrad\"") && told.contains("discard"), "{told}");
        let secret = of(&["sise=hunter2"]).unwrap();
        assert!(secret.contains("sise") && !secret.contains("hunter2"), "{secret}");
    }
}
