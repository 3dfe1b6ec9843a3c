//! An NFS client in user space: what the backend asks of a server, for both versions of the protocol.
//!
//! A [`Session`] is one connection and makes one call at a time; [`super::share::Share`] keeps several.

mod fault;
mod v3;
mod v4;
mod wire;
mod xdr;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(super) use fault::{Fault, Outcome, Status, found};
pub(super) use wire::{random, resolve};

/// A file handle: opaque bytes of the server.
pub(super) type Fh = Vec<u8>;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    File,
    Directory,
    Link,
    Fifo,
    Socket,
    Block,
    Char,
}

/// A time of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Time {
    pub(super) seconds: i64,
    pub(super) nanos: u32,
}

/// An owner: a number, or a name where a server of version 4 gives names (RFC 8881, 5.9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Who {
    Id(u32),
    Name(Vec<u8>),
}

/// The attributes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attr {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) owner: Who,
    pub(super) group: Who,
    pub(super) size: u64,
    /// Bytes of disk.
    pub(super) used: u64,
    pub(super) device: (u32, u32),
    /// Unique in its file system for as long as the file lives.
    pub(super) id: u64,
    pub(super) fsid: (u64, u64),
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
}

/// Attributes to be set; `None` leaves one as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Set {
    pub(super) mode: Option<u32>,
    pub(super) owner: Option<Who>,
    pub(super) group: Option<Who>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<Stamp>,
    pub(super) mtime: Option<Stamp>,
}

/// A time to be set.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Stamp {
    /// The server's time now.
    Now,
    At(Time),
}

/// A file with its handle.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Node {
    pub(super) fh: Fh,
    pub(super) attr: Attr,
}

/// An entry of a directory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    /// What is known of it without another call.
    pub(super) node: Option<Node>,
}

/// Where a listing goes on.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Cursor {
    pub(super) cookie: u64,
    pub(super) verifier: [u8; 8],
}

/// A part of a directory, without `.` and `..`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Listing {
    pub(super) entries: Vec<Entry>,
    pub(super) next: Option<Cursor>,
}

/// Room in a file system, in bytes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Space {
    pub(super) total: u64,
    pub(super) available: u64,
}

/// What is made beside plain files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Special<'a> {
    Directory,
    Link(Cow<'a, [u8]>),
    Fifo,
    Socket,
    Block(u32, u32),
    Char(u32, u32),
}

/// How many bytes one call can move.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) read: u32,
    pub(super) write: u32,
}

/// A write that the server has taken.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Written {
    pub(super) count: u32,
    /// It is on disk already.
    pub(super) durable: bool,
    /// Changes when the server restarts and may have lost what was not committed.
    pub(super) verifier: [u8; 8],
}

