//! NFS version 3 (RFC 1813) by `nfs3_client`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nfs3_client::nfs3_types::mount::dirpath;
use nfs3_client::nfs3_types::nfs3::{
    COMMIT3args, CREATE3args, FSINFO3args, FSSTAT3args, GETATTR3args, LINK3args, LOOKUP3args, MKDIR3args,
    MKNOD3args, Nfs3Option, Nfs3Result, PROGRAM, READ3args, READDIRPLUS3args, READLINK3args, REMOVE3args,
    RENAME3args, RMDIR3args, SETATTR3args, SYMLINK3args, VERSION, WRITE3args, cookieverf3, createhow3,
    devicedata3, diropargs3, fattr3, filename3, ftype3, mknoddata3, nfs_fh3, nfspath3, nfstime3,
    post_op_attr, post_op_fh3, sattr3, set_atime, set_mtime, specdata3, stable_how, symlinkdata3,
};
use nfs3_client::nfs3_types::portmap::PMAP_PORT;
use nfs3_client::nfs3_types::rpc::opaque_auth;
use nfs3_client::nfs3_types::xdr_codec::Opaque;
use nfs3_client::{MountClient, MountError, Nfs3Client, PortmapError, PortmapperClient};

use super::wire::{Link, Wire, at_once, credential, fault};
use super::{
    Attr, Cursor, Endpoint, Entry, Fault, Fh, Kind, Limits, Listing, Node, Outcome, Session, Set, Space,
    Special, Stamp, Status, Time, Who, Written,
};

const MOUNT_PROGRAM: u32 = 100_005;
const TCP: u32 = 6;
/// What one page of a directory may have, in bytes.
const PAGE: u32 = 64 << 10;

/// One connection of version 3.
pub(super) struct Session3 {
    client: Nfs3Client<Wire>,
    link: Arc<Link>,
    root: Fh,
    port: u16,
    limits: Limits,
    timeout: Duration,
}

/// The answer's result, the status of a failure as a fault.
fn value<T, E>(result: Nfs3Result<T, E>) -> Outcome<T> {
    match result {
        Nfs3Result::Ok(value) => Ok(value),
        Nfs3Result::Err((status, _)) => Err(Fault::Status(Status(status as u32))),
    }
}

macro_rules! call {
    ($self:ident, $name:ident, $args:expr) => {
        value(at_once($self.timeout, $self.client.$name(&$args))?)
    };
}

impl Session3 {
    pub(super) fn connect(address: SocketAddr, to: &Endpoint) -> Outcome<Self> {
        let (port, root) = match (&to.shortcut, to.port) {
            (Some((port, root)), _) => (*port, root.clone()),
            (None, Some(port)) => (port, mount(address, to)?),
            (None, None) => (mapped(address, to, PROGRAM, VERSION)?, mount(address, to)?),
        };
        let wire = Wire::connect(address, port, to)?;
        let link = wire.link();
        let client = Nfs3Client::new_with_auth(wire, credential(to), opaque_auth::default());
        let limits = Limits { read: 0, write: 0 };
        let mut session = Self { client, link, root, port, limits, timeout: to.timeout };
        let info = call!(session, fsinfo, FSINFO3args { fsroot: handle(&session.root) })?;
        session.limits =
            Limits { read: info.rtmax.clamp(4096, 1 << 20), write: info.wtmax.clamp(4096, 1 << 20) };
        Ok(session)
    }

    /// A new object: servers may leave out its handle or attributes.
    fn made(&mut self, dir: &Fh, name: &[u8], fh: post_op_fh3, attr: post_op_attr) -> Outcome<Node> {
        match (fh, attr) {
            (Nfs3Option::Some(fh), Nfs3Option::Some(attr)) => Ok(node(fh, &attr)),
            _ => self.lookup(dir, name),
        }
    }
}

