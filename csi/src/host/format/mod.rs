//! When a file system is made, and how. Never over anything that may be data: the permission is read from the device, now,
//! while nobody else has it. What a record says can only refuse.

mod hold;
mod mkfs;
mod prepare;
mod stamp;

use provisioners::{Error, NodeVolume, Result};

pub use self::mkfs::{Maker, Mkfs, Wish};
pub use self::prepare::{Job, Ready, prepare};
pub use self::stamp::{STAMP_BYTES, Stamp};
use super::digest;
use super::probe::Content;
use super::signatures::Class;

/// The file systems that volumes can have.
pub const SUPPORTED: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// The file system that a volume should have: the capability's, else the StorageClass's, else ext4.
pub fn desired<'a>(capability: &'a str, class: Option<&'a str>) -> Result<&'a str> {
    let fs = if capability.is_empty() { class.unwrap_or("ext4") } else { capability };
    if SUPPORTED.contains(&fs) {
        return Ok(fs);
    }
    let problem = format!("{fs:?} is not offered; choose one of {}", SUPPORTED.join(", "));
    Err(Error::invalid("volume_capability.mount.fs_type", problem))
}

/// What is to be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// It has the file system.
    Mount,
    /// It has the file system, and the record does not know: note it.
    Accept,
    /// It has provably nothing, or what an operator has given up by name.
    Format {
        /// An operator has given up what is there.
        over: bool,
    },
}

/// What a stage asks of a device.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The volume's handle.
    pub id: &'a str,
    /// Which file system it should have.
    pub fs: &'a str,
    /// Nothing may be written.
    pub read_only: bool,
}

/// The rule. What is there and is not the wanted file system is a refusal that says what was seen and how an operator
/// gives it up; a device that was formatted once, or used as a raw block device, is not formatted because it reads blank.
pub fn plan(content: &Content, volume: &NodeVolume, asked: Asked<'_>) -> Result<Plan> {
    let Asked { id, fs, read_only } = asked;
    match content {
        Content::Known { name, .. } if *name == fs => {
            return Ok(if volume.formatted.is_some() { Plan::Mount } else { Plan::Accept });
        }
        // Inside a file system that we made, another's signature is what somebody keeps in a file.
        Content::Known { inside: Some(own), .. } if *own == fs && volume.formatted.as_deref() == Some(fs) => {
            return Ok(Plan::Mount);
        }
        Content::Known { class, .. } => {
            let file_system = *class == Class::FileSystem;
            let hint = if file_system { "; set fsType to it, or use another volume" } else { "" };
            let seen = content.describe();
            return Err(Error::Refused(format!(
                "volume {id} holds {seen}, {fs} was asked for; not formatting{hint}"
            )));
        }
        _ if read_only => {
            return Err(Error::Refused(format!(
                "volume {id} holds {} and was asked for read-only; there is no {fs} to mount",
                content.describe()
            )));
        }
        _ => {}
    }
    let Some((problem, lasting)) = obstacle(content, volume, id) else {
        return Ok(Plan::Format { over: false });
    };
    if lasting {
        return Err(Error::Refused(format!(
            "volume {id} {problem}; not formatting it again. Restore it from a snapshot, or delete it"
        )));
    }
    let code = code(id, &problem);
    if volume.permit.code.as_deref() == Some(code.as_str()) {
        tracing::warn!(volume = id, %problem, "formatting by an operator's permission");
        return Ok(Plan::Format { over: true });
    }
    let how = volume.permit.how.replace("CODE", &code);
    Err(Error::Refused(format!(
        "volume {id} {problem}; not formatting what may hold data. If it is worth nothing, delete the volume, or give up what is there: {how}"
    )))
}

/// What keeps a device without a file system from being formatted, and whether no permission helps.
fn obstacle(content: &Content, volume: &NodeVolume, id: &str) -> Option<(String, bool)> {
    let seen = content.describe();
    match content {
        Content::Blank | Content::Stamped(_) if volume.raw => {
            Some((format!("was used as a raw block device before and holds {seen} now"), true))
        }
        Content::Blank | Content::Stamped(_) if volume.formatted.is_some() => {
            let before = volume.formatted.as_deref().unwrap_or_default();
            Some((format!("was formatted with {before} before and holds {seen} now"), false))
        }
        Content::Blank => None,
        Content::Stamped(stamp) if stamp.is_of(id) => None,
        Content::Stamped(_) => {
            Some((format!("holds {seen} on another volume, of which it is a copy"), false))
        }
        _ => Some((format!("holds {seen}"), false)),
    }
}

/// What an operator says to give up exactly what was seen: it is good for nothing else.
fn code(id: &str, problem: &str) -> String {
    digest(format!("{id}\n{problem}"), 6)
}

#[cfg(test)]
mod adversary;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod sequences;
#[cfg(test)]
mod tests;
