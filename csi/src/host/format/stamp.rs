//! What is written to a device before a file system is made on it: a sector of text at its very start, where each mkfs
//! writes first. Where exactly that is still there and nothing else, a format was begun and nothing was written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use provisioners::{Error, Result};

use super::super::probe::read;

/// A stamp's size: the rest of its sector is zero.
pub const STAMP_BYTES: u64 = 512;
/// What it begins with; the number is its schema.
const MAGIC: &str = "volumectl: a format was begun, 1";

/// A stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// The volume, by a digest of its handle.
    pub volume: String,
    /// Which file system was to be made.
    pub fs: String,
    /// This one format.
    pub nonce: String,
}

impl Stamp {
    /// A new one for a volume.
    pub fn new(volume: &str, fs: &str) -> Self {
        Self { volume: digest(volume), fs: fs.to_owned(), nonce: uuid::Uuid::new_v4().simple().to_string() }
    }

    /// Whether it is of this volume.
    pub fn is_of(&self, volume: &str) -> bool {
        self.volume == digest(volume)
    }

    fn bytes(&self) -> Vec<u8> {
        let text = format!("{MAGIC}\nvolume {}\nfs {}\nnonce {}\n", self.volume, self.fs, self.nonce);
        let mut bytes = format!("{text}sum {}\n", digest(&text)).into_bytes();
        bytes.resize(usize::try_from(STAMP_BYTES).unwrap_or_default(), 0);
        bytes
    }

    /// The stamp on a device, if there is a whole one.
    pub fn read(device: &File, size: u64) -> Result<Option<Self>> {
        let mut bytes = vec![0; usize::try_from(STAMP_BYTES).unwrap_or_default()];
        if size < STAMP_BYTES {
            return Ok(None);
        }
        read(device, 0, &mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut fields = text.lines().skip(1).filter_map(|line| line.split_once(' '));
        let mut field =
            |name: &str| fields.next().filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
        let (Some(volume), Some(fs), Some(nonce)) = (field("volume"), field("fs"), field("nonce")) else {
            return Ok(None);
        };
        let stamp = Self { volume, fs, nonce };
        Ok((stamp.bytes() == bytes).then_some(stamp))
    }

    /// Writes it, durably.
    pub fn write(&self, device: &File) -> Result<()> {
        put(device, &self.bytes(), "writing the stamp of a format")
    }

    /// Takes it away if exactly this one is there. Whether it was.
    pub fn clear(&self, device: &File, size: u64) -> Result<bool> {
        if Self::read(device, size)?.as_ref() != Some(self) {
            return Ok(false);
        }
        put(device, &vec![0; self.bytes().len()], "removing the stamp of a format")?;
        Ok(true)
    }
}

fn put(device: &File, bytes: &[u8], doing: &str) -> Result<()> {
    let written = device.write_all_at(bytes, 0).and_then(|()| device.sync_all());
    written.map_err(|e| Error::io(doing.to_owned(), e))
}

/// All 32 bytes.
fn digest(text: &str) -> String {
    super::super::digest(text, 32)
}
