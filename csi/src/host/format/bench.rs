//! Devices as sparse files, for tests: what mkfs programs wrote on them, replayed in part.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use provisioners::{Ctx, Error, FsNote, Result};

use super::super::FormatLog;
use super::super::probe::{Known, ranges};
use super::{Maker, Wish};

/// The unit of what a torn write leaves.
pub const BLOCK: usize = 4096;

/// What a program wrote: offset and bytes of each block, in the order of their offsets.
pub type Writes = Vec<(u64, Vec<u8>)>;

/// A sparse file in the place of a device.
pub fn sparse(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

pub fn put(file: &File, writes: &[(u64, Vec<u8>)]) {
    writes.iter().for_each(|(offset, bytes)| file.write_all_at(bytes, *offset).unwrap());
}

/// The blocks of a file that hold anything.
pub fn recorded(file: &File, size: u64) -> Writes {
    let mut writes = Writes::new();
    for (from, to) in ranges(file, size, &Known::Holes(file)).unwrap() {
        let mut at = from;
        while at < to {
            let mut block = vec![0; BLOCK.min(usize::try_from(to - at).unwrap())];
            file.read_exact_at(&mut block, at).unwrap();
            if block.iter().any(|byte| *byte != 0) {
                writes.push((at, block));
            }
            at += BLOCK as u64;
        }
    }
    writes
}

/// What a program writes to a device of a size; `None` where it is not installed.
pub fn record(program: &str, options: &[&str], size: u64) -> Option<Writes> {
    let file = sparse(size);
    let path = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|dir| PathBuf::from(dir).join(program));
    let program = path.into_iter().find(|path| path.is_file())?;
    let made = Command::new(&program).args(options).arg(file.path()).output().unwrap();
    assert!(made.status.success(), "{}: {made:?}", program.display());
    Some(recorded(file.as_file(), size))
}

/// A record that is as strict as a backend's, and as forgetful as a test wants.
#[derive(Default)]
pub struct Notes {
    pub formatted: Mutex<Option<String>>,
    pub raw: Mutex<bool>,
}

impl FormatLog for Notes {
    fn note(&self, note: &FsNote) -> Result<()> {
        let formatted = &mut *self.formatted.lock().unwrap();
        match note {
            FsNote::Raw => *self.raw.lock().unwrap() = true,
            FsNote::Made(fs) => *formatted = Some(fs.clone()),
            FsNote::Making { .. } if formatted.is_some() || *self.raw.lock().unwrap() => {
                return Err(Error::Refused("was used meanwhile".into()));
            }
            FsNote::Making { .. } => {}
        }
        Ok(())
    }

    fn stored(&self) -> Result<Option<Vec<(u64, u64)>>> {
        Ok(None)
    }

    fn attaching(&self, _: &[String], _: bool) -> Result<()> {
        Ok(())
    }

    fn attached(&self, _: Option<&str>) -> Result<()> {
        Ok(())
    }
}

/// How a mkfs of a test ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Well.
    Done,
    /// With an error, after so many writes; its driver lives.
    Fails(usize),
    /// Killed after so many writes, with its driver.
    Killed(usize),
    /// The program is missing.
    Missing,
}

/// Plays recorded writes, and asks at the first whether the device is one that may be formatted.
pub struct Player<'a> {
    pub writes: &'a Writes,
    pub end: End,
    pub may: &'a (dyn Fn() -> bool + Sync),
    /// Whether it was called.
    pub called: Mutex<bool>,
}

/// With this message a test's driver is dead: nothing after it is done.
pub const DEAD: &str = "the driver was killed";

impl Maker for Player<'_> {
    fn check(&self, _: &Wish<'_>) -> Result<()> {
        if self.end == End::Missing { Err(Error::Refused("mkfs is not installed".into())) } else { Ok(()) }
    }

    fn make(&self, _: &Ctx, wish: &Wish<'_>, lock: File, _: bool) -> Result<()> {
        *self.called.lock().unwrap() = true;
        assert!((self.may)(), "{} with content was formatted", wish.device.display());
        let device = File::options().write(true).open(wish.device).unwrap();
        let wrote = match self.end {
            End::Done | End::Missing => self.writes.len(),
            End::Fails(n) | End::Killed(n) => n.min(self.writes.len()),
        };
        // Each mkfs begins by clearing the start.
        if wrote > 0 {
            device.write_all_at(&vec![0; BLOCK], 0).unwrap();
        }
        // The superblock comes last, as with all three.
        put(&device, &self.writes.iter().rev().take(wrote).cloned().collect::<Vec<_>>());
        drop(lock);
        match self.end {
            End::Done | End::Missing => Ok(()),
            End::Fails(_) => Err(Error::Internal("mkfs failed".into())),
            End::Killed(_) => panic!("{DEAD}"),
        }
    }
}
