//! `client: mount`: the calls go to a helper process that has the share mounted, and is killed when it hangs.
//!
//! A message is a length of four bytes and JSON. The helper does one call at a time and ends with its standard input.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Mounted;
use super::client::{
    Attr, Cursor, Fault, Fh, Limits, Listing, Node, Outcome, Session, Set, Space, Special, Status, Written,
};
use super::config::NfsShare;
use super::local::LocalSession;
use crate::reaper;

/// The largest message.
const LARGEST: usize = 16 << 20;
/// What one read or write may move: JSON is not made for much.
const BLOCK: u32 = 256 << 10;

/// One call.
#[derive(Debug, Serialize, Deserialize)]
enum Call<'a> {
    Lookup(Fh, Vec<u8>),
    Attr(Fh),
    Identity(Fh),
    Set(Fh, Set),
    Create(Fh, Vec<u8>, Set),
    Put(Fh, Vec<u8>, Vec<u8>, Set, Option<Set>),
    Get(Fh, Vec<u8>),
    Make(Fh, Vec<u8>, Special<'a>, Set),
    Read(Fh, u64, u32),
    Write(Fh, u64, Vec<u8>),
    Commit(Fh),
    List(Fh, Cursor),
    Remove(Fh, Vec<u8>),
    RemoveDir(Fh, Vec<u8>),
    Rename(Fh, Vec<u8>, Fh, Vec<u8>),
    Link(Fh, Fh, Vec<u8>),
    Readlink(Fh),
    Space(Fh),
    CloneFile(Fh, Fh),
    Xattrs(Fh),
    GetXattr(Fh, Vec<u8>),
    SetXattr(Fh, Vec<u8>, Vec<u8>),
}

/// A session of a helper.
struct RemoteSession {
    child: Option<Child>,
    /// What it is counted as when it does not go.
    name: String,
    input: ChildStdin,
    answers: Receiver<io::Result<Vec<u8>>>,
    timeout: Duration,
    until: Instant,
}

/// Starts a helper.
pub(super) fn connect(
    mounted: &dyn Mounted,
    share: &NfsShare,
    timeout: Duration,
    until: Instant,
) -> Outcome<Box<dyn Session>> {
    let name = format!("the helper that has {}:{} mounted", share.server, share.path);
    reaper::admit(&name).map_err(|error| Fault::Lost(io::Error::other(error.to_string())))?;
    let mut child = mounted.start(share).map_err(Fault::Lost)?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        reaper::leave(child, &name);
        return Err(Fault::Protocol("the helper has no pipes".into()));
    };
    let answers = listen(output);
    let mut session = RemoteSession { child: Some(child), name, input, answers, timeout, until };
    // A helper that hangs does not take what it is told; nobody may wait for that without an end.
    let flags = fcntl_getfl(&session.input).map_err(|e| Fault::Lost(e.into()))?;
    fcntl_setfl(&session.input, flags | OFlags::NONBLOCK).map_err(|e| Fault::Lost(e.into()))?;
    // The first answer is that the share is mounted, or why not.
    match session.receive::<Result<(), String>>()? {
        Ok(()) => Ok(Box::new(session)),
        Err(problem) => Err(Fault::Lost(io::Error::other(problem))),
    }
}

/// Reads answers on a thread, so that waiting for one can end.
fn listen(mut output: ChildStdout) -> Receiver<io::Result<Vec<u8>>> {
    let (send, receive) = sync_channel(1);
    std::thread::spawn(move || {
        loop {
            let message = read_message(&mut output);
            let over = message.is_err();
            if send.send(message).is_err() || over {
                return;
            }
        }
    });
    receive
}

fn read_message(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message larger than any can be"));
    }
    let mut message = vec![0; length];
    from.read_exact(&mut message)?;
    Ok(message)
}

fn message_of(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    Ok([&length.to_be_bytes()[..], &text].concat())
}

fn write_message(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&message_of(message)?)?;
    to.flush()
}

impl Drop for RemoteSession {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            reaper::leave(child, &self.name);
        }
    }
}

