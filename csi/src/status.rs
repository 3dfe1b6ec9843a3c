//! The one place where an error becomes a gRPC code (CSI "Error Scheme" and the tables of each RPC).

use provisioners::Error;
use tonic::{Code, Status};

/// The gRPC answer for an error.
pub fn status(error: &Error) -> Status {
    Status::new(code(error), provisioners::plain(&error.to_string()))
}

/// The gRPC code for an error.
pub fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::AlreadyExists(_) => Code::AlreadyExists,
        Error::OutOfRange(_) => Code::OutOfRange,
        Error::Exhausted(_) => Code::ResourceExhausted,
        Error::Refused(_) => Code::FailedPrecondition,
        Error::Busy { .. } | Error::BadToken(_) => Code::Aborted,
        Error::Unsupported(_) => Code::Unimplemented,
        Error::Unavailable(_) => Code::Unavailable,
        Error::Denied(_) => Code::PermissionDenied,
        Error::Deadline(_) => Code::DeadlineExceeded,
        Error::Corrupt { .. } => Code::DataLoss,
        Error::Io { .. } | Error::Internal(_) => Code::Internal,
    }
}

/// The name of a code as the specification writes it, such as `FAILED_PRECONDITION`: the `code` label in metrics and
/// logs.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_words_are_told_without_rusts() {
        let error = Error::io("opening /x", std::io::Error::from_raw_os_error(2));
        assert_eq!(status(&error).message(), "opening /x: No such file or directory");
        for whole in ["a (os error", "a (os error x)", "(os error 5)", "a (os error )"] {
            assert_eq!(provisioners::plain(whole), whole);
        }
        assert_eq!(provisioners::plain("a (os error 5): b (os error 110)"), "a: b");
    }

    #[test]
    fn the_text_reaches_the_caller_with_the_code() {
        let answer = status(&Error::Refused("volume default:db is in use by /mnt/a".into()));
        assert_eq!(
            (answer.code(), answer.message()),
            (Code::FailedPrecondition, "volume default:db is in use by /mnt/a")
        );
    }
}
