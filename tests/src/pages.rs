//! `/metrics` and `/readyz` of a driver.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// A page's answer, with its head.
pub fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A page, as soon as it says something.
pub fn get_until(port: u16, path: &str, words: &str) -> Result<String> {
    let begun = Instant::now();
    loop {
        let page = get(port, path).unwrap_or_default();
        if page.contains(words) {
            return Ok(page);
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "{path} does not say {words:?}: {page}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
