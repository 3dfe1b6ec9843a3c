//! What an answer of OpenStack means for a volume, and what to do about it.

use serde_json::Value;

use crate::Error;

/// A request that did not do what it was for.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// It was answered with this HTTP status and message.
    Status(u16, String),
    /// No whole answer came: whether it was done is not known.
    Lost(String),
    /// It was not sent.
    Error(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Fault {
    /// Whether the answer had a status.
    pub(super) fn is(&self, wanted: u16) -> bool {
        matches!(self, Self::Status(status, _) if *status == wanted)
    }

    /// Whether the service says that this thing is not there: by its id, for a path that it does not know is a 404, too.
    pub(super) fn is_gone(&self, id: &str) -> bool {
        self.is(404) && self.says(id)
    }

    /// A 404 that is not about the thing that was asked for says nothing of it.
    pub(super) fn unless_gone(self, id: &str) -> Self {
        match self {
            Self::Status(404, message) if !message.contains(id) => Self::Lost(format!(
                "HTTP 404, which does not name {id}: {message}; see whether the endpoint is right"
            )),
            other => other,
        }
    }

    /// Whether the answer's message has some words.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Status(_, message) if message.contains(words))
    }

    /// As an error of an operation: `doing` says what, with the volume's id.
    pub(super) fn doing(self, doing: &str) -> Error {
        let (status, message) = match self {
            Self::Error(error) => return error,
            Self::Lost(why) => {
                return Error::Unavailable(format!("{doing}: no answer ({why}); repeat the call"));
            }
            Self::Status(status, message) => (status, message),
        };
        let text = format!("{doing}: {message} (HTTP {status})");
        match status {
            400 => refused(&text, &message),
            401 => Error::Denied(format!("{text}; check the user, its password or application credential")),
            // A quota, or Nova's `max_disk_devices_to_attach`.
            403 if is_limit(&message) => Error::Exhausted(text),
            403 => Error::Denied(format!(
                "{text}; the cloud's policy does not let this user do that: give it a role that may (one that it gets counts a minute later)"
            )),
            404 => Error::NotFound(text),
            // A quota. Nova and Cinder answer with the numbers.
            413 => Error::Exhausted(format!("{text}; raise the quota or delete something")),
            409 => Error::Refused(text),
            429 | 500..=599 => Error::Unavailable(format!("{text}; repeat the call")),
            _ => Error::Internal(text),
        }
    }
}

/// A 400 says either that a field is wrong, or that the volume's state does not allow it now.
fn refused(text: &str, message: &str) -> Error {
    if is_limit(message) {
        return Error::Exhausted(text.to_owned());
    }
    let of_state =
        ["Invalid volume:", "Invalid snapshot:", "status must be", "Volume status", "in use", "Cannot '"];
    if of_state.iter().any(|words| message.contains(words)) {
        return Error::Refused(text.to_owned());
    }
    Error::invalid("request", text.to_owned())
}

pub(super) fn is_limit(message: &str) -> bool {
    let message = message.to_lowercase();
    let is_too_many =
        message.contains("maximum") && message.contains("number") && message.contains("exceeded");
    is_too_many || ["quota", "maximum number", "exceeds allowed"].iter().any(|words| message.contains(words))
}

/// How OpenStack's services name their errors in JSON, and each's status.
const NAMES: [(&str, u16); 9] = [
    ("badRequest", 400),
    ("unauthorized", 401),
    ("error", 401),
    ("forbidden", 403),
    ("itemNotFound", 404),
    ("badMethod", 405),
    ("conflictingRequest", 409),
    ("overLimit", 413),
    ("overLimit", 429),
];

/// Whether an error's body is one of the services', as against one of a proxy, a gateway or a captive portal before them.
pub(super) fn is_services(status: u16, body: &[u8]) -> bool {
    let Ok(Value::Object(parsed)) = serde_json::from_slice(body) else { return false };
    parsed.iter().any(|(name, inner)| {
        NAMES.contains(&(name.as_str(), status)) && inner["code"] == status && inner["message"].is_string()
    })
}

