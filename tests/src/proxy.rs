//! A proxy for HTTP/1.1 between the driver and a service: it counts requests and does what tests ask it to do to them.

use std::collections::VecDeque;
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;

/// What is done to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is done, and its answer is not given: the connection ends.
    DropAnswer,
    /// It is not passed on, and answered as the service would with this status and `Retry-After` (seconds; 0: none).
    Answer(u16, u64),
    /// It is not passed on, and answered as a gateway would: a page, with this status.
    Page(u16),
    /// It is passed on later.
    Delay(Duration),
    /// The connection ends before it is passed on.
    Cut,
    /// It is done, and half of its answer is given as if that were all.
    Truncate,
}

/// Which requests a fault is for, and how often.
struct Rule {
    method: &'static str,
    /// What the path has in it.
    part: String,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: VecDeque<Rule>,
    /// Method and path of every request.
    seen: Vec<(String, String)>,
}

/// A running proxy.
#[derive(Clone)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts one for a service at an address.
    pub fn start(to: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let it = Self { address: listener.local_addr()?, state: Arc::default() };
        let (to, state) = (to.to_owned(), it.state.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (to, state) = (to.clone(), state.clone());
                std::thread::spawn(move || {
                    let _ = serve(&stream, &to, &state);
                });
            }
        });
        Ok(it)
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next `times` requests with a method (`*`: any) and a part of their path meet a fault.
    pub fn fault(&self, method: &'static str, part: &str, times: usize, fault: Fault) {
        lock(&self.state).rules.push_back(Rule { method, part: part.to_owned(), times, fault });
    }

    /// No more faults; how many were not met.
    pub fn clear(&self) -> usize {
        lock(&self.state).rules.drain(..).map(|rule| rule.times).sum()
    }

    /// How many requests had a method (`*`: any) and a part of their path.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let state = lock(&self.state);
        state.seen.iter().filter(|(m, path)| (method == "*" || m == method) && path.contains(part)).count()
    }

    /// Forgets what was counted.
    pub fn forget(&self) {
        lock(&self.state).seen.clear();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Message {
    first: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    fn read(reader: &mut impl io::BufRead) -> io::Result<Option<Self>> {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Some(Self { first: first.trim_end().to_owned(), headers, body }))
    }

    fn write(&self, stream: &mut impl io::Write, more: &str) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            if !["content-length", "connection", "transfer-encoding"]
                .contains(&name.to_ascii_lowercase().as_str())
            {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text.push_str(&format!("Content-Length: {}\r\n{more}\r\n", self.body.len()));
        stream.write_all(&[text.as_bytes(), &self.body].concat())
    }
}

fn serve(stream: &TcpStream, to: &str, state: &Mutex<State>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = Message::read(&mut reader)? {
        let fault = note(state, &request.first);
        match &fault {
            Some(Fault::Cut) => return Ok(()),
            Some(Fault::Answer(status, later)) => {
                let after = if *later > 0 { format!("Retry-After: {later}\r\n") } else { String::new() };
                let body = format!(r#"{{"fault": {{"code": {status}, "message": "asked for by a test"}}}}"#);
                let head = format!(
                    "HTTP/1.1 {status} Fault\r\nx-openstack-request-id: req-test\r\n{after}Content-Length: {}\r\n\r\n",
                    body.len()
                );
                writer.write_all((head + &body).as_bytes())?;
                continue;
            }
            Some(Fault::Page(status)) => {
                let body = "<html><h1>This is not the page you are looking for</h1></html>";
                let head = format!(
                    "HTTP/1.1 {status} Page\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                writer.write_all((head + body).as_bytes())?;
                continue;
            }
            Some(Fault::Delay(time)) => std::thread::sleep(*time),
            _ => {}
        }
        let mut answer = forward(&request, to)?;
        match fault {
            Some(Fault::DropAnswer) => return Ok(()),
            Some(Fault::Truncate) => answer.body.truncate(answer.body.len() / 2),
            _ => {}
        }
        answer.write(&mut writer, "")?;
    }
    Ok(())
}

/// Counts a request; the fault that is meant for it.
fn note(state: &Mutex<State>, first: &str) -> Option<Fault> {
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut state = lock(state);
    state.seen.push((method.clone(), path.clone()));
    let wanted = |rule: &Rule| (rule.method == "*" || rule.method == method) && path.contains(&rule.part);
    let at = state.rules.iter().position(wanted)?;
    let rule = &mut state.rules[at];
    rule.times -= 1;
    let fault = rule.fault.clone();
    if rule.times == 0 {
        state.rules.remove(at);
    }
    Some(fault)
}

fn forward(request: &Message, to: &str) -> io::Result<Message> {
    let mut upstream = TcpStream::connect(to)?;
    request.write(&mut upstream, "Connection: close\r\n")?;
    let mut all = Vec::new();
    upstream.read_to_end(&mut all)?;
    let mut reader = BufReader::new(all.as_slice());
    let mut answer = Message::read(&mut reader)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if answer.body.is_empty() {
        // A body that ends with the connection, or in pieces.
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest)?;
        answer.body = if answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"))
        {
            joined(&rest)
        } else {
            rest
        };
    }
    Ok(answer)
}

/// The pieces of a chunked body (RFC 9112, 7.1) in one.
fn joined(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = String::from_utf8_lossy(&rest[..end]);
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        if size == 0 || rest.len() < end + 2 + size {
            break;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = rest.get(end + 4 + size..).unwrap_or_default();
    }
    body
}
