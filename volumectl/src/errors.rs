//! What a failure prints, and the exit code.

use std::io;

use owo_colors::OwoColorize as _;
use provisioners::ExitCode;
use tonic::{Code, Status};

/// It failed.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// It was refused as unsafe.
pub const REFUSED: u8 = 3;
/// It is still going on, or the other side cannot be reached: try again.
pub const WAITING: u8 = 4;

/// A mistake in what the user wrote: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs a command; a panic in it is an error with its message, and the exit code [`FAILED`].
pub fn caught<T>(run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    // What the command was at is not used again.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why");
        anyhow::bail!("this is a fault of volumectl itself, please report it: {text}")
    })
}

/// Prints an error once, with its causes and a hint, and gives the exit code. A reader that went away is no error.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(broken) {
        return ExitCode::SUCCESS;
    }
    let status = error.chain().find_map(|cause| cause.downcast_ref::<Status>());
    let text = match status {
        Some(status) => with_status(error, status),
        None => format!("{error:#}"),
    };
    anstream::eprintln!("{} {}", "error:".red().bold(), provisioners::plain(&text));
    if let Some(hint) = status.and_then(hint) {
        anstream::eprintln!("{} {hint}", "hint:".bold());
    }
    let usage = error.chain().any(|cause| cause.downcast_ref::<Usage>().is_some());
    let own = error.chain().find_map(|cause| cause.downcast_ref::<provisioners::Error>());
    let code = match (own, status) {
        _ if usage => USAGE,
        (Some(own), _) => backend_code(own),
        (None, status) => status.map_or(FAILED, |s| exit_code(s.code())),
    };
    ExitCode::from(code)
}

/// The exit code for a backend's error.
fn backend_code(error: &provisioners::Error) -> u8 {
    use provisioners::Error;
    match error {
        Error::Invalid { .. } => USAGE,
        Error::Refused(_) => REFUSED,
        Error::Busy { .. } | Error::Unavailable(_) | Error::Deadline(_) => WAITING,
        _ => FAILED,
    }
}

/// What was being done, the code and the server's text; tonic's own `Display` of a status repeats more than helps.
fn with_status(error: &anyhow::Error, status: &Status) -> String {
    let is_status = |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<Status>().is_some();
    let steps: Vec<_> =
        error.chain().take_while(|cause| !is_status(*cause)).map(|c| format!("{c}: ")).collect();
    format!("{}{}: {}", steps.concat(), code_name(status.code()), status.message())
}

fn exit_code(code: Code) -> u8 {
    match code {
        Code::FailedPrecondition => REFUSED,
        Code::Aborted | Code::Unavailable | Code::DeadlineExceeded => WAITING,
        _ => FAILED,
    }
}

fn hint(status: &Status) -> Option<&'static str> {
    use std::error::Error as _;
    Some(match status.code() {
        Code::Aborted => {
            "another operation is running; the same command again waits for it or takes its place"
        }
        // The connection's own, not the driver's answer.
        Code::Unavailable if status.source().is_some() => {
            "is the driver running, and is --endpoint its socket?"
        }
        Code::DeadlineExceeded => {
            "the work may go on; the same command again joins it (--timeout waits longer)"
        }
        Code::Unimplemented => "`volumectl csi info` shows what this driver can do",
        _ => return None,
    })
}

/// A code as the gRPC documentation writes it.
pub fn code_name(code: Code) -> String {
    // The enum's names are the documented ones in another case.
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_documented() {
        assert_eq!(code_name(Code::FailedPrecondition), "FAILED_PRECONDITION");
        assert_eq!(code_name(Code::Ok), "OK");
    }

    #[test]
    fn the_text_has_the_step_and_the_code_once() {
        let error = anyhow::Error::new(Status::aborted("busy")).context("creating db");
        let status = error.chain().find_map(|c| c.downcast_ref::<Status>()).unwrap();
        assert_eq!(with_status(&error, status), "creating db: ABORTED: busy");
        assert_eq!(exit_code(status.code()), WAITING);
    }

    #[test]
    fn whether_the_driver_runs_is_asked_only_where_it_has_not_answered() {
        assert!(hint(&Status::unavailable("the pool is full of flattening clones")).is_none());
        let mut refused = Status::unavailable("tcp connect error");
        refused.set_source(std::sync::Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused)));
        assert!(hint(&refused).is_some());
    }
}
