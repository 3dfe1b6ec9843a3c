//! `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use provisioners::{Error, Result};

/// One mount; its texts are those of the table where they need no change, since a table can have many thousand lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Its id, unique while it exists.
    pub id: u64,
    /// The id of the mount it is on.
    pub parent: u64,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted: `/` unless it is a bind mount. See [`Mount::dir`].
    pub root: Cow<'a, Path>,
    /// Where it is mounted.
    pub target: Cow<'a, Path>,
    /// Options of this mount, such as `rw,noatime`.
    pub options: Cow<'a, str>,
    /// How mounts below it spread.
    pub propagation: Propagation,
    /// The file system's type.
    pub fs_type: Cow<'a, str>,
    /// What is mounted, such as `/dev/loop3`.
    pub source: Cow<'a, OsStr>,
    /// Options of the file system, such as `rw,errors=remount-ro`.
    pub super_options: Cow<'a, str>,
}

/// The optional fields; none of them: private.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Propagation {
    /// `shared:N`: the peer group.
    pub shared: Option<u64>,
    /// `master:N`: the peer group it receives from.
    pub master: Option<u64>,
    /// `unbindable`.
    pub unbindable: bool,
}

impl Mount<'_> {
    /// The same with texts of its own.
    pub fn into_owned(self) -> Mount<'static> {
        Mount {
            root: Cow::Owned(self.root.into_owned()),
            target: Cow::Owned(self.target.into_owned()),
            options: Cow::Owned(self.options.into_owned()),
            fs_type: Cow::Owned(self.fs_type.into_owned()),
            source: Cow::Owned(self.source.into_owned()),
            super_options: Cow::Owned(self.super_options.into_owned()),
            id: self.id,
            parent: self.parent,
            device: self.device,
            propagation: self.propagation,
        }
    }

    /// The directory of the file system that is mounted. NFS always says `/` for `root`, and tells it in `source`
    /// (Linux, fs/nfs/super.c: `nfs_show_path`, `nfs_show_devname`).
    pub fn dir(&self) -> &Path {
        let source = self.source.as_bytes();
        match source.windows(2).position(|two| two == b":/") {
            Some(at) if self.fs_type.starts_with("nfs") => Path::new(OsStr::from_bytes(&source[at + 1..])),
            _ => &self.root,
        }
    }

    /// Whether an option of the mount itself is set.
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|o| o == option)
    }

    /// Whether nothing can be written through this mount: it or its file system is read only.
    pub fn is_read_only(&self) -> bool {
        self.has_option("ro") || self.is_super_read_only()
    }

    /// Whether the file system itself is read only.
    pub fn is_super_read_only(&self) -> bool {
        self.super_options.split(',').any(|o| o == "ro")
    }
}

/// Parses a whole table. A line that is none: an error with its number.
pub fn parse(table: &[u8]) -> Result<Vec<Mount<'_>>> {
    iter(table).collect()
}

/// Parses a table line by line.
pub fn iter(table: &[u8]) -> impl Iterator<Item = Result<Mount<'_>>> {
    lines(table).map(|(number, line)| mount(line).ok_or_else(|| bad(number, line)))
}

/// The mounts that `wanted` chooses.
pub fn select(table: &[u8], wanted: impl Fn(&Mount<'_>) -> bool) -> Result<Vec<Mount<'static>>> {
    let mut found = Vec::new();
    for mount in iter(table) {
        let mount = mount?;
        if wanted(&mount) {
            found.push(mount.into_owned());
        }
    }
    Ok(found)
}

fn lines(table: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    table
        .split(|b| *b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(i, line)| (i + 1, line))
}

fn bad(number: usize, line: &[u8]) -> Error {
    let line = String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned();
    Error::Internal(format!("mountinfo: line {number} cannot be read: {line:?}"))
}

fn mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|b| *b == b' ');
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let device = device_number(fields.next()?)?;
    let (root, target) = (unescape(fields.next()?), unescape(fields.next()?));
    let options = text(fields.next()?);
    let mut propagation = Propagation::default();
    for field in fields.by_ref() {
        match field {
            b"-" => break,
            b"unbindable" => propagation.unbindable = true,
            _ => {
                propagation.shared = propagation.shared.or(field.strip_prefix(b"shared:").and_then(number));
                propagation.master = propagation.master.or(field.strip_prefix(b"master:").and_then(number));
            }
        }
    }
    let (fs_type, source, super_options) = (text(fields.next()?), fields.next()?, text(fields.next()?));
    let source = match unescape(source) {
        Cow::Borrowed(path) => Cow::Borrowed(path.as_os_str()),
        Cow::Owned(path) => Cow::Owned(path.into_os_string()),
    };
    Some(Mount { id, parent, device, root, target, options, propagation, fs_type, source, super_options })
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device_number(field: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = std::str::from_utf8(field).ok()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn text(field: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(field)
}

/// Undoes the kernel's octal escapes (`\040` for a space). A backslash that starts none stands for itself.
fn unescape(field: &[u8]) -> Cow<'_, Path> {
    if !field.contains(&b'\\') {
        return Cow::Borrowed(Path::new(OsStr::from_bytes(field)));
    }
    let (mut bytes, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    Cow::Owned(OsString::from_vec(bytes).into())
}

#[cfg(test)]
#[path = "mountinfo_tests.rs"]
mod tests;
