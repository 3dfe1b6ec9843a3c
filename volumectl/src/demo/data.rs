//! What the database writes: files of pseudo-random bytes, and their SHA-256.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

const MIB: usize = 1 << 20;
/// Each file has so many MiB at most.
const FILE_MIB: u64 = 64;

/// Checksums by file name.
pub(super) type Sums = BTreeMap<String, String>;

/// A stream of bytes that no compressor makes smaller (xorshift64*, by S. Vigna).
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Writes `mib` MiB in files named `<prefix>-<n>`, each durable when this returns.
pub(super) fn write(dir: &Path, prefix: &str, mib: u64) -> Result<Sums> {
    let (mut sums, mut left, mut buffer) = (Sums::new(), mib, vec![0; MIB]);
    while left > 0 {
        let (name, size) = (format!("{prefix}-{}", sums.len()), left.min(FILE_MIB));
        let path = dir.join(&name);
        let mut file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let (mut noise, mut hash) =
            (Noise(0x9e37_79b9_7f4a_7c15 ^ left ^ (prefix.len() as u64) << 32), Sha256::new());
        for _ in 0..size {
            noise.fill(&mut buffer);
            hash.update(&buffer);
            file.write_all(&buffer).with_context(|| format!("writing {}", path.display()))?;
        }
        file.sync_all().with_context(|| format!("syncing {}", path.display()))?;
        sums.insert(name, hex(&hash.finalize()));
        left -= size;
    }
    Ok(sums)
}

/// Overwrites a MiB in the middle of a file, as a database updates a page; returns its new checksum.
pub(super) fn overwrite(path: &Path) -> Result<String> {
    let file = File::options().write(true).open(path).with_context(|| path.display().to_string())?;
    let mut page = vec![0; MIB];
    Noise(42).fill(&mut page);
    file.write_all_at(&page, file.metadata()?.len() / 2)?;
    file.sync_all()?;
    sum(path)
}

fn sum(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; MIB]);
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("reading {}", path.display()))?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// The files of a directory are exactly these, with these checksums.
pub(super) fn verify(dir: &Path, sums: &Sums) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?.flatten();
    let found: Vec<_> = entries.filter(|e| e.path().is_file()).map(|e| e.file_name()).collect();
    if found.len() != sums.len() {
        bail!("{} has {} files, expected {}", dir.display(), found.len(), sums.len());
    }
    for (name, expected) in sums {
        let is = sum(&dir.join(name))?;
        if is != *expected {
            bail!("{} has the checksum {is}, expected {expected}", dir.join(name).display());
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_and_a_missing_file_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut sums = write(dir.path(), "table", 2).unwrap();
        verify(dir.path(), &sums).unwrap();
        let changed = overwrite(&dir.path().join("table-0")).unwrap();
        assert!(verify(dir.path(), &sums).unwrap_err().to_string().contains("checksum"));
        sums.insert("table-0".into(), changed);
        verify(dir.path(), &sums).unwrap();
        fs::write(dir.path().join("more"), "x").unwrap();
        assert!(verify(dir.path(), &sums).unwrap_err().to_string().contains("2 files"));
    }
}
