//! The same calls on a directory of this machine: for a share that is local, for `client: mount`, and for tests that
//! need no server. A handle is a path below the directory.

use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, StatxFlags, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, Uid, chownat, linkat, mkdirat, mknodat, openat, openat2, renameat, statx,
    unlinkat, utimensat,
};

use super::client::{
    Attr, Cursor, Entry, Fault, Fh, Kind, Limits, Listing, Node, Outcome, Session, Set, Space, Special,
    Stamp, Status, Time, Who, Written,
};
use crate::tree::{fd_path, is_dot};

/// A step from one directory to the next.
const STAY: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);
/// How many entries one listing gives.
const PAGE: usize = 512;

/// A directory in the place of a connection.
pub(super) struct LocalSession {
    root: PathBuf,
    /// A directory that is being listed, as it was at the beginning.
    listing: Option<(Fh, Vec<Vec<u8>>)>,
}

/// A name in a directory that is held open.
struct Place<'a> {
    dir: OwnedFd,
    name: &'a [u8],
}

fn status(error: &io::Error) -> Fault {
    let number = match error.raw_os_error() {
        // Errno of Linux and status of NFS differ in these.
        Some(libc_errno) => match libc_errno {
            36 => Status::NAME_TOO_LONG.0,
            39 => Status::NOT_EMPTY.0,
            40 => Status::SYMLINK.0,
            95 => Status::NOT_SUPPORTED.0,
            116 => Status::STALE.0,
            122 => Status::QUOTA.0,
            small => small.unsigned_abs(),
        },
        None => Status::IO.0,
    };
    Fault::Status(Status(number))
}

fn done<T, E: Into<io::Error>>(result: Result<T, E>) -> Outcome<T> {
    result.map_err(|error| status(&error.into()))
}

impl LocalSession {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, listing: None }
    }

    /// Where a handle leads: users write here, so no symbolic link is followed and no mount entered on the way.
    fn place<'a>(&self, fh: &'a Fh) -> Outcome<Place<'a>> {
        let (dir, name) = match fh.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&fh[..at], &fh[at + 1..]),
            None if fh.is_empty() => (&b"."[..], &b"."[..]),
            None => (&b"."[..], fh.as_slice()),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = done(openat(CWD, &self.root, flags, Mode::empty()))?;
        let dir = done(openat2(&root, dir, flags, Mode::empty(), STAY))?;
        Ok(Place { dir, name })
    }

    /// What a handle leads to, whatever it is: opened so that it can be looked at and changed, and no name that is
    /// exchanged meanwhile leads elsewhere.
    fn pin(&self, fh: &Fh) -> Outcome<File> {
        let at = self.place(fh)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        done(openat2(&at.dir, at.name, flags, Mode::empty(), STAY)).map(File::from)
    }

    fn child(dir: &Fh, name: &[u8]) -> Fh {
        if dir.is_empty() { name.to_vec() } else { [dir.as_slice(), b"/", name].concat() }
    }

    fn node(&self, fh: Fh) -> Outcome<Node> {
        let attr = self.stat(&fh)?;
        Ok(Node { fh, attr })
    }

    fn stat(&self, fh: &Fh) -> Outcome<Attr> {
        done(self.pin(fh)?.metadata()).map(|meta| attr(&meta))
    }

    fn open(&self, fh: &Fh, write: bool) -> Outcome<File> {
        done(open_file(&self.pin(fh)?, if write { OFlags::WRONLY } else { OFlags::RDONLY }))
    }

    fn apply(node: &File, set: &Set) -> io::Result<()> {
        let id = |who: &Option<Who>| match who {
            Some(Who::Id(id)) => Some(*id),
            _ => None,
        };
        let (uid, gid) = (id(&set.owner).map(Uid::from_raw), id(&set.group).map(Gid::from_raw));
        if uid.is_some() || gid.is_some() {
            chownat(node, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = set.size {
            open_file(node, OFlags::WRONLY)?.set_len(size)?;
        }
        let path = fd_path(node);
        let link = node.metadata()?.is_symlink();
        if let Some(mode) = set.mode.filter(|_| !link) {
            // chown(2) clears set-id bits, so the mode comes after.
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode))?;
        }
        let time = |stamp: Option<Stamp>| match stamp {
            None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            Some(Stamp::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            Some(Stamp::At(time)) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() },
        };
        if set.atime.is_some() || set.mtime.is_some() {
            let times = Timestamps { last_access: time(set.atime), last_modification: time(set.mtime) };
            utimensat(CWD, path, &times, AtFlags::empty())?;
        }
        Ok(())
    }

    fn create_new(&self, dir: &Fh, name: &[u8], set: &Set) -> Outcome<(Fh, File)> {
        let fh = Self::child(dir, name);
        let at = self.place(&fh)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(done(openat(&at.dir, at.name, flags, Mode::RUSR | Mode::WUSR))?);
        done(Self::apply(&file, set))?;
        Ok((fh, file))
    }
}