/// One connection.
pub(super) trait Session: Send {
    /// Calls from now on are over at this moment, done or not.
    fn until(&mut self, until: Instant) {
        let _ = until;
    }
    /// The handle of the share's root directory.
    fn root(&self) -> Fh;
    /// `3`, `4.1` or `4.2`.
    fn version(&self) -> &'static str;
    /// What a file is known by for as long as it lives, and no other file ever: its handle, which has a generation.
    fn identity(&mut self, fh: &Fh) -> Outcome<Vec<u8>> {
        Ok(fh.clone())
    }
    fn limits(&self) -> Limits;
    /// What spares the next connection to ask again for it: the port, and the root's handle (version 3).
    fn shortcut(&self) -> Option<(u16, Fh)> {
        None
    }
    fn lookup(&mut self, dir: &Fh, name: &[u8]) -> Outcome<Node>;
    fn attr(&mut self, fh: &Fh) -> Outcome<Attr>;
    fn set(&mut self, fh: &Fh, set: &Set) -> Outcome<()>;
    /// Makes a file that must not exist.
    fn create(&mut self, dir: &Fh, name: &[u8], set: &Set) -> Outcome<Node>;
    /// Makes a small file that must not exist, with content that is on disk afterwards, and then sets attributes if there
    /// are any to be set `last`.
    fn put(&mut self, dir: &Fh, name: &[u8], content: &[u8], set: &Set, last: Option<&Set>) -> Outcome<Node>;
    /// A small file's handle, attributes and content.
    fn get(&mut self, dir: &Fh, name: &[u8]) -> Outcome<(Node, Vec<u8>)>;
    fn make(&mut self, dir: &Fh, name: &[u8], what: &Special<'_>, set: &Set) -> Outcome<Node>;
    /// Fewer bytes than asked only at the end of the file, or at the server's wish; whether the end was reached.
    fn read(&mut self, fh: &Fh, at: u64, count: u32) -> Outcome<(Vec<u8>, bool)>;
    fn write(&mut self, fh: &Fh, at: u64, data: &[u8]) -> Outcome<Written>;
    /// Makes writes durable; the verifier.
    fn commit(&mut self, fh: &Fh) -> Outcome<[u8; 8]>;
    fn list(&mut self, dir: &Fh, from: Cursor) -> Outcome<Listing>;
    /// Removes what is no directory (version 4 also an empty directory).
    fn remove(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()>;
    fn remove_dir(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()>;
    fn rename(&mut self, from: &Fh, name: &[u8], to: &Fh, new: &[u8]) -> Outcome<()>;
    fn link(&mut self, fh: &Fh, dir: &Fh, name: &[u8]) -> Outcome<()>;
    fn readlink(&mut self, fh: &Fh) -> Outcome<Vec<u8>>;
    fn space(&mut self, fh: &Fh) -> Outcome<Space>;
    /// Has the server copy a whole file by itself (RFC 7862, CLONE). `false`: it cannot.
    fn clone_file(&mut self, from: &Fh, to: &Fh) -> Outcome<bool> {
        let _ = (from, to);
        Ok(false)
    }
    /// Names of the extended attributes (RFC 8276). `None`: the protocol or the server has none.
    fn xattrs(&mut self, fh: &Fh) -> Outcome<Option<Vec<Vec<u8>>>> {
        let _ = fh;
        Ok(None)
    }
    fn get_xattr(&mut self, fh: &Fh, name: &[u8]) -> Outcome<Vec<u8>> {
        let _ = (fh, name);
        Err(Fault::Status(Status::NOT_SUPPORTED))
    }
    fn set_xattr(&mut self, fh: &Fh, name: &[u8], value: &[u8]) -> Outcome<()> {
        let _ = (fh, name, value);
        Err(Fault::Status(Status::NOT_SUPPORTED))
    }
}

/// Which version is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// NFS 3 (RFC 1813).
    V3,
    /// NFS 4.1 (RFC 8881).
    V41,
    /// NFS 4.2 (RFC 7862).
    V42,
}

impl Version {
    /// As mount options have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::V3 => "3",
            Self::V41 => "4.1",
            Self::V42 => "4.2",
        }
    }

    /// From what mount options have.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::V3, Self::V41, Self::V42].into_iter().find(|version| version.word() == text)
    }
}

/// How a server is reached.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// The share's path as the server exports it.
    pub(super) path: String,
    /// The port of NFS; `None`: as the port mapper says (version 3), or 2049.
    pub(super) port: Option<u16>,
    /// The port of the mount protocol (version 3); `None`: as the port mapper says.
    pub(super) mount_port: Option<u16>,
    /// The user and group that calls are made as.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Whether calls come from a port below 1024 where this process may have one.
    pub(super) privileged: bool,
    /// How long one call may take.
    pub(super) timeout: Duration,
    /// When connecting must be over.
    pub(super) until: Instant,
    /// See [`Session::shortcut`].
    pub(super) shortcut: Option<(u16, Fh)>,
}

/// Connects.
pub(super) fn connect(version: Version, address: SocketAddr, to: &Endpoint) -> Outcome<Box<dyn Session>> {
    Ok(match version {
        Version::V3 => Box::new(v3::Session3::connect(address, to)?),
        Version::V41 => Box::new(v4::Session4::connect(address, to, 1)?),
        Version::V42 => Box::new(v4::Session4::connect(address, to, 2)?),
    })
}