/// The port of a program (RFC 1833).
fn mapped(address: SocketAddr, to: &Endpoint, program: u32, version: u32) -> Outcome<u16> {
    let mut mapper = PortmapperClient::new(Wire::connect(address, PMAP_PORT, to)?);
    let port = std::pin::pin!(mapper.getport(program, version, TCP));
    match super::wire::poll_once(port)? {
        Ok(port) => Ok(port),
        Err(PortmapError::Rpc(error)) => Err(fault(error, to.timeout)),
        Err(other) => Err(Fault::NoVersion(format!("the port mapper knows no program {program}: {other}"))),
    }
}

/// The root's handle, by the mount protocol (RFC 1813, appendix I).
fn mount(address: SocketAddr, to: &Endpoint) -> Outcome<Fh> {
    let port = match to.mount_port {
        Some(port) => port,
        None => mapped(address, to, MOUNT_PROGRAM, VERSION)?,
    };
    let mut client =
        MountClient::new_with_auth(Wire::connect(address, port, to)?, credential(to), opaque_auth::default());
    let path = dirpath(Opaque::owned(to.path.clone().into_bytes()));
    match super::wire::poll_once(std::pin::pin!(client.mnt(path)))? {
        Ok(mounted) => Ok(mounted.fhandle.0.to_vec()),
        Err(MountError::Rpc(error)) => Err(fault(error, to.timeout)),
        Err(MountError::Denied(why)) => {
            Err(Fault::Denied(format!("the server does not export {} to us: {why:?}", to.path)))
        }
    }
}

impl Session for Session3 {
    fn until(&mut self, until: Instant) {
        self.link.until(until);
    }

    fn root(&self) -> Fh {
        self.root.clone()
    }

    fn version(&self) -> &'static str {
        "3"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn shortcut(&self) -> Option<(u16, Fh)> {
        Some((self.port, self.root.clone()))
    }

    fn lookup(&mut self, dir: &Fh, name: &[u8]) -> Outcome<Node> {
        let found = call!(self, lookup, LOOKUP3args { what: at(dir, name) })?;
        match found.obj_attributes {
            Nfs3Option::Some(attr) => Ok(node(found.object, &attr)),
            Nfs3Option::None => {
                let fh = found.object.data.to_vec();
                Ok(Node { attr: self.attr(&fh)?, fh })
            }
        }
    }

    fn attr(&mut self, fh: &Fh) -> Outcome<Attr> {
        Ok(attr(&call!(self, getattr, GETATTR3args { object: handle(fh) })?.obj_attributes))
    }

    fn set(&mut self, fh: &Fh, set: &Set) -> Outcome<()> {
        let args = SETATTR3args { object: handle(fh), new_attributes: sattr(set)?, guard: Nfs3Option::None };
        call!(self, setattr, args).map(drop)
    }

    fn create(&mut self, dir: &Fh, name: &[u8], set: &Set) -> Outcome<Node> {
        let made = call!(
            self,
            create,
            CREATE3args { where_: at(dir, name), how: createhow3::GUARDED(sattr(set)?) }
        )?;
        self.made(dir, name, made.obj, made.obj_attributes)
    }

    fn put(&mut self, dir: &Fh, name: &[u8], content: &[u8], set: &Set, last: Option<&Set>) -> Outcome<Node> {
        let node = self.create(dir, name, set)?;
        let args = WRITE3args {
            file: handle(&node.fh),
            offset: 0,
            count: u32::try_from(content.len()).unwrap_or(u32::MAX),
            stable: stable_how::FILE_SYNC,
            data: Opaque::borrowed(content),
        };
        let written = call!(self, write, args)?;
        if written.count as usize != content.len() || written.committed != stable_how::FILE_SYNC {
            return Err(Fault::Protocol("the server took a part of a small write only".into()));
        }
        if let Some(last) = last {
            self.set(&node.fh, last)?;
        }
        Ok(node)
    }