/// Opens the inode that is pinned, if it is a regular file: no FIFO is waited for, no device touched.
fn open_file(node: &File, how: OFlags) -> io::Result<File> {
    if !node.metadata()?.is_file() {
        return Err(rustix::io::Errno::INVAL.into());
    }
    Ok(openat(CWD, fd_path(node), how | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).map(File::from)?)
}

fn open_dir(node: &File) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, fd_path(node), flags, Mode::empty())
}

fn attr(meta: &Metadata) -> Attr {
    let kind = match FileType::from_raw_mode(meta.mode()) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::Block,
        FileType::CharacterDevice => Kind::Char,
        _ => Kind::File,
    };
    let time = |seconds, nanos: i64| Time { seconds, nanos: u32::try_from(nanos).unwrap_or(0) };
    Attr {
        kind,
        mode: meta.mode() & 0o7777,
        links: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        owner: Who::Id(meta.uid()),
        group: Who::Id(meta.gid()),
        size: meta.size(),
        used: meta.blocks() * 512,
        device: (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())),
        id: meta.ino(),
        fsid: (meta.dev(), 0),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
    }
}

impl Session for LocalSession {
    fn root(&self) -> Fh {
        Fh::new()
    }

    fn version(&self) -> &'static str {
        "local"
    }

    /// A path says nothing, so it is the number and when it was given, where the file system keeps that.
    fn identity(&mut self, fh: &Fh) -> Outcome<Vec<u8>> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let stat = done(statx(self.pin(fh)?, c"", AtFlags::EMPTY_PATH, wanted))?;
        let known = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born = if known { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) };
        Ok([&stat.stx_ino.to_be_bytes()[..], &born.0.to_be_bytes(), &born.1.to_be_bytes()].concat())
    }

    fn limits(&self) -> Limits {
        Limits { read: 1 << 20, write: 1 << 20 }
    }

    fn lookup(&mut self, dir: &Fh, name: &[u8]) -> Outcome<Node> {
        self.node(Self::child(dir, name))
    }

    fn attr(&mut self, fh: &Fh) -> Outcome<Attr> {
        // A handle of a file that is gone is stale.
        self.stat(fh)
            .map_err(|fault| if fault.is(Status::NO_ENTRY) { Fault::Status(Status::STALE) } else { fault })
    }

    fn set(&mut self, fh: &Fh, set: &Set) -> Outcome<()> {
        done(Self::apply(&self.pin(fh)?, set))
    }

    fn create(&mut self, dir: &Fh, name: &[u8], set: &Set) -> Outcome<Node> {
        let (fh, _) = self.create_new(dir, name, set)?;
        self.node(fh)
    }

    fn put(&mut self, dir: &Fh, name: &[u8], content: &[u8], set: &Set, last: Option<&Set>) -> Outcome<Node> {
        let (fh, mut file) = self.create_new(dir, name, set)?;
        done(file.write_all(content).and_then(|()| file.sync_all()))?;
        if let Some(last) = last {
            self.set(&fh, last)?;
        }
        self.node(fh)
    }

    fn get(&mut self, dir: &Fh, name: &[u8]) -> Outcome<(Node, Vec<u8>)> {
        // Of a mounted share the kernel asks the server for a directory when it is opened (nfs(5), "Close-to-open"), and
        // then sees which of the names that it remembers are old.
        done(open_dir(&self.pin(dir)?))?;
        let node = self.node(Self::child(dir, name))?;
        let content = match node.attr.kind {
            Kind::File => self.read(&node.fh, 0, 1 << 20)?.0,
            _ => Vec::new(),
        };
        Ok((node, content))
    }

    fn make(&mut self, dir: &Fh, name: &[u8], what: &Special<'_>, set: &Set) -> Outcome<Node> {
        let fh = Self::child(dir, name);
        let at = self.place(&fh)?;
        let node = |kind, device| mknodat(&at.dir, at.name, kind, Mode::from_raw_mode(0o600), device);
        let made = match what {
            Special::Directory => mkdirat(&at.dir, at.name, Mode::from_raw_mode(0o700)),
            Special::Link(to) => rustix::fs::symlinkat(to.as_ref(), &at.dir, at.name),
            Special::Fifo => node(FileType::Fifo, 0),
            Special::Socket => node(FileType::Socket, 0),
            Special::Block(major, minor) => node(FileType::BlockDevice, rustix::fs::makedev(*major, *minor)),
            Special::Char(major, minor) => {
                node(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor))
            }
        };
        done(made)?;
        done(Self::apply(&self.pin(&fh)?, set))?;
        self.node(fh)
    }

    fn read(&mut self, fh: &Fh, at: u64, count: u32) -> Outcome<(Vec<u8>, bool)> {
        let file = self.open(fh, false)?;
        let size = done(file.metadata())?.len();
        let room = size.saturating_sub(at).min(u64::from(count));
        let mut buffer = vec![0; usize::try_from(room).unwrap_or(0)];
        let read = done(file.read_at(&mut buffer, at))?;
        buffer.truncate(read);
        Ok((buffer, at + read as u64 >= size))
    }

    fn write(&mut self, fh: &Fh, at: u64, data: &[u8]) -> Outcome<Written> {
        done(self.open(fh, true)?.write_all_at(data, at))?;
        Ok(Written { count: u32::try_from(data.len()).unwrap_or(u32::MAX), durable: false, verifier: [0; 8] })
    }

    fn commit(&mut self, fh: &Fh) -> Outcome<[u8; 8]> {
        done(self.open(fh, true)?.sync_all())?;
        Ok([0; 8])
    }

    fn list(&mut self, dir: &Fh, from: Cursor) -> Outcome<Listing> {
        let start = usize::try_from(from.cookie).unwrap_or(usize::MAX);
        if start == 0 || self.listing.as_ref().is_none_or(|(of, _)| of != dir) {
            let entries = done(Dir::read_from(&done(open_dir(&self.pin(dir)?))?))?;
            let names = entries.map(|entry| Ok(entry?.file_name().to_owned()));
            let names = done(names.collect::<Result<Vec<_>, rustix::io::Errno>>())?;
            let names = names.into_iter().filter(|name| !is_dot(name));
            let mut names: Vec<_> = names.map(std::ffi::CString::into_bytes).collect();
            names.sort();
            self.listing = Some((dir.clone(), names));
        }
        let names = self.listing.as_ref().map(|(_, names)| names.as_slice()).unwrap_or_default();
        let page: Vec<_> = names.iter().skip(start).take(PAGE).cloned().collect();
        let end = start + page.len();
        let more = end < names.len();
        let entry = |name: Vec<u8>| Entry { node: self.node(Self::child(dir, &name)).ok(), name };
        let entries = page.into_iter().map(entry).collect();
        Ok(Listing { entries, next: more.then_some(Cursor { cookie: end as u64, verifier: [0; 8] }) })
    }

    fn remove(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        let fh = Self::child(dir, name);
        let at = self.place(&fh)?;
        done(unlinkat(&at.dir, at.name, AtFlags::empty()))
    }

    fn remove_dir(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        let fh = Self::child(dir, name);
        let at = self.place(&fh)?;
        done(unlinkat(&at.dir, at.name, AtFlags::REMOVEDIR))
    }

    fn rename(&mut self, from: &Fh, name: &[u8], to: &Fh, new: &[u8]) -> Outcome<()> {
        let (from, to) = (Self::child(from, name), Self::child(to, new));
        let (from, to) = (self.place(&from)?, self.place(&to)?);
        done(renameat(&from.dir, from.name, &to.dir, to.name))
    }

    fn link(&mut self, fh: &Fh, dir: &Fh, name: &[u8]) -> Outcome<()> {
        let to = Self::child(dir, name);
        let (from, to) = (self.place(fh)?, self.place(&to)?);
        done(linkat(&from.dir, from.name, &to.dir, to.name, AtFlags::empty()))
    }

    fn readlink(&mut self, fh: &Fh) -> Outcome<Vec<u8>> {
        done(rustix::fs::readlinkat(self.pin(fh)?, c"", Vec::new())).map(std::ffi::CString::into_bytes)
    }

    fn space(&mut self, fh: &Fh) -> Outcome<Space> {
        let stat = done(rustix::fs::fstatvfs(self.pin(fh)?))?;
        Ok(Space { total: stat.f_blocks * stat.f_frsize, available: stat.f_bavail * stat.f_frsize })
    }

    fn clone_file(&mut self, from: &Fh, to: &Fh) -> Outcome<bool> {
        let (from, to) = (self.open(from, false)?, self.open(to, true)?);
        Ok(rustix::fs::ioctl_ficlone(&to, &from).is_ok())
    }

    fn xattrs(&mut self, fh: &Fh) -> Outcome<Option<Vec<Vec<u8>>>> {
        let mut buffer = vec![0; 64 << 10];
        match rustix::fs::listxattr(fd_path(&self.pin(fh)?), &mut buffer) {
            Ok(length) => {
                let names =
                    buffer[..length].split(|b| *b == 0).filter_map(|name| name.strip_prefix(b"user."));
                Ok(Some(names.map(<[u8]>::to_vec).collect()))
            }
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => done(Err(errno)),
        }
    }

    fn get_xattr(&mut self, fh: &Fh, name: &[u8]) -> Outcome<Vec<u8>> {
        let mut buffer = vec![0; 64 << 10];
        let name = [b"user.", name].concat();
        let length = done(rustix::fs::getxattr(fd_path(&self.pin(fh)?), name, &mut buffer))?;
        buffer.truncate(length);
        Ok(buffer)
    }

    fn set_xattr(&mut self, fh: &Fh, name: &[u8], value: &[u8]) -> Outcome<()> {
        let name = [b"user.", name].concat();
        done(rustix::fs::setxattr(fd_path(&self.pin(fh)?), name, value, rustix::fs::XattrFlags::empty()))
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