impl RemoteSession {
    fn left(&self) -> Outcome<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Fault::Slow(self.timeout)) } else { Ok(left) }
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Outcome<T> {
        let message = match self.answers.recv_timeout(self.left()?) {
            Ok(message) => message.map_err(Fault::Lost)?,
            Err(RecvTimeoutError::Timeout) => return Err(Fault::Slow(self.timeout)),
            Err(RecvTimeoutError::Disconnected) => return Err(Fault::Lost(io::ErrorKind::BrokenPipe.into())),
        };
        serde_json::from_slice(&message).map_err(|e| Fault::Protocol(e.to_string()))
    }

    fn send(&mut self, message: &[u8]) -> Outcome<()> {
        let mut left = message;
        while !left.is_empty() {
            match self.input.write(left) {
                Ok(count) => left = &left[count..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let limit = self.left()?;
                    let limit = Timespec {
                        tv_sec: limit.as_secs().cast_signed(),
                        tv_nsec: limit.subsec_nanos().into(),
                    };
                    let mut fds = [PollFd::new(&self.input, PollFlags::OUT)];
                    poll(&mut fds, Some(&limit)).map_err(|e| Fault::Lost(e.into()))?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Fault::Lost(e)),
            }
        }
        Ok(())
    }

    fn call<T: DeserializeOwned>(&mut self, call: &Call<'_>) -> Outcome<T> {
        self.send(&message_of(call).map_err(Fault::Lost)?)?;
        self.receive::<Result<T, u32>>()?.map_err(|status| Fault::Status(Status(status)))
    }
}

impl Session for RemoteSession {
    fn until(&mut self, until: Instant) {
        self.until = until;
    }

    fn root(&self) -> Fh {
        Fh::new()
    }

    fn version(&self) -> &'static str {
        "mount"
    }

    fn identity(&mut self, fh: &Fh) -> Outcome<Vec<u8>> {
        self.call(&Call::Identity(fh.clone()))
    }

    fn limits(&self) -> Limits {
        Limits { read: BLOCK, write: BLOCK }
    }

    fn lookup(&mut self, dir: &Fh, name: &[u8]) -> Outcome<Node> {
        self.call(&Call::Lookup(dir.clone(), name.to_vec()))
    }

    fn attr(&mut self, fh: &Fh) -> Outcome<Attr> {
        self.call(&Call::Attr(fh.clone()))
    }

    fn set(&mut self, fh: &Fh, set: &Set) -> Outcome<()> {
        self.call(&Call::Set(fh.clone(), set.clone()))
    }

    fn create(&mut self, dir: &Fh, name: &[u8], set: &Set) -> Outcome<Node> {
        self.call(&Call::Create(dir.clone(), name.to_vec(), set.clone()))
    }

    fn put(&mut self, dir: &Fh, name: &[u8], content: &[u8], set: &Set, last: Option<&Set>) -> Outcome<Node> {
        self.call(&Call::Put(dir.clone(), name.to_vec(), content.to_vec(), set.clone(), last.cloned()))
    }

    fn get(&mut self, dir: &Fh, name: &[u8]) -> Outcome<(Node, Vec<u8>)> {
        self.call(&Call::Get(dir.clone(), name.to_vec()))
    }

    fn make(&mut self, dir: &Fh, name: &[u8], what: &Special<'_>, set: &Set) -> Outcome<Node> {
        self.call(&Call::Make(dir.clone(), name.to_vec(), what.clone(), set.clone()))
    }

    fn read(&mut self, fh: &Fh, at: u64, count: u32) -> Outcome<(Vec<u8>, bool)> {
        self.call(&Call::Read(fh.clone(), at, count.min(BLOCK)))
    }

    fn write(&mut self, fh: &Fh, at: u64, data: &[u8]) -> Outcome<Written> {
        self.call(&Call::Write(fh.clone(), at, data.to_vec()))
    }

    fn commit(&mut self, fh: &Fh) -> Outcome<[u8; 8]> {
        self.call(&Call::Commit(fh.clone()))
    }

    fn list(&mut self, dir: &Fh, from: Cursor) -> Outcome<Listing> {
        self.call(&Call::List(dir.clone(), from))
    }

    fn remove(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        self.call(&Call::Remove(dir.clone(), name.to_vec()))
    }

    fn remove_dir(&mut self, dir: &Fh, name: &[u8]) -> Outcome<()> {
        self.call(&Call::RemoveDir(dir.clone(), name.to_vec()))
    }

    fn rename(&mut self, from: &Fh, name: &[u8], to: &Fh, new: &[u8]) -> Outcome<()> {
        self.call(&Call::Rename(from.clone(), name.to_vec(), to.clone(), new.to_vec()))
    }

    fn link(&mut self, fh: &Fh, dir: &Fh, name: &[u8]) -> Outcome<()> {
        self.call(&Call::Link(fh.clone(), dir.clone(), name.to_vec()))
    }

    fn readlink(&mut self, fh: &Fh) -> Outcome<Vec<u8>> {
        self.call(&Call::Readlink(fh.clone()))
    }

    fn space(&mut self, fh: &Fh) -> Outcome<Space> {
        self.call(&Call::Space(fh.clone()))
    }

    fn clone_file(&mut self, from: &Fh, to: &Fh) -> Outcome<bool> {
        self.call(&Call::CloneFile(from.clone(), to.clone()))
    }

    fn xattrs(&mut self, fh: &Fh) -> Outcome<Option<Vec<Vec<u8>>>> {
        self.call(&Call::Xattrs(fh.clone()))
    }

    fn get_xattr(&mut self, fh: &Fh, name: &[u8]) -> Outcome<Vec<u8>> {
        self.call(&Call::GetXattr(fh.clone(), name.to_vec()))
    }

    fn set_xattr(&mut self, fh: &Fh, name: &[u8], value: &[u8]) -> Outcome<()> {
        self.call(&Call::SetXattr(fh.clone(), name.to_vec(), value.to_vec()))
    }
}