    fn get(&mut self, dir: &Fh, name: &[u8]) -> Outcome<(Node, Vec<u8>)> {
        let node = self.lookup(dir, name)?;
        let content = if node.attr.kind == Kind::File && node.attr.size > 0 {
            self.read(&node.fh, 0, self.limits.read)?.0
        } else {
            Vec::new()
        };
        Ok((node, content))
    }

    fn make(&mut self, dir: &Fh, name: &[u8], what: &Special<'_>, set: &Set) -> Outcome<Node> {
        let (place, set) = (at(dir, name), sattr(set)?);
        let device = |major, minor| devicedata3 {
            dev_attributes: set.clone(),
            spec: specdata3 { specdata1: major, specdata2: minor },
        };
        let what = match what {
            Special::Directory => {
                let made = call!(self, mkdir, MKDIR3args { where_: place, attributes: set })?;
                return self.made(dir, name, made.obj, made.obj_attributes);
            }
            Special::Link(to) => {
                let symlink =
                    symlinkdata3 { symlink_attributes: set, symlink_data: nfspath3(Opaque::borrowed(to)) };
                let made = call!(self, symlink, SYMLINK3args { where_: place, symlink })?;
                return self.made(dir, name, made.obj, made.obj_attributes);
            }
            Special::Fifo => mknoddata3::NF3FIFO(set),
            Special::Socket => mknoddata3::NF3SOCK(set),
            Special::Block(major, minor) => mknoddata3::NF3BLK(device(*major, *minor)),
            Special::Char(major, minor) => mknoddata3::NF3CHR(device(*major, *minor)),
        };
        let made = call!(self, mknod, MKNOD3args { where_: place, what })?;
        self.made(dir, name, made.obj, made.obj_attributes)
    }

    fn read(&mut self, fh: &Fh, at: u64, count: u32) -> Outcome<(Vec<u8>, bool)> {
        let args = READ3args { file: handle(fh), offset: at, count: count.min(self.limits.read) };
        let read = call!(self, read, args)?;
        Ok((read.data.into_owned(), read.eof))
    }

    fn write(&mut self, fh: &Fh, at: u64, data: &[u8]) -> Outcome<Written> {
        let args = WRITE3args {
            file: handle(fh),
            offset: at,
            count: u32::try_from(data.len()).unwrap_or(u32::MAX),
            stable: stable_how::UNSTABLE,
            data: Opaque::borrowed(data),
        };
        let written = call!(self, write, args)?;
        let durable = written.committed != stable_how::UNSTABLE;
        Ok(Written { count: written.count, durable, verifier: written.verf.0 })
    }

    fn commit(&mut self, fh: &Fh) -> Outcome<[u8; 8]> {
        Ok(call!(self, commit, COMMIT3args { file: handle(fh), offset: 0, count: 0 })?.verf.0)
    }

    fn list(&mut self, dir: &Fh, from: Cursor) -> Outcome<Listing> {
        let args = READDIRPLUS3args {
            dir: handle(dir),
            cookie: from.cookie,
            cookieverf: cookieverf3(from.verifier),
            dircount: PAGE / 4,
            maxcount: PAGE,
        };
        let page = call!(self, readdirplus, args)?;
        let verifier = page.cookieverf.0;
        let (mut entries, mut last) = (Vec::new(), from.cookie);
        for entry in page.reply.entries.into_inner() {
            last = entry.cookie;
            let name = entry.name.as_ref().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            let node = match (entry.name_handle, entry.name_attributes) {
                (Nfs3Option::Some(fh), Nfs3Option::Some(attr)) => Some(node(fh, &attr)),
                _ => None,
            };
            entries.push(Entry { name, node });
        }
        let more = !page.reply.eof && last != from.cookie;
        Ok(Listing { entries, next: more.then_some(Cursor { cookie: last, verifier }) })
    }

    fn remove(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        call!(self, remove, REMOVE3args { object: at(dir, name) }).map(drop)
    }

    fn remove_dir(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        call!(self, rmdir, RMDIR3args { object: at(dir, name) }).map(drop)
    }

