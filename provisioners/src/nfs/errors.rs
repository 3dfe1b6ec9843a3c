//! From what a server answers to the one error.

use super::client::{Fault, Status};
use crate::Error;

/// An error that says what was being done, at which share.
pub(super) fn failed(doing: &str, share: &str, fault: &Fault) -> Error {
    let text = format!("{doing} on {share}: {fault}");
    match fault {
        Fault::Status(status) => by_status(*status, text),
        Fault::Lost(_) => {
            Error::Unavailable(format!("{text}; see whether the NFS server runs and can be reached"))
        }
        Fault::Slow(_) => Error::Unavailable(format!("{text}; the NFS server hangs or is overloaded")),
        Fault::Denied(_) => Error::Denied(format!("{text}; see the server's exports")),
        Fault::NoVersion(_) => {
            Error::Unavailable(format!("{text}; set the share's nfsVersion to one that it speaks"))
        }
        Fault::Protocol(_) => Error::Internal(text),
    }
}

fn by_status(status: Status, text: String) -> Error {
    match status {
        Status::NO_SPACE | Status::QUOTA => Error::Exhausted(format!("{text}; free room on the server")),
        Status::READ_ONLY => {
            Error::Unavailable(format!("{text}; the export is read-only, export it read-write"))
        }
        Status::PERM | Status::ACCESS | Status::WRONG_SECURITY => Error::Denied(format!(
            "{text}; the server does not let this client's user do that: export with no_root_squash, or set the share's uid and gid to the owner of the exported directory"
        )),
        Status::NO_ENTRY => Error::NotFound(text),
        Status::STALE | Status::BAD_HANDLE => Error::Unavailable(format!(
            "{text}; what was there was removed or the export was made anew, repeat the call"
        )),
        status if Fault::Status(status).is_passing() => {
            Error::Unavailable(format!("{text}; repeat the call"))
        }
        Status::IO | Status::SERVER_FAULT => Error::Unavailable(format!("{text}; see the server's log")),
        _ => Error::Internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_server_is_exhausted_and_a_squashing_one_says_how_to_help() {
        let error = failed("writing a record", "nas:/srv", &Fault::Status(Status::NO_SPACE));
        assert_eq!(error.label(), "exhausted");
        let error = failed("making a directory", "nas:/srv", &Fault::Status(Status::ACCESS));
        assert_eq!(error.label(), "denied");
        assert!(error.to_string().contains("no_root_squash"), "{error}");
        let error = failed("reading", "nas:/srv", &Fault::Lost(std::io::ErrorKind::ConnectionRefused.into()));
        assert!(error.to_string().starts_with("reading on nas:/srv: connection refused"), "{error}");
    }
}
