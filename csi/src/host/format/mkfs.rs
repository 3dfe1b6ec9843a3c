//! The programs that make file systems.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use provisioners::{Ctx, Error, Result};

use super::super::probe::{Content, signature};
use super::super::runner::Tools;

/// What mkfs is to make.
pub struct Wish<'a> {
    /// Where.
    pub device: &'a Path,
    /// Which file system.
    pub fs: &'a str,
    /// The StorageClass's `mkfsOptions`.
    pub options: &'a [String],
}

/// Makes file systems; a trait, so that a test can end it at any write.
pub trait Maker {
    /// Whether it can be done at all, before anything is written or noted: a missing program is [`Error::Refused`], an
    /// option with a path [`Error::Invalid`].
    fn check(&self, wish: &Wish<'_>) -> Result<()>;

    /// Does it. `lock` is the program's while it runs; `force`: there may be something.
    fn make(&self, ctx: &Ctx, wish: &Wish<'_>, lock: File, force: bool) -> Result<()>;
}

/// The programs of this node.
pub struct Mkfs<'a>(pub &'a Tools);

impl Maker for Mkfs<'_> {
    fn check(&self, wish: &Wish<'_>) -> Result<()> {
        let (program, _) = program(wish.fs)?;
        refuse_paths(wish, program)?;
        self.0.path(program).map(drop)
    }

    fn make(&self, ctx: &Ctx, wish: &Wish<'_>, lock: File, force: bool) -> Result<()> {
        let (program, defaults) = program(wish.fs)?;
        refuse_paths(wish, program)?;
        let mut args: Vec<&OsStr> = defaults.iter().map(OsStr::new).collect();
        if force && wish.fs != "ext4" {
            args.push("-f".as_ref());
        }
        args.extend(wish.options.iter().map(OsStr::new));
        args.push(wish.device.as_os_str());
        let output = self.0.run_with(ctx, program, &args, lock.into())?;
        if output.code == Some(0) {
            return Ok(());
        }
        if output.code.is_none() {
            return Err(output.error(program));
        }
        // mkfs.xfs says what is wrong first, and its whole usage after it.
        let first = output.stderr.trim().lines().next().unwrap_or_default();
        let end = output.failure(program);
        let text = if end.contains(first) { end } else { format!("{end} (it began with: {first})") };
        Err(Error::Internal(text))
    }
}

fn program(fs: &str) -> Result<(&'static str, &'static [&'static str])> {
    match fs {
        // No discard: the device is blank. Tables are initialised later, by the kernel.
        "ext4" => {
            Ok(("mkfs.ext4", &["-F", "-q", "-m0", "-Enodiscard,lazy_itable_init=1,lazy_journal_init=1"]))
        }
        "xfs" => Ok(("mkfs.xfs", &["-q", "-K"])),
        "btrfs" => Ok(("mkfs.btrfs", &["-q", "-K"])),
        other => Err(Error::Internal(format!("no mkfs for {other}"))),
    }
}

fn refuse_paths(wish: &Wish<'_>, program: &str) -> Result<()> {
    // A path anywhere: `/dev/x` and `dev/x` are devices to mkfs.btrfs, `logdev=/dev/x` and `device=/dev/x` to others,
    // and mkfs overwrites them.
    if let Some(bad) = wish.options.iter().find(|o| o.contains(['/', '\0'])) {
        let problem = format!("{bad:?} is no option for {program}; paths are not allowed");
        return Err(Error::invalid("parameters[\"mkfsOptions\"]", problem));
    }
    Ok(())
}

/// The new file system is on the device, and is the one asked for. Options such as `-n` make mkfs succeed and write
/// nothing, others make an older kind; noted as formatted, the volume could never be used.
pub fn written(device: &File, size: u64, wish: &Wish<'_>) -> Result<()> {
    device
        .sync_all()
        .map_err(|e| Error::io(format!("writing the new file system to {}", wish.device.display()), e))?;
    let content = signature(device, size)?.unwrap_or(Content::Blank);
    if let Content::Known { name, inside, .. } = &content
        && (*name == wish.fs || *inside == Some(wish.fs))
    {
        return Ok(());
    }
    let (program, _) = program(wish.fs)?;
    let problem = format!(
        "{program} with {:?} reported success, but {} holds {}, not {}; remove the option that does this",
        wish.options.join(" "),
        wish.device.display(),
        content.describe(),
        wish.fs
    );
    Err(Error::invalid("parameters[\"mkfsOptions\"]", problem))
}
