//! An NFS client in user space: what the backend asks of a server, for both versions of the protocol.
//!
//! A [`Session`] is one connection and makes one call at a time; [`super::share::Share`] keeps several.

mod v3;
mod v4;
mod wire;
mod xdr;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub(super) use wire::{random, resolve};

/// A file handle: opaque bytes of the server.
pub(super) type Fh = Vec<u8>;

/// The answer to a call.
pub(super) type Outcome<T> = Result<T, Fault>;

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

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The server's answer.
    Status(Status),
    /// The connection broke, or could not be made: whether the call was done is not known.
    Lost(io::Error),
    /// No answer in time.
    Slow(Duration),
    /// The server does not let us in; what it said.
    Denied(String),
    /// The server does not speak this version.
    NoVersion(String),
    /// The server's answer makes no sense.
    Protocol(String),
}

/// A status of NFS. Versions 3 and 4 share most numbers (RFC 1813, 2.6; RFC 8881, 15.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(pub(super) u32);

macro_rules! statuses {
    ($($name:ident $number:literal $text:literal;)*) => {
        impl Status {
            $(pub(super) const $name: Self = Self($number);)*
        }

        impl fmt::Display for Status {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($number => f.write_str($text),)*
                    other => write!(f, "NFS status {other}"),
                }
            }
        }
    };
}

statuses! {
    PERM 1 "not permitted";
    NO_ENTRY 2 "no such file or directory";
    IO 5 "input/output error";
    ACCESS 13 "access denied";
    EXISTS 17 "it exists";
    NOT_DIRECTORY 20 "not a directory";
    IS_DIRECTORY 21 "is a directory";
    INVALID 22 "invalid argument";
    NO_SPACE 28 "no space left";
    READ_ONLY 30 "read-only file system";
    NAME_TOO_LONG 63 "name too long";
    NOT_EMPTY 66 "not empty";
    QUOTA 69 "quota exceeded";
    STALE 70 "stale file handle";
    BAD_HANDLE 10001 "bad file handle";
    BAD_COOKIE 10003 "bad cookie";
    NOT_SUPPORTED 10004 "not supported";
    SERVER_FAULT 10006 "server fault";
    DELAY 10008 "the server asks to try later";
    EXPIRED 10011 "the lease has expired";
    GRACE 10013 "the server is in its grace period after a start";
    WRONG_SECURITY 10016 "wrong security flavor";
    MINOR_VERSION 10021 "minor version not supported";
    STALE_CLIENT 10022 "the server does not know this client";
    SYMLINK 10029 "is a symbolic link";
    BAD_SESSION 10052 "the server does not know this session";
    DEAD_SESSION 10078 "the session has ended";
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({})", self.0)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Lost(error) => write!(f, "{error}"),
            Self::Slow(limit) => write!(f, "no answer in {} s", limit.as_secs()),
            Self::Denied(text) | Self::NoVersion(text) | Self::Protocol(text) => f.write_str(text),
        }
    }
}

impl Fault {
    /// Whether it is this status.
    pub(super) fn is(&self, status: Status) -> bool {
        matches!(self, Self::Status(has) if *has == status)
    }

    /// Whether the connection cannot be used again.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::Status(status) => status.ends_session(),
            Self::NoVersion(_) => false,
            _ => true,
        }
    }

    /// Whether it says something of the whole share, not of one file.
    pub(super) fn is_of_share(&self) -> bool {
        !matches!(self, Self::Status(status) if !status.ends_session() && *status != Status::GRACE)
    }

    /// Whether nobody answered at all.
    pub(super) fn is_silence(&self) -> bool {
        match self {
            Self::Slow(_) => true,
            Self::Lost(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// Whether another try may succeed.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Status(status) => status.ends_session() || [Status::DELAY, Status::GRACE].contains(status),
            Self::Lost(_) => true,
            _ => false,
        }
    }
}

impl Status {
    fn ends_session(self) -> bool {
        [Self::EXPIRED, Self::STALE_CLIENT, Self::BAD_SESSION, Self::DEAD_SESSION].contains(&self)
    }
}

/// `Ok(None)` where there is no such file.
pub(super) fn found<T>(outcome: Outcome<T>) -> Outcome<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(fault) if fault.is(Status::NO_ENTRY) => Ok(None),
        Err(fault) => Err(fault),
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
