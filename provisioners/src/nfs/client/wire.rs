//! The connection: records of ONC RPC (RFC 5531, 11) over TCP, each answer in the time that a call may take.

use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nfs3_client::RpcError;
use nfs3_client::io::{AsyncRead, AsyncWrite};
use nfs3_client::nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_client::nfs3_types::xdr_codec::Opaque;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::{Endpoint, Fault, Outcome};

/// The largest answer that is read: the largest read of any server, and its envelope.
const ANSWER_MAX: usize = (8 << 20) + 4096;
/// Source ports that servers take for an administrator's (`secure` of exports(5)), but for the well-known ones.
const PRIVILEGED: std::ops::Range<u16> = 665..1023;
/// How long a connection may take to be made.
const CONNECTING: Duration = Duration::from_secs(5);

/// All addresses of a server's name. Name servers have deadlines of their own, so they are waited for elsewhere.
pub(in super::super) fn resolve(server: &str, until: Instant) -> io::Result<Vec<SocketAddr>> {
    let plain = server.trim_start_matches('[').trim_end_matches(']').to_owned();
    if let Ok(address) = plain.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, 0)]);
    }
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let ask = move || {
        let found = (plain.as_str(), 0).to_socket_addrs().map(Vec::from_iter);
        let _ = send.send(found);
    };
    std::thread::Builder::new().name("nfs-resolve".into()).spawn(ask)?;
    let answer = receive.recv_timeout(until.saturating_duration_since(Instant::now()));
    answer.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the name server does not answer")))
}

/// A connection with its deadline. A session keeps it beside the library's client, which owns the [`Wire`].
pub(super) struct Link {
    stream: TcpStream,
    /// When the call that is under way must be over.
    until: Mutex<Instant>,
}

