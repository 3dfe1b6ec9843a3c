//! One attachment of a block device, told from all others that a device of its name has had.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use provisioners::{Error, Result, Stored};
use serde::{Deserialize, Serialize};

use super::boot;

/// A device, by what the kernel gives no other attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Its node in /dev.
    pub device: PathBuf,
    /// `/sys/block/<device>/diskseq`: counts on with each attachment, until the machine starts again.
    sequence: String,
    /// The kernel's boot id.
    boot: String,
}

impl Stored for Attachment {
    const KIND: &'static str = "Attachment";
}

impl Attachment {
    /// What a device is now. `None`: it is not there, or the kernel is older than 5.15 and counts no attachments.
    pub fn of(device: &Path) -> Result<Option<Self>> {
        let path = Path::new("/sys/block").join(device.file_name().unwrap_or_default()).join("diskseq");
        let sequence = match fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
        };
        Ok(Some(Self { device: device.to_owned(), sequence, boot: boot()? }))
    }

    /// Whether it is still the one that its device has.
    pub fn is_now(&self) -> Result<bool> {
        Ok(Self::of(&self.device)?.as_ref() == Some(self))
    }
}
