//! Growing a file system to the size of its device.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use provisioners::{Ctx, Error, Result};

use super::fsck;
use super::runner::{Output, Tools};

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

/// Grows a mounted file system. One that is growing already, as when a driver was killed and its program goes on:
/// [`Error::Unavailable`].
pub fn online(tools: &Tools, ctx: &Ctx, device: &Path, mount: &Path, fs: &str) -> Result<()> {
    let mount = mount.as_os_str();
    let (program, arguments) = match fs {
        "xfs" => ("xfs_growfs", vec!["-d".as_ref(), mount]),
        "btrfs" => ("btrfs", vec!["filesystem".as_ref(), "resize".as_ref(), "max".as_ref(), mount]),
        "ext4" => ("resize2fs", vec![device.as_os_str()]),
        other => return Err(Error::Unsupported(format!("growing a mounted {other}"))),
    };
    let output = tools.run(ctx, program, &arguments)?;
    if output.code == Some(0) { Ok(()) } else { Err(not_grown(&output, program, device)) }
}

fn not_grown(output: &Output, program: &str, device: &Path) -> Error {
    let said = |words: &[&str]| words.iter().any(|words| output.stderr.contains(words));
    if said(&["in progress", "Device or resource busy"]) {
        return Error::Unavailable(format!(
            "the file system on {} is being grown already ({}); repeat the call",
            device.display(),
            output.failure(program)
        ));
    }
    if program == "resize2fs" && said(&["Operation not permitted", "Permission denied"]) {
        return Error::Denied(format!(
            "growing the mounted ext4 on {} needs CAP_SYS_RESOURCE, which this process lacks: give the node container \
             that capability, or unstage the volume and stage it again, which grows it offline",
            device.display()
        ));
    }
    output.error(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growth_that_goes_on_is_repeated_and_a_missing_right_is_named() {
        let error = |program, stderr: &str| {
            let output = Output { code: Some(1), stdout: String::new(), stderr: stderr.into() };
            not_grown(&output, program, Path::new("/dev/rbd0"))
        };
        let busy = [
            ("xfs_growfs", "xfs_growfs: growfs operation in progress already"),
            ("resize2fs", "resize2fs: Device or resource busy While checking for on-line resizing support"),
            ("btrfs", "ERROR: unable to start resize, another exclusive operation 'resize' in progress"),
        ];
        for (program, stderr) in busy {
            assert!(matches!(error(program, stderr), Error::Unavailable(_)), "{stderr}");
        }
        let denied = error("resize2fs", "resize2fs: Operation not permitted");
        assert!(matches!(&denied, Error::Denied(why) if why.contains("CAP_SYS_RESOURCE")), "{denied}");
        assert!(matches!(error("xfs_growfs", "xfs_growfs: bad magic"), Error::Internal(_)));
    }
}
