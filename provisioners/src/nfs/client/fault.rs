//! Why a call failed: the server's status, or what became of the connection.

use std::fmt;
use std::io;
use std::time::Duration;

/// The answer to a call.
pub(in super::super) type Outcome<T> = Result<T, Fault>;

/// Why a call failed.
#[derive(Debug)]
pub(in super::super) enum Fault {
    /// The server's answer.
    Status(Status),
    /// The connection broke, or could not be made: whether the call was done is not known.
    Lost(io::Error),
    /// No answer in time.
    Slow(Duration),
    /// The server does not let us in; what it said.
    Denied(String),
    /// The server does not speak this version.
    NoVersion(String),
    /// The server's answer makes no sense.
    Protocol(String),
}

/// A status of NFS. Versions 3 and 4 share most numbers (RFC 1813, 2.6; RFC 8881, 15.1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Status(pub(in super::super) u32);

macro_rules! statuses {
    ($($name:ident $number:literal $text:literal;)*) => {
        impl Status {
            $(pub(in super::super) const $name: Self = Self($number);)*
        }

        impl fmt::Display for Status {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($number => f.write_str($text),)*
                    other => write!(f, "NFS status {other}"),
                }
            }
        }
    };
}

statuses! {
    PERM 1 "not permitted";
    NO_ENTRY 2 "no such file or directory";
    IO 5 "input/output error";
    ACCESS 13 "access denied";
    EXISTS 17 "it exists";
    NOT_DIRECTORY 20 "not a directory";
    IS_DIRECTORY 21 "is a directory";
    INVALID 22 "invalid argument";
    NO_SPACE 28 "no space left";
    READ_ONLY 30 "read-only file system";
    NAME_TOO_LONG 63 "name too long";
    NOT_EMPTY 66 "not empty";
    QUOTA 69 "quota exceeded";
    STALE 70 "stale file handle";
    BAD_HANDLE 10001 "bad file handle";
    BAD_COOKIE 10003 "bad cookie";
    NOT_SUPPORTED 10004 "not supported";
    SERVER_FAULT 10006 "server fault";
    DELAY 10008 "the server asks to try later";
    EXPIRED 10011 "the lease has expired";
    GRACE 10013 "the server is in its grace period after a start";
    WRONG_SECURITY 10016 "wrong security flavor";
    MINOR_VERSION 10021 "minor version not supported";
    STALE_CLIENT 10022 "the server does not know this client";
    SYMLINK 10029 "is a symbolic link";
    BAD_SESSION 10052 "the server does not know this session";
    DEAD_SESSION 10078 "the session has ended";
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({})", self.0)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Lost(error) => write!(f, "{error}"),
            Self::Slow(limit) => write!(f, "no answer in {} s", limit.as_secs()),
            Self::Denied(text) | Self::NoVersion(text) | Self::Protocol(text) => f.write_str(text),
        }
    }
}

impl Fault {
    /// Whether it is this status.
    pub(in super::super) fn is(&self, status: Status) -> bool {
        matches!(self, Self::Status(has) if *has == status)
    }

    /// Whether what was asked for is not there any more.
    pub(in super::super) fn is_gone(&self) -> bool {
        self.is(Status::STALE) || self.is(Status::NO_ENTRY)
    }

    /// Whether the connection cannot be used again.
    pub(in super::super) fn is_broken(&self) -> bool {
        match self {
            Self::Status(status) => status.ends_session(),
            Self::NoVersion(_) => false,
            _ => true,
        }
    }

    /// Whether it says something of the whole share, not of one file.
    pub(in super::super) fn is_of_share(&self) -> bool {
        !matches!(self, Self::Status(status) if !status.ends_session() && *status != Status::GRACE)
    }

    /// Whether nobody answered at all.
    pub(in super::super) fn is_silence(&self) -> bool {
        match self {
            Self::Slow(_) => true,
            Self::Lost(error) => error.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// Whether another try may succeed.
    pub(in super::super) fn is_passing(&self) -> bool {
        match self {
            Self::Status(status) => status.ends_session() || [Status::DELAY, Status::GRACE].contains(status),
            Self::Lost(_) => true,
            _ => false,
        }
    }
}

impl Status {
    pub(super) fn ends_session(self) -> bool {
        [Self::EXPIRED, Self::STALE_CLIENT, Self::BAD_SESSION, Self::DEAD_SESSION].contains(&self)
    }
}

/// `Ok(None)` where there is no such file.
pub(in super::super) fn found<T>(outcome: Outcome<T>) -> Outcome<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(fault) if fault.is(Status::NO_ENTRY) => Ok(None),
        Err(fault) => Err(fault),
    }
}
