//! NFS version 4.1 (RFC 8881) and 4.2 (RFC 7862): one session of one slot a connection, no open files, no delegations.
//!
//! Reads and writes use the special anonymous state, so that nothing of ours has to be recovered when a server starts
//! again: a session that it does not know any more is made anew.

mod attrs;
mod compound;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nfs3_client::nfs3_types::rpc::opaque_auth;
use nfs3_client::rpc::RpcClient;

use super::wire::{Link, Wire, at_once, credential, random};
use super::xdr::Reader;
use super::{
    Attr, Cursor, Endpoint, Entry, Fault, Fh, Limits, Listing, Node, Outcome, Session, Set, Space, Special,
    Status, Written,
};
use compound::{Answer, FILE_SYNC, Request};

const PROGRAM: u32 = 100_003;
const VERSION: u32 = 4;
const COMPOUND: u32 = 1;
const PORT: u16 = 2049;
/// The largest request and answer: a megabyte of data and its envelope.
const LARGEST: u32 = (1 << 20) + 8192;
const PAGE: u32 = 64 << 10;

/// One connection of version 4.
pub(super) struct Session4 {
    rpc: RpcClient<Wire>,
    link: Arc<Link>,
    minor: u32,
    client: u64,
    session: [u8; 16],
    sequence: u32,
    root: Fh,
    limits: Limits,
    timeout: Duration,
    /// The server has said that it cannot: CLONE, extended attributes.
    no_clone: bool,
    no_xattrs: bool,
}

impl Session4 {
    pub(super) fn connect(address: SocketAddr, to: &Endpoint, minor: u32) -> Outcome<Self> {
        let wire = Wire::connect(address, to.port.unwrap_or(PORT), to)?;
        let link = wire.link();
        let mut it = Self {
            link,
            rpc: RpcClient::new_with_auth(wire, credential(to), opaque_auth::default()),
            minor,
            client: 0,
            session: [0; 16],
            sequence: 0,
            root: Fh::new(),
            limits: Limits { read: 1 << 20, write: 1 << 20 },
            timeout: to.timeout,
            no_clone: minor < 2,
            no_xattrs: minor < 2,
        };
        it.introduce()?;
        it.find_root(&to.path)?;
        Ok(it)
    }