impl Link {
    /// Calls from now on end at this moment, each with a time-out if it must be.
    pub(super) fn until(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// What is sent from now on goes out at once or not at all, and no answer is waited for.
    pub(super) fn leave(&self) {
        let _ = self.stream.set_nonblocking(true);
    }

    fn left(&self) -> io::Result<Duration> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// Fills a buffer. A server that gives a byte now and then does not get more time for it.
    fn read_full(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            self.stream.set_read_timeout(Some(self.left()?))?;
            match (&self.stream).read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = &mut buffer[count..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write_full(&self, mut buffer: &[u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            self.stream.set_write_timeout(Some(self.left()?))?;
            match (&self.stream).write(buffer) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => buffer = &buffer[count..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A connection that reads and writes whole records. Its futures are ready at once: the calls block.
pub(super) struct Wire {
    link: Arc<Link>,
    /// The answer that is being handed out.
    answer: Vec<u8>,
    at: usize,
}

impl Wire {
    pub(super) fn connect(mut address: SocketAddr, port: u16, to: &Endpoint) -> Outcome<Self> {
        address.set_port(port);
        let limit = CONNECTING.min(to.until.saturating_duration_since(Instant::now()));
        if limit.is_zero() {
            return Err(Fault::Slow(to.timeout));
        }
        let stream = open(address, to.privileged, limit).map_err(Fault::Lost)?;
        stream.set_nodelay(true).map_err(Fault::Lost)?;
        let link = Arc::new(Link { stream, until: Mutex::new(to.until) });
        Ok(Self { link, answer: Vec::new(), at: 0 })
    }

    /// What its session keeps of it.
    pub(super) fn link(&self) -> Arc<Link> {
        self.link.clone()
    }

    /// Reads one record, of any number of fragments, and hands it out as one of one fragment.
    fn receive(&mut self) -> io::Result<()> {
        self.answer.clear();
        self.answer.extend_from_slice(&[0; 4]);
        self.at = 0;
        loop {
            let mut header = [0; 4];
            self.link.read_full(&mut header)?;
            let header = u32::from_be_bytes(header);
            let length = usize::try_from(header & 0x7fff_ffff).unwrap_or(usize::MAX);
            let start = self.answer.len();
            if start.saturating_add(length) > ANSWER_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer larger than any can be"));
            }
            self.answer.resize(start + length, 0);
            self.link.read_full(&mut self.answer[start..])?;
            if header & 0x8000_0000 != 0 {
                break;
            }
        }
        let length = u32::try_from(self.answer.len() - 4).unwrap_or(u32::MAX) | 0x8000_0000;
        self.answer[..4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }
}

impl AsyncRead for Wire {
    async fn async_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.answer.len() {
            self.receive()?;
        }
        let count = buffer.len().min(self.answer.len() - self.at);
        buffer[..count].copy_from_slice(&self.answer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl AsyncWrite for Wire {
    async fn async_write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.link.write_full(buffer)?;
        Ok(buffer.len())
    }
}

/// A connection, from a privileged port if wished and allowed.
fn open(address: SocketAddr, privileged: bool, limit: Duration) -> io::Result<TcpStream> {
    if privileged {
        let start = random_start();
        for step in 0..PRIVILEGED.end - PRIVILEGED.start {
            let port = PRIVILEGED.start + (start + step) % (PRIVILEGED.end - PRIVILEGED.start);
            match open_from(address, port, limit) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => break,
                Err(e)
                    if e.kind() == io::ErrorKind::AddrInUse
                        || e.kind() == io::ErrorKind::AddrNotAvailable => {}
                other => return other,
            }
        }
    }
    TcpStream::connect_timeout(&address, limit)
}

fn random_start() -> u16 {
    u16::from_le_bytes(random()) % (PRIVILEGED.end - PRIVILEGED.start)
}

/// Random bytes (getrandom(2), which cannot fail for so few).
pub(in super::super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes
}

fn open_from(address: SocketAddr, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let (family, any): (_, IpAddr) = match address {
        SocketAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddr::new(any, port))?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => {}
        Err(rustix::io::Errno::INPROGRESS) => await_connection(&socket, limit)?,
        Err(errno) => return Err(errno.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

fn await_connection(socket: &OwnedFd, limit: Duration) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    let mut fds = [PollFd::new(socket, PollFlags::OUT)];
    match poll(&mut fds, Some(&limit))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// AUTH_SYS credentials (RFC 5531, appendix A).
pub(super) fn credential(to: &Endpoint) -> opaque_auth<'static> {
    let name = rustix::system::uname().nodename().to_bytes().to_vec();
    let auth =
        auth_unix { stamp: 0, machinename: Opaque::owned(name), uid: to.uid, gid: to.gid, gids: vec![] };
    opaque_auth::auth_unix(&auth)
}

/// Runs a call of the library, whose futures do not wait here.
pub(super) fn at_once<T>(limit: Duration, call: impl Future<Output = Result<T, RpcError>>) -> Outcome<T> {
    poll_once(pin!(call))?.map_err(|error| fault(error, limit))
}

/// What a future has at once.
pub(super) fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Outcome<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Ok(value),
        Poll::Pending => Err(Fault::Protocol("the client waits for nothing".into())),
    }
}

/// What an error of the library means.
pub(super) fn fault(error: RpcError, limit: Duration) -> Fault {
    match error {
        RpcError::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Fault::Slow(limit)
        }
        RpcError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Fault::Lost(io::Error::new(e.kind(), "the server closed the connection"))
        }
        RpcError::Io(e) if e.kind() == io::ErrorKind::InvalidData => Fault::Protocol(e.to_string()),
        RpcError::Io(e) => Fault::Lost(e),
        RpcError::Auth(why) => Fault::Denied(format!("the server refuses AUTH_SYS: {why}")),
        RpcError::ProgMismatch { .. }
        | RpcError::ProgUnavail
        | RpcError::ProcUnavail
        | RpcError::RpcMismatch { .. } => Fault::NoVersion(error.to_string()),
        other => Fault::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A byte now and then is no answer: the call ends at its deadline, not at that of the last byte.
    #[test]
    fn a_server_that_drips_gets_no_more_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            while client.write_all(&[0]).is_ok() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begun = Instant::now();
        let limit = Duration::from_millis(300);
        let to = Endpoint {
            path: "/".into(),
            port: None,
            mount_port: None,
            uid: 0,
            gid: 0,
            privileged: false,
            timeout: limit,
            until: begun + limit,
            shortcut: None,
        };
        let wire = Wire::connect(address, address.port(), &to).unwrap();
        let error = wire.link().read_full(&mut [0; 1000]).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