    fn rename(&mut self, from: &Fh, name: &[u8], to: &Fh, new: &[u8]) -> Outcome<()> {
        call!(self, rename, RENAME3args { from: at(from, name), to: at(to, new) }).map(drop)
    }

    fn link(&mut self, fh: &Fh, dir: &Fh, name: &[u8]) -> Outcome<()> {
        call!(self, link, LINK3args { file: handle(fh), link: at(dir, name) }).map(drop)
    }

    fn readlink(&mut self, fh: &Fh) -> Outcome<Vec<u8>> {
        Ok(call!(self, readlink, READLINK3args { symlink: handle(fh) })?.data.0.into_owned())
    }

    fn space(&mut self, fh: &Fh) -> Outcome<Space> {
        let stat = call!(self, fsstat, FSSTAT3args { fsroot: handle(fh) })?;
        Ok(Space { total: stat.tbytes, available: stat.abytes })
    }
}

fn handle(fh: &Fh) -> nfs_fh3 {
    nfs_fh3 { data: Opaque::owned(fh.clone()) }
}

fn at<'a>(dir: &Fh, name: &'a [u8]) -> diropargs3<'a> {
    diropargs3 { dir: handle(dir), name: filename3(Opaque::borrowed(name)) }
}

fn node(fh: nfs_fh3, has: &fattr3) -> Node {
    Node { fh: fh.data.into_owned(), attr: attr(has) }
}

fn attr(has: &fattr3) -> Attr {
    let kind = match has.type_ {
        ftype3::NF3REG => Kind::File,
        ftype3::NF3DIR => Kind::Directory,
        ftype3::NF3BLK => Kind::Block,
        ftype3::NF3CHR => Kind::Char,
        ftype3::NF3LNK => Kind::Link,
        ftype3::NF3SOCK => Kind::Socket,
        ftype3::NF3FIFO => Kind::Fifo,
    };
    let time = |t: nfstime3| Time { seconds: i64::from(t.seconds), nanos: t.nseconds };
    Attr {
        kind,
        mode: has.mode & 0o7777,
        links: has.nlink,
        owner: Who::Id(has.uid),
        group: Who::Id(has.gid),
        size: has.size,
        used: has.used,
        device: (has.rdev.specdata1, has.rdev.specdata2),
        id: has.fileid,
        fsid: (has.fsid, 0),
        atime: time(has.atime),
        mtime: time(has.mtime),
        ctime: time(has.ctime),
    }
}

fn sattr(set: &Set) -> Outcome<sattr3> {
    let id = |who: &Option<Who>| match who {
        None => Ok(Nfs3Option::None),
        Some(Who::Id(id)) => Ok(Nfs3Option::Some(*id)),
        Some(Who::Name(name)) => Err(Fault::Protocol(format!(
            "version 3 has no owner {:?}, only numbers",
            String::from_utf8_lossy(name)
        ))),
    };
    let option = |value: Option<u32>| value.map_or(Nfs3Option::None, Nfs3Option::Some);
    // Times are unsigned seconds here: before 1970 becomes 1970.
    let time = |t: Time| nfstime3 {
        seconds: u32::try_from(t.seconds.max(0)).unwrap_or(u32::MAX),
        nseconds: t.nanos,
    };
    Ok(sattr3 {
        mode: option(set.mode),
        uid: id(&set.owner)?,
        gid: id(&set.group)?,
        size: set.size.map_or(Nfs3Option::None, Nfs3Option::Some),
        atime: match set.atime {
            None => set_atime::DONT_CHANGE,
            Some(Stamp::Now) => set_atime::SET_TO_SERVER_TIME,
            Some(Stamp::At(t)) => set_atime::SET_TO_CLIENT_TIME(time(t)),
        },
        mtime: match set.mtime {
            None => set_mtime::DONT_CHANGE,
            Some(Stamp::Now) => set_mtime::SET_TO_SERVER_TIME,
            Some(Stamp::At(t)) => set_mtime::SET_TO_CLIENT_TIME(time(t)),
        },
    })
}
