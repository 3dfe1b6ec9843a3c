//! Reads a file of a config drive, which is an ISO 9660 image (ECMA-119), without mounting it. Nova has it made with long
//! names in lower case, so the extensions for names are not needed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes of a sector.
const SECTOR: u64 = 2048;
/// Where the primary volume descriptor is.
const DESCRIPTOR: u64 = 16 * SECTOR;
/// The largest directory or file that is read.
const LARGEST: u32 = 4 << 20;
/// A config drive is not larger.
const DRIVE_MAX: u64 = 128 << 20;

/// A part of the image: a directory or a file.
#[derive(Debug, Clone, Copy)]
struct Extent {
    sector: u32,
    bytes: u32,
}

/// The disk with a label, looked for among all of the node's small disks.
pub(super) fn labelled(root: &Path, label: &str) -> Option<PathBuf> {
    let disks = fs::read_dir(root.join("sys/block")).ok()?;
    let mut names: Vec<_> = disks.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names.into_iter().find_map(|name| {
        let sectors = fs::read_to_string(root.join("sys/block").join(&name).join("size")).ok()?;
        let small =
            sectors.trim().parse::<u64>().is_ok_and(|sectors| sectors > 0 && sectors <= DRIVE_MAX / 512);
        let device = root.join("dev").join(&name);
        let found = small
            && File::open(&device)
                .ok()
                .and_then(|file| label_of(&file))
                .is_some_and(|has| has.eq_ignore_ascii_case(label));
        found.then_some(device)
    })
}

fn descriptor(file: &File) -> Result<Vec<u8>, String> {
    let sector = read_at(file, DESCRIPTOR, SECTOR)?;
    if sector[0] == 1 && &sector[1..6] == b"CD001" { Ok(sector) } else { Err("no ISO 9660 image".into()) }
}

fn label_of(file: &File) -> Option<String> {
    let sector = descriptor(file).ok()?;
    Some(String::from_utf8_lossy(&sector[40..72]).trim().to_owned())
}

/// The content of a file by its path.
pub(super) fn read(device: &Path, path: &str) -> Result<Vec<u8>, String> {
    let file = File::open(device).map_err(|e| format!("{}: {e}", device.display()))?;
    let sector = descriptor(&file)?;
    let mut at = extent(&sector[156..190]).ok_or("the root directory is damaged")?;
    for part in path.split('/') {
        let directory = content(&file, at)?;
        at = find(&directory, part).ok_or_else(|| format!("{}: there is no {path}", device.display()))?;
    }
    content(&file, at)
}

fn content(file: &File, at: Extent) -> Result<Vec<u8>, String> {
    if at.bytes > LARGEST {
        return Err(format!("{} bytes are too many", at.bytes));
    }
    read_at(file, u64::from(at.sector) * SECTOR, u64::from(at.bytes))
}

fn read_at(file: &File, offset: u64, bytes: u64) -> Result<Vec<u8>, String> {
    let mut buffer = vec![0; usize::try_from(bytes).map_err(|e| e.to_string())?];
    file.read_exact_at(&mut buffer, offset).map_err(|e| e.to_string())?;
    Ok(buffer)
}

/// Where a directory record (ECMA-119, 9.1) says that its file is.
fn extent(record: &[u8]) -> Option<Extent> {
    let word = |at: usize| Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?));
    Some(Extent { sector: word(2)?, bytes: word(10)? })
}

fn find(directory: &[u8], wanted: &str) -> Option<Extent> {
    let mut at = 0;
    while at < directory.len() {
        let length = usize::from(directory[at]);
        if length == 0 {
            // Records do not cross sectors: the next begins with the next sector.
            at = (at / 2048 + 1) * 2048;
            continue;
        }
        let record = directory.get(at..at + length)?;
        let name = record.get(33..33 + usize::from(*record.get(32)?))?;
        let name = String::from_utf8_lossy(name);
        let plain = name.split(';').next().unwrap_or_default().trim_end_matches('.');
        if plain.eq_ignore_ascii_case(wanted) {
            return extent(record);
        }
        at += length;
    }
    None
}