    /// Makes the session (RFC 8881, 18.35 and 18.36).
    fn introduce(&mut self) -> Outcome<()> {
        // Each connection is a client of its own, so that none disturbs another.
        let owner = [&b"volumectl-"[..], &random::<16>()].concat();
        let verifier = random();
        let mut request = Request::new(self.minor);
        request.exchange_id(&owner, &verifier);
        let mut answer = self.send(request)?;
        let reader = answer.next()?;
        self.client = reader.u64()?;
        let sequence = reader.u32()?;
        let mut request = Request::new(self.minor);
        request.create_session(self.client, sequence, LARGEST);
        let mut answer = self.send(request)?;
        let reader = answer.next()?;
        self.session.copy_from_slice(reader.take(16)?);
        // Sequence, flags, then what the server allows: padding, largest request, largest answer.
        reader.take(12)?;
        let (request, answer) = (reader.u32()?, reader.u32()?);
        let room = |size: u32| size.saturating_sub(4096).clamp(4096, 1 << 20);
        self.limits = Limits { read: room(answer), write: room(request) };
        let mut request = self.request();
        request.reclaim_complete();
        match self.call(request) {
            // Some servers forget that one was made before.
            Ok(_) => Ok(()),
            Err(Fault::Status(status)) if !status.ends_session() && status != Status::DELAY => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Walks to the share. The path is that of the pseudo file system (RFC 8881, 7.3).
    fn find_root(&mut self, path: &str) -> Outcome<()> {
        let mut request = self.request();
        request.root();
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        for name in &names {
            request.lookup(name.as_bytes());
        }
        request.get_fh().attr(&[attrs::MAXREAD, attrs::MAXWRITE]);
        let mut answer = self.call(request)?;
        answer.skip(1 + names.len()).map_err(|fault| match fault {
            Fault::Status(Status::NO_ENTRY) => Fault::Denied(format!("the server exports no {path}")),
            other => other,
        })?;
        self.root = answer.next()?.bytes()?;
        let [read, write] = attrs::numbers(answer.next()?, [attrs::MAXREAD, attrs::MAXWRITE])?;
        let least = |limit: u32, server: Option<u64>| {
            server.and_then(|s| u32::try_from(s).ok()).filter(|s| *s >= 4096).map_or(limit, |s| s.min(limit))
        };
        self.limits = Limits { read: least(self.limits.read, read), write: least(self.limits.write, write) };
        Ok(())
    }

    fn send(&mut self, request: Request) -> Outcome<Answer> {
        let message = request.encode();
        let call = self.rpc.call::<_, Reader>(PROGRAM, VERSION, COMPOUND, &message);
        Answer::begin(at_once(self.timeout, call)?)
    }

    /// A request within the session.
    fn request(&mut self) -> Request {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Request::new(self.minor);
        request.sequence(&self.session, self.sequence);
        request
    }

    fn call(&mut self, request: Request) -> Outcome<Answer> {
        let mut answer = self.send(request)?;
        match answer.next() {
            Ok(reader) => reader.take(16 + 5 * 4)?,
            Err(fault) => {
                // The slot was not used (RFC 8881, 2.10.6.1.2).
                self.sequence = self.sequence.wrapping_sub(1);
                return Err(fault);
            }
        };
        Ok(answer)
    }

    /// Sends operations that begin at a file.
    fn at(&mut self, fh: &Fh, more: impl FnOnce(&mut Request) -> &mut Request) -> Outcome<Answer> {
        let mut request = self.request();
        more(request.fh(fh));
        let mut answer = self.call(request)?;
        answer.skip(1)?;
        Ok(answer)
    }

    fn open_new(
        &mut self,
        dir: &Fh,
        name: &[u8],
        content: Option<&[u8]>,
        set: &Set,
        last: Option<&Set>,
    ) -> Outcome<Node> {
        let client = self.client;
        let mut answer = self.at(dir, |request| {
            request.create_file(client, name, set);
            if let Some(content) = content {
                request.write_opened(content);
            }
            if let Some(last) = last {
                request.set_opened(last);
            }
            request.close().get_fh().file_attr()
        })?;
        answer.opened()?;
        if let Some(content) = content {
            let reader = answer.next()?;
            let (count, committed) = (reader.u32()?, reader.u32()?);
            reader.verifier()?;
            if count as usize != content.len() || committed != FILE_SYNC {
                return Err(Fault::Protocol("the server took a part of a small write only".into()));
            }
        }
        if last.is_some() {
            answer.next()?.bitmap()?;
        }
        answer.next()?.take(16)?;
        answer.node()
    }
}

impl Drop for Session4 {
    /// Tells the server that the session is over, so that it need not wait for its lease. Nobody waits for that: what
    /// cannot be sent at once is not sent, and the answers are not read.
    fn drop(&mut self) {
        if self.session != [0; 16] {
            self.link.leave();
            self.link.until(Instant::now() + self.timeout);
            let mut request = Request::new(self.minor);
            request.destroy_session(&self.session);
            let _ = self.send(request);
            let mut request = Request::new(self.minor);
            request.destroy_client(self.client);
            let _ = self.send(request);
        }
    }
}

impl Session for Session4 {
    fn until(&mut self, until: Instant) {
        self.link.until(until);
    }

    fn root(&self) -> Fh {
        self.root.clone()
    }

    fn version(&self) -> &'static str {
        if self.minor == 1 { "4.1" } else { "4.2" }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn lookup(&mut self, dir: &Fh, name: &[u8]) -> Outcome<Node> {
        let mut answer = self.at(dir, |r| r.lookup(name).get_fh().file_attr())?;
        answer.skip(1)?;
        answer.node()
    }

    fn attr(&mut self, fh: &Fh) -> Outcome<Attr> {
        let mut answer = self.at(fh, |r| r.file_attr())?;
        Ok(attrs::read(answer.next()?)?.attr)
    }

    fn set(&mut self, fh: &Fh, set: &Set) -> Outcome<()> {
        self.at(fh, |r| r.set(set))?.next()?.bitmap().map(drop)
    }

    fn create(&mut self, dir: &Fh, name: &[u8], set: &Set) -> Outcome<Node> {
        self.open_new(dir, name, None, set, None)
    }

    fn put(&mut self, dir: &Fh, name: &[u8], content: &[u8], set: &Set, last: Option<&Set>) -> Outcome<Node> {
        self.open_new(dir, name, Some(content), set, last)
    }

    fn get(&mut self, dir: &Fh, name: &[u8]) -> Outcome<(Node, Vec<u8>)> {
        let count = self.limits.read.min(64 << 10);
        let mut answer = self.at(dir, |r| r.lookup(name).get_fh().file_attr().read(0, count))?;
        answer.skip(1)?;
        let node = answer.node()?;
        match answer.next() {
            Ok(reader) => {
                reader.flag()?;
                Ok((node, reader.bytes()?))
            }
            // It is no plain file.
            Err(Fault::Status(Status::INVALID | Status::IS_DIRECTORY | Status::SYMLINK)) => {
                Ok((node, Vec::new()))
            }
            Err(fault) => Err(fault),
        }
    }

    fn make(&mut self, dir: &Fh, name: &[u8], what: &Special<'_>, set: &Set) -> Outcome<Node> {
        let mut answer = self.at(dir, |r| {
            match what {
                Special::Directory => r.make(2, |w| w, name, set),
                Special::Link(to) => r.make(5, |w| w.bytes(to), name, set),
                Special::Block(major, minor) => r.make(3, |w| w.u32(*major).u32(*minor), name, set),
                Special::Char(major, minor) => r.make(4, |w| w.u32(*major).u32(*minor), name, set),
                Special::Socket => r.make(6, |w| w, name, set),
                Special::Fifo => r.make(7, |w| w, name, set),
            };
            r.get_fh().file_attr()
        })?;
        let reader = answer.next()?;
        reader.take(20)?;
        reader.bitmap()?;
        answer.node()
    }

    fn read(&mut self, fh: &Fh, at: u64, count: u32) -> Outcome<(Vec<u8>, bool)> {
        let count = count.min(self.limits.read);
        let mut answer = self.at(fh, |r| r.read(at, count))?;
        let reader = answer.next()?;
        let end = reader.flag()?;
        Ok((reader.bytes()?, end))
    }

    fn write(&mut self, fh: &Fh, at: u64, data: &[u8]) -> Outcome<Written> {
        let mut answer = self.at(fh, |r| r.write(at, data))?;
        let reader = answer.next()?;
        let (count, committed) = (reader.u32()?, reader.u32()?);
        Ok(Written { count, durable: committed != 0, verifier: reader.verifier()? })
    }

    fn commit(&mut self, fh: &Fh) -> Outcome<[u8; 8]> {
        self.at(fh, |r| r.commit())?.next()?.verifier()
    }

    fn list(&mut self, dir: &Fh, from: Cursor) -> Outcome<Listing> {
        let mut answer = self.at(dir, |r| r.list(from.cookie, &from.verifier, PAGE / 4, PAGE))?;
        let reader = answer.next()?;
        let verifier = reader.verifier()?;
        let (mut entries, mut last) = (Vec::new(), from.cookie);
        while reader.flag()? {
            last = reader.u64()?;
            let name = reader.bytes()?;
            let got = attrs::read(reader)?;
            let node = got.fh.filter(|_| !got.error).map(|fh| Node { fh, attr: got.attr });
            entries.push(Entry { name, node });
        }
        let more = !reader.flag()? && last != from.cookie;
        Ok(Listing { entries, next: more.then_some(Cursor { cookie: last, verifier }) })
    }

    fn remove(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        self.at(dir, |r| r.remove(name))?.changed()
    }

    fn remove_dir(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        self.remove(dir, name)
    }

    fn rename(&mut self, from: &Fh, name: &[u8], to: &Fh, new: &[u8]) -> Outcome<()> {
        let mut answer = self.at(from, |r| r.save().fh(to).rename(name, new))?;
        answer.skip(2)?;
        answer.next().map(drop)
    }

    fn link(&mut self, fh: &Fh, dir: &Fh, name: &[u8]) -> Outcome<()> {
        let mut answer = self.at(fh, |r| r.save().fh(dir).link(name))?;
        answer.skip(2)?;
        answer.changed()
    }

    fn readlink(&mut self, fh: &Fh) -> Outcome<Vec<u8>> {
        self.at(fh, |r| r.readlink())?.next()?.bytes()
    }

    fn space(&mut self, fh: &Fh) -> Outcome<Space> {
        let asked = [attrs::SPACE_AVAIL, attrs::SPACE_TOTAL];
        let mut answer = self.at(fh, |r| r.attr(&asked))?;
        let [available, total] = attrs::numbers(answer.next()?, asked)?;
        Ok(Space { total: total.unwrap_or(0), available: available.unwrap_or(0) })
    }

    fn clone_file(&mut self, from: &Fh, to: &Fh) -> Outcome<bool> {
        if self.no_clone {
            return Ok(false);
        }
        let done = self.at(from, |r| r.save().fh(to).clone()).and_then(|mut answer| {
            answer.skip(2)?;
            answer.next().map(drop)
        });
        match done {
            Ok(()) => Ok(true),
            // Not supported, or not for these files: other file systems, no open file.
            Err(Fault::Status(status))
                if !status.ends_session() && status != Status::NO_SPACE && status != Status::QUOTA =>
            {
                self.no_clone = true;
                Ok(false)
            }
            Err(fault) => Err(fault),
        }
    }

    fn xattrs(&mut self, fh: &Fh) -> Outcome<Option<Vec<Vec<u8>>>> {
        if self.no_xattrs {
            return Ok(None);
        }
        let listed = self.at(fh, |r| r.list_xattrs()).and_then(|mut answer| {
            let reader = answer.next()?;
            reader.u64()?;
            let count = reader.u32()?;
            (0..count).map(|_| reader.bytes()).collect::<Outcome<Vec<_>>>()
        });
        match listed {
            Ok(names) => Ok(Some(names)),
            Err(Fault::Status(status)) if !status.ends_session() && status != Status::DELAY => {
                self.no_xattrs = true;
                Ok(None)
            }
            Err(fault) => Err(fault),
        }
    }

    fn get_xattr(&mut self, fh: &Fh, name: &[u8]) -> Outcome<Vec<u8>> {
        self.at(fh, |r| r.get_xattr(name))?.next()?.bytes()
    }

    fn set_xattr(&mut self, fh: &Fh, name: &[u8], value: &[u8]) -> Outcome<()> {
        self.at(fh, |r| r.set_xattr(name, value))?.changed()
    }
}