/// The helper's side: says whether the share is `mounted`, then does calls in `root` until its input ends.
pub fn serve(
    root: &Path,
    mounted: &Result<(), String>,
    from: &mut impl Read,
    to: &mut impl Write,
) -> io::Result<()> {
    write_message(to, mounted)?;
    let mut session = LocalSession::new(root.to_owned());
    loop {
        let message = match read_message(from) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        answer(&mut session, serde_json::from_slice(&message)?, to)?;
    }
}

fn answer(s: &mut LocalSession, call: Call<'_>, to: &mut impl Write) -> io::Result<()> {
    macro_rules! tell {
        ($outcome:expr) => {
            write_message(
                to,
                &$outcome.map_err(|fault| match fault {
                    Fault::Status(status) => status.0,
                    _ => Status::IO.0,
                }),
            )
        };
    }
    match call {
        Call::Lookup(dir, name) => tell!(s.lookup(&dir, &name)),
        Call::Attr(fh) => tell!(s.attr(&fh)),
        Call::Identity(fh) => tell!(s.identity(&fh)),
        Call::Set(fh, set) => tell!(s.set(&fh, &set)),
        Call::Create(dir, name, set) => tell!(s.create(&dir, &name, &set)),
        Call::Put(dir, name, content, set, last) => tell!(s.put(&dir, &name, &content, &set, last.as_ref())),
        Call::Get(dir, name) => tell!(s.get(&dir, &name)),
        Call::Make(dir, name, what, set) => tell!(s.make(&dir, &name, &what, &set)),
        Call::Read(fh, at, count) => tell!(s.read(&fh, at, count)),
        Call::Write(fh, at, data) => tell!(s.write(&fh, at, &data)),
        Call::Commit(fh) => tell!(s.commit(&fh)),
        Call::List(dir, from) => tell!(s.list(&dir, from)),
        Call::Remove(dir, name) => tell!(s.remove(&dir, &name)),
        Call::RemoveDir(dir, name) => tell!(s.remove_dir(&dir, &name)),
        Call::Rename(from, name, dir, new) => tell!(s.rename(&from, &name, &dir, &new)),
        Call::Link(fh, dir, name) => tell!(s.link(&fh, &dir, &name)),
        Call::Readlink(fh) => tell!(s.readlink(&fh)),
        Call::Space(fh) => tell!(s.space(&fh)),
        Call::CloneFile(from, copy) => tell!(s.clone_file(&from, &copy)),
        Call::Xattrs(fh) => tell!(s.xattrs(&fh)),
        Call::GetXattr(fh, name) => tell!(s.get_xattr(&fh, &name)),
        Call::SetXattr(fh, name, value) => tell!(s.set_xattr(&fh, &name, &value)),
    }
}
