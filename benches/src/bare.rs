//! The system calls that a durable file volume with a record needs at least, made directly: the baseline of create
//! and delete. The same files, the same syncs, the same renames as the backend, and nothing else.

use std::fs::{self, File};
use std::io::{Result, Write as _};
use std::path::Path;

/// About the size of a volume's record, in bytes.
const RECORD: [u8; 400] = [b'x'; 400];

/// Makes the directories that [`create`] and [`delete`] use.
pub fn prepare(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join(".own/tmp")).and_then(|()| fs::create_dir_all(root.join(".own/trash")))
}

/// A sparse file of `size` bytes with a record beside it, complete or absent after a power cut.
pub fn create(root: &Path, name: &str, size: u64) -> Result<()> {
    let tmp = root.join(".own/tmp").join(name);
    fs::create_dir(&tmp)?;
    let disk = File::create(tmp.join("disk.img"))?;
    disk.set_len(size)?;
    let mut record = File::create(tmp.join("volume.json"))?;
    record.write_all(&RECORD)?;
    record.sync_all()?;
    disk.sync_all()?;
    File::open(&tmp)?.sync_all()?;
    fs::rename(&tmp, root.join(name))?;
    File::open(root)?.sync_all()
}

/// Takes it away again, gone for good after a power cut.
pub fn delete(root: &Path, name: &str) -> Result<()> {
    let trash = root.join(".own/trash").join(name);
    fs::rename(root.join(name), &trash)?;
    File::open(root)?.sync_all()?;
    fs::remove_file(trash.join("disk.img"))?;
    fs::remove_file(trash.join("volume.json"))?;
    fs::remove_dir(&trash)
}
