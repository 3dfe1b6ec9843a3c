//! When a file system is made, and how. Never over anything that may be data.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::Path;

use provisioners::{Ctx, Error, NodeVolume, Result};

use super::probe::{Content, probe};
use super::runner::Tools;
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
    /// It has provably nothing, or only what a format of ours left unfinished.
    Format {
        /// Whether mkfs may find something there.
        force: bool,
    },
}

/// The rule. What is there and is not the wanted file system is a refusal that says what was seen; a device that was
/// formatted once is never formatted again; a format that was begun and never completed has had no user, so it is
/// begun again.
pub fn plan(content: &Content, fs: &str, volume: &NodeVolume, read_only: bool, id: &str) -> Result<Plan> {
    let interrupted = volume.formatting && volume.formatted.is_none();
    match content {
        Content::Known { name, .. } if *name == fs && interrupted && read_only => Err(unfinished(id, fs)),
        Content::Known { name, .. } if *name == fs && interrupted => Ok(Plan::Format { force: true }),
        Content::Known { name, .. } if *name == fs => {
            Ok(if volume.formatted.is_some() { Plan::Mount } else { Plan::Accept })
        }
        // Inside a file system that we made, another's signature is what somebody keeps in a file.
        Content::Known { inside: Some(own), .. } if *own == fs && volume.formatted.as_deref() == Some(fs) => {
            Ok(Plan::Mount)
        }
        Content::Known { class, .. } => {
            let hint =
                if *class == Class::FileSystem { "; set fsType to it, or use another volume" } else { "" };
            Err(Error::Refused(format!(
                "volume {id} holds {}, {fs} was asked for; not formatting{hint}",
                content.describe()
            )))
        }
        Content::Unknown { .. } if interrupted && read_only => Err(unfinished(id, fs)),
        Content::Unknown { .. } if interrupted => Ok(Plan::Format { force: true }),
        Content::Unknown { .. } => Err(Error::Refused(format!(
            "volume {id} holds {}; not formatting what may hold data. If it is worth nothing, delete the volume",
            content.describe()
        ))),
        Content::Blank => blank(fs, volume, read_only, id, interrupted),
    }
}

fn unfinished(id: &str, fs: &str) -> Error {
    Error::Refused(format!(
        "volume {id}: making its {fs} was interrupted, and a read-only stage does not make it again; stage it \
         read-write once"
    ))
}

fn blank(fs: &str, volume: &NodeVolume, read_only: bool, id: &str, interrupted: bool) -> Result<Plan> {
    if let Some(before) = &volume.formatted {
        return Err(Error::Refused(format!(
            "volume {id} was formatted with {before} before and reads blank now; not formatting it again. Restore it \
             from a snapshot, or delete it"
        )));
    }
    if read_only {
        return Err(Error::Refused(format!(
            "volume {id} is blank and asked for read-only; nothing to mount as {fs}"
        )));
    }
    Ok(Plan::Format { force: interrupted })
}

/// What mkfs is to make.
pub struct Wish<'a> {
    /// Where.
    pub device: &'a Path,
    /// Which file system.
    pub fs: &'a str,
    /// The StorageClass's `mkfsOptions`.
    pub options: &'a [String],
}

/// Makes the file system, has it written to the device and looks that it is there. Whether it may is [`plan`]'s to
/// say. An option with a path, and one with which mkfs makes something else or nothing, is [`Error::Invalid`].
pub fn mkfs(tools: &Tools, ctx: &Ctx, wish: &Wish<'_>, force: bool) -> Result<()> {
    let (program, defaults): (_, &[&str]) = match wish.fs {
        // No discard: the device is blank. Tables are initialised later, by the kernel.
        "ext4" => ("mkfs.ext4", &["-F", "-q", "-m0", "-Enodiscard,lazy_itable_init=1,lazy_journal_init=1"]),
        "xfs" => ("mkfs.xfs", &["-q", "-K"]),
        "btrfs" => ("mkfs.btrfs", &["-q", "-K"]),
        other => return Err(Error::Internal(format!("no mkfs for {other}"))),
    };
    // A path anywhere: `/dev/x` and `dev/x` are devices to mkfs.btrfs, `logdev=/dev/x` and `device=/dev/x` to others,
    // and mkfs overwrites them.
    if let Some(bad) = wish.options.iter().find(|o| o.contains(['/', '\0'])) {
        let problem = format!("{bad:?} is no option for {program}; paths are not allowed");
        return Err(Error::invalid("parameters[\"mkfsOptions\"]", problem));
    }
    let mut args: Vec<&OsStr> = defaults.iter().map(OsStr::new).collect();
    if force && wish.fs != "ext4" {
        args.push("-f".as_ref());
    }
    args.extend(wish.options.iter().map(OsStr::new));
    args.push(wish.device.as_os_str());
    let output = tools.run(ctx, program, &args)?;
    if output.code != Some(0) {
        // mkfs.xfs says what is wrong first, and its whole usage after it.
        let first = output.stderr.trim().lines().next().unwrap_or_default();
        let end = output.failure(program);
        let text = if end.contains(first) { end } else { format!("{end} (it began with: {first})") };
        return Err(Error::Internal(text));
    }
    written(wish, program)
}

/// The new file system is on the device, and is the one asked for. Options such as `-n` make mkfs succeed and write
/// nothing, others make an older kind; noted as formatted, the volume could never be used.
fn written(wish: &Wish<'_>, program: &str) -> Result<()> {
    let doing = || format!("writing the new file system to {}", wish.device.display());
    let mut device = File::open(wish.device).map_err(|e| Error::io(doing(), e))?;
    device.sync_all().map_err(|e| Error::io(doing(), e))?;
    let size = device.seek(SeekFrom::End(0)).map_err(|e| Error::io(doing(), e))?;
    let content = probe(&device, size, None)?;
    if matches!(content, Content::Known { name, .. } if name == wish.fs) {
        return Ok(());
    }
    let problem = format!(
        "{program} with {:?} reported success, but {} holds {}, not {}; remove the option that does this",
        wish.options.join(" "),
        wish.device.display(),
        content.describe(),
        wish.fs
    );
    Err(Error::invalid("parameters[\"mkfsOptions\"]", problem))
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
