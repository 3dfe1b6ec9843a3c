//! Which loop device is over a mapping's file, written down: once the daemon has died nobody can be asked.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use provisioners::{Error, Result, seal, unseal};

use super::super::attachment::Attachment;

/// Notes the device of a mapping's directory. Where the kernel counts no attachments, nothing can be noted that stays
/// true.
pub fn write(dir: &Path, device: &Path) -> Result<()> {
    let Some(noted) = Attachment::of(device)? else { return Ok(()) };
    let path = dir.join("device.json");
    let bytes = seal(&noted)?;
    let draft = dir.join("device.json.new");
    fs::write(&draft, bytes)
        .and_then(|()| fs::rename(&draft, &path))
        .map_err(|e| Error::io(format!("writing {}", path.display()), e))
}

/// The noted device, if it is still attached to what it was.
pub fn read(dir: &Path) -> Result<Option<PathBuf>> {
    let path = dir.join("device.json");
    let bytes = match fs::read(&path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.map_err(|e| Error::io(format!("reading {}", path.display()), e))?,
    };
    let noted: Attachment = unseal(&path.display().to_string(), &bytes)?;
    let name = noted.device.file_name().unwrap_or_default();
    let attached = Path::new("/sys/block").join(name).join("loop/backing_file").exists();
    Ok((attached && noted.is_now()?).then_some(noted.device))
}
