//! The QEMU Machine Protocol (docs/interop/qmp-spec of QEMU), as much as is needed: one command, one answer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use provisioners::{Error, Result};
use serde_json::{Value, json};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Sends a command to the monitor socket and returns its answer.
pub fn command(socket: &Path, name: &str, arguments: &Value) -> Result<Value> {
    let doing = || format!("asking qemu-storage-daemon at {} to {name}", socket.display());
    let io = |e| Error::io(doing(), e);
    let stream = UnixStream::connect(socket).map_err(io)?;
    stream.set_read_timeout(Some(ANSWER)).map_err(io)?;
    stream.set_write_timeout(Some(ANSWER)).map_err(io)?;
    let mut lines = BufReader::new(stream.try_clone().map_err(io)?).lines();
    // The greeting.
    lines.next().transpose().map_err(io)?;
    let mut last = Value::Null;
    for request in [json!({"execute": "qmp_capabilities"}), json!({"execute": name, "arguments": arguments})]
    {
        (&stream).write_all(format!("{request}\n").as_bytes()).map_err(io)?;
        last = loop {
            let line = lines.next().transpose().map_err(io)?;
            let Some(line) = line else {
                return Err(Error::Unavailable(format!("{}: it closed the connection", doing())));
            };
            let answer: Value =
                serde_json::from_str(&line).map_err(|e| Error::Internal(format!("{}: {e}", doing())))?;
            if let Some(error) = answer.get("error") {
                let text = error["desc"].as_str().unwrap_or_default();
                return Err(Error::Unavailable(format!("{}: {text}", doing())));
            }
            // Events come between.
            if let Some(value) = answer.get("return") {
                break value.clone();
            }
        };
    }
    Ok(last)
}
