//! Checking what was used before, ahead of its mount. A journal is replayed; nothing is ever forced.

use std::path::Path;

use provisioners::{Ctx, Error, Result};

use super::runner::{Output, Tools};

/// Exit codes of e2fsck(8) up to which the file system is in order (errors corrected, reboot asked for).
const CORRECTED: i32 = 2;

/// Checks a file system that is not mounted. ext4 is checked by `e2fsck -p`, which replays the journal and repairs
/// only what is safe; xfs and btrfs replay their log when they are mounted. What is left is [`Error::Refused`], with
/// the command for a person to decide on.
pub fn before_mount(tools: &Tools, ctx: &Ctx, device: &Path, fs: &str, id: &str) -> Result<()> {
    if fs != "ext4" {
        return Ok(());
    }
    let output = tools.run(ctx, "e2fsck", &["-p".as_ref(), device.as_os_str()])?;
    judge(&output, device, id)
}

/// Whether e2fsck's answer lets the file system be used.
pub fn judge(output: &Output, device: &Path, id: &str) -> Result<()> {
    match output.code {
        Some(0) => Ok(()),
        Some(code) if code <= CORRECTED => {
            tracing::warn!(
                volume = id,
                code,
                found = output.stdout.trim(),
                "e2fsck corrected the file system"
            );
            Ok(())
        }
        None => Err(output.error("e2fsck -p")),
        _ => Err(Error::Refused(format!(
            "volume {id}: the file system has errors that cannot be repaired safely; nothing was forced. Keep a copy \
             (a snapshot), then run `e2fsck -f {}` on the node. {}",
            device.display(),
            output.failure("e2fsck -p")
        ))),
    }
}