/// The message of an error's body: `{"badRequest": {"code": 400, "message": "…"}}`, of Keystone `{"error": …}`, or a text.
pub(super) fn message(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let found = parsed.as_ref().and_then(|value| {
        let inner = value.as_object()?.values().find(|inner| inner["message"].is_string())?;
        inner["message"].as_str()
    });
    let text = match found {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(body).trim().to_owned(),
    };
    let text = if text.is_empty() { "an empty answer".to_owned() } else { text };
    text.chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shapes that Cinder, Nova and Keystone answer with, and what each means.
    const SHAPES: [(u16, &str, &str); 12] = [
        (404, r#"{"itemNotFound":{"code":404,"message":"Volume 0000 could not be found."}}"#, "not_found"),
        (
            413,
            r#"{"overLimit":{"code":413,"message":"VolumeSizeExceedsAvailableQuota: Requested 1000G, quota is 100G and 9G has been consumed.","retryAfter":"0"}}"#,
            "exhausted",
        ),
        (
            413,
            r#"{"overLimit":{"code":413,"message":"VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota 'volumes'."}}"#,
            "exhausted",
        ),
        (
            400,
            r#"{"badRequest":{"code":400,"message":"Invalid volume: Volume status must be available or error, but current status is: in-use."}}"#,
            "refused",
        ),
        (
            400,
            r#"{"badRequest":{"code":400,"message":"Invalid volume: volume X is already attached to instances: Y"}}"#,
            "refused",
        ),
        (
            400,
            r#"{"badRequest":{"code":400,"message":"Invalid input for field/attribute size. Value: 0."}}"#,
            "invalid",
        ),
        (
            403,
            r#"{"forbidden":{"code":403,"message":"Policy doesn't allow volume:x to be performed."}}"#,
            "denied",
        ),
        (
            403,
            r#"{"forbidden":{"code":403,"message":"Maximum number of volumes (26) exceeded"}}"#,
            "exhausted",
        ),
        (
            403,
            r#"{"forbidden":{"code":403,"message":"The maximum allowed number of disk devices (2) to attach to a single instance has been exceeded."}}"#,
            "exhausted",
        ),
        (
            409,
            r#"{"conflictingRequest":{"code":409,"message":"Cannot 'attach_volume' instance while it is in task_state spawning"}}"#,
            "refused",
        ),
        (
            401,
            r#"{"error":{"code":401,"title":"Unauthorized","message":"The request you have made requires authentication."}}"#,
            "denied",
        ),
        (503, "Service Unavailable", "unavailable"),
    ];

    #[test]
    fn a5_a_gateways_body_is_not_the_services() {
        for (status, body, _) in SHAPES {
            assert_eq!(is_services(status, body.as_bytes()), status != 503, "{body}");
        }
        for body in [
            "",
            "<html>404</html>",
            "{}",
            r#"{"message": "no Route matched"}"#,
            r#"{"itemNotFound": {"code": 404}}"#,
        ] {
            assert!(!is_services(404, body.as_bytes()), "{body}");
        }
        assert!(!is_services(404, SHAPES[0].1.replace("404", "410").as_bytes()));
        let fault = || Fault::Status(404, "The resource could not be found.".into());
        assert!(!fault().is_gone("0000") && matches!(fault().unless_gone("0000"), Fault::Lost(_)));
        assert!(Fault::Status(404, message(SHAPES[0].1.as_bytes())).is_gone("0000"));
    }

    #[test]
    fn every_shape_has_its_meaning() {
        for (status, body, label) in SHAPES {
            let error = Fault::Status(status, message(body.as_bytes())).doing("creating");
            assert_eq!(error.label(), label, "{error}");
            assert!(error.to_string().contains("creating: "), "{error}");
        }
        assert_eq!(Fault::Lost("cut".into()).doing("x").label(), "unavailable");
        assert!(message(SHAPES[1].1.as_bytes()).contains("quota is 100G and 9G"));
        assert_eq!(message(b""), "an empty answer");
    }
}
