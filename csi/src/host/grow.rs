//! Growing a file system to the size of its device.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use provisioners::{Ctx, Error, Result};

use super::fsck;
use super::runner::Tools;

/// A file system that is smaller than its device by less than this is as large as it gets: allocation is in groups.
pub const SLACK: u64 = 1 << 20;

/// The size in bytes that a file system's superblock says it has; `None` for one that is not read here.
pub fn fs_size(device: &File, fs: &str) -> Result<Option<u64>> {
    let field = |offset: u64, bytes: &mut [u8]| {
        device.read_exact_at(bytes, offset).map_err(|e| Error::io(format!("reading the {fs} superblock"), e))
    };
    let (mut four, mut eight) = ([0; 4], [0; 8]);
    Ok(match fs {
        "ext4" => {
            let mut superblock = [0; 1024];
            field(1024, &mut superblock)?;
            Some(ext4_size(&superblock))
        }
        "xfs" => {
            field(4, &mut four)?;
            field(8, &mut eight)?;
            u64::from(u32::from_be_bytes(four)).checked_mul(u64::from_be_bytes(eight))
        }
        "btrfs" => {
            field(0x1_0070, &mut eight)?;
            Some(u64::from_le_bytes(eight))
        }
        _ => None,
    })
}

fn ext4_size(superblock: &[u8; 1024]) -> u64 {
    const BIT64: u32 = 0x80;
    let word = |at: usize| {
        u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]])
    };
    let high = if word(0x60) & BIT64 == 0 { 0 } else { u64::from(word(0x150)) };
    let blocks = high << 32 | u64::from(word(0x04));
    blocks.saturating_mul(1024 << word(0x18).min(6))
}

/// Grows a file system that is not mounted: ext4, whose growth while mounted needs a capability that containers rarely
/// have. The others grow once they are mounted.
pub fn offline(tools: &Tools, ctx: &Ctx, device: &Path, fs: &str, size: u64) -> Result<()> {
    if fs != "ext4" {
        return Ok(());
    }
    let file = File::open(device).map_err(|e| Error::io(format!("opening {}", device.display()), e))?;
    if fs_size(&file, fs)?.is_none_or(|has| has + SLACK > size) {
        return Ok(());
    }
    ctx.stage("growing the file system");
    // resize2fs(8) wants a full check first; -p repairs only what is safe.
    let output = tools.run(ctx, "e2fsck", &["-f".as_ref(), "-p".as_ref(), device.as_os_str()])?;
    fsck::judge(&output, device, "to be grown")?;
    tools.must(ctx, "resize2fs", &[device.as_os_str()]).map(drop)
}

/// Grows a mounted file system.
pub fn online(tools: &Tools, ctx: &Ctx, device: &Path, mount: &Path, fs: &str) -> Result<()> {
    let mount = mount.as_os_str();
    match fs {
        "xfs" => tools.must(ctx, "xfs_growfs", &["-d".as_ref(), mount]).map(drop),
        "btrfs" => {
            let args = ["filesystem".as_ref(), "resize".as_ref(), "max".as_ref(), mount];
            tools.must(ctx, "btrfs", &args).map(drop)
        }
        "ext4" => ext4_online(tools, ctx, device),
        other => Err(Error::Unsupported(format!("growing a mounted {other}"))),
    }
}

fn ext4_online(tools: &Tools, ctx: &Ctx, device: &Path) -> Result<()> {
    let output = tools.run(ctx, "resize2fs", &[device.as_os_str()])?;
    if output.code == Some(0) {
        return Ok(());
    }
    if output.stderr.contains("Operation not permitted") || output.stderr.contains("Permission denied") {
        return Err(Error::Denied(format!(
            "growing the mounted ext4 on {} needs CAP_SYS_RESOURCE, which this process lacks: give the node container \
             that capability, or unstage the volume and stage it again, which grows it offline",
            device.display()
        )));
    }
    Err(Error::Internal(output.failure("resize2fs")))
}
