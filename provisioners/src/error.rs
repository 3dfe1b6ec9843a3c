//! The one error of every backend. `csi/src/status.rs` turns it into a gRPC code; nothing else does.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a volume. Each text says what was asked, what was seen and what to do.
///
/// Cloneable, because every caller that joined one operation gets the same answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A field of the request is missing or wrong.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field as the caller wrote it, such as `parameters["mode"]`.
        field: String,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The volume, snapshot, node or path does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The name is taken by something that differs from what was asked.
    #[error("{0}")]
    AlreadyExists(String),
    /// The size asked for cannot be had.
    #[error("{0}")]
    OutOfRange(String),
    /// No room, no such topology here, or a limit reached.
    #[error("{0}")]
    Exhausted(String),
    /// It is in use, or doing it could destroy data; the text names the user or what was seen.
    #[error("{0}")]
    Refused(String),
    /// Another operation on the same object is running.
    #[error("{what}: {running} has been running for {}, stage: {stage}; this call can be repeated when it has ended", seconds(*age))]
    Busy {
        /// The volume or snapshot both want.
        what: String,
        /// The running operation, such as `DeleteVolume`.
        running: String,
        /// What it is doing.
        stage: String,
        /// For how long.
        age: Duration,
    },
    /// A paging token that this driver did not give, or that is no longer valid.
    #[error("starting_token: {0}; list again from the start with an empty token")]
    BadToken(String),
    /// This backend cannot do that.
    #[error("{0}")]
    Unsupported(String),
    /// The backend cannot be reached now; trying again can help.
    #[error("{0}")]
    Unavailable(String),
    /// The backend says that we may not.
    #[error("{0}")]
    Denied(String),
    /// It was not done in time. The work may still be going on.
    #[error("{0}")]
    Deadline(String),
    /// A record or a file is damaged; nothing was changed.
    #[error("{what} is damaged: {problem}; nothing was changed or deleted")]
    Corrupt {
        /// The record's path or name.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A system call failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// A fault of ours.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// [`Error::Invalid`] for a field.
    pub fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    /// The error for a failed system call: a full disk is [`Error::Exhausted`], a refusal [`Error::Denied`],
    /// all else [`Error::Io`].
    pub fn io(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let (doing, source) = (doing.into(), source.into());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Exhausted(format!("{doing}: {source}; free space there or use another root"))
            }
            io::ErrorKind::PermissionDenied => Self::Denied(format!("{doing}: {source}")),
            _ => Self::Io { doing, source: Arc::new(source) },
        }
    }

    /// The same with one more thing to know at the end of its text. What has no text of its own stays as it is.
    #[must_use]
    pub(crate) fn with(mut self, more: &str) -> Self {
        let text = match &mut self {
            Self::Invalid { problem: text, .. }
            | Self::NotFound(text)
            | Self::AlreadyExists(text)
            | Self::OutOfRange(text)
            | Self::Exhausted(text)
            | Self::Refused(text)
            | Self::Unsupported(text)
            | Self::Unavailable(text)
            | Self::Denied(text)
            | Self::Deadline(text)
            | Self::Internal(text) => text,
            Self::Busy { .. } | Self::BadToken(_) | Self::Corrupt { .. } | Self::Io { .. } => return self,
        };
        text.push_str("; ");
        text.push_str(more);
        self
    }

    /// The variant's name in snake case: the label of the error in metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid",
            Self::NotFound(_) => "not_found",
            Self::AlreadyExists(_) => "already_exists",
            Self::OutOfRange(_) => "out_of_range",
            Self::Exhausted(_) => "exhausted",
            Self::Refused(_) => "refused",
            Self::Busy { .. } => "busy",
            Self::BadToken(_) => "bad_token",
            Self::Unsupported(_) => "unsupported",
            Self::Unavailable(_) => "unavailable",
            Self::Denied(_) => "denied",
            Self::Deadline(_) => "deadline",
            Self::Corrupt { .. } => "corrupt",
            Self::Io { .. } => "io",
            Self::Internal(_) => "internal",
        }
    }
}

/// A text without what Rust adds to the system's words: ` (os error 2)`.
pub fn plain(text: &str) -> String {
    const ADDED: &str = " (os error ";
    let (mut plain, mut rest) = (String::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once(ADDED) {
        let number = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        plain.push_str(before);
        rest = match after[number..].strip_prefix(')') {
            Some(tail) if number > 0 => tail,
            _ => {
                plain.push_str(ADDED);
                after
            }
        };
    }
    plain + rest
}

/// A duration as people read it: `0.4 s`, `95 s`.
fn seconds(age: Duration) -> String {
    if age < Duration::from_secs(10) {
        format!("{:.1} s", age.as_secs_f64())
    } else {
        format!("{} s", age.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_exhausted_and_keeps_what_was_being_done() {
        let error = Error::io("writing /data/disk.img", io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(error.label(), "exhausted");
        assert!(error.to_string().starts_with("writing /data/disk.img: "));
    }

    #[test]
    fn busy_names_the_running_operation_its_stage_and_age() {
        let error = Error::Busy {
            what: "volume default:db".into(),
            running: "CreateSnapshot".into(),
            stage: "copying 10 of 20 MiB".into(),
            age: Duration::from_millis(1500),
        };
        let text = error.to_string();
        assert!(
            text.contains("CreateSnapshot has been running for 1.5 s, stage: copying 10 of 20 MiB"),
            "{text}"
        );
    }
}
