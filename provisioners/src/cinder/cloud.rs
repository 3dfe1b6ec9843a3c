//! One cloud: a session with Keystone's token, the addresses of Cinder and Nova, and requests that are repeated where
//! that is safe.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::answer::{CinderBackup, CinderSnapshot, CinderVolume};
use super::config::CinderCloud;
use super::errors::{Fault, is_limit, message};
use super::session::{Connected, Place, Raw};
use super::watch::Watch;
use crate::parts::Asked;
use crate::{Error, Result};

/// How long a request is repeated.
const BUDGET: Duration = Duration::from_secs(20);
/// The first pause before a repetition; it doubles.
const PAUSE: Duration = Duration::from_millis(200);

/// After this time a token's roles may be others than its user's.
const ROLES: Duration = Duration::from_secs(60);

/// A service of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Cinder.
    Volume,
    /// Nova.
    Compute,
}

/// What a request may do when its answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// It can be sent again: it changes nothing, or the same twice.
    Safe,
    /// It may make a second thing.
    Never,
}

/// A request.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) service: Service,
    pub(super) method: Method,
    /// Below the endpoint, with its query.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    pub(super) again: Again,
}

impl Ask {
    pub(super) fn get(service: Service, path: impl Into<String>) -> Self {
        Self { service, method: Method::GET, path: path.into(), body: None, again: Again::Safe }
    }

    pub(super) fn post(service: Service, path: impl Into<String>, body: Value) -> Self {
        Self { service, method: Method::POST, path: path.into(), body: Some(body), again: Again::Never }
    }

    pub(super) fn delete(service: Service, path: impl Into<String>) -> Self {
        Self { service, method: Method::DELETE, path: path.into(), body: None, again: Again::Safe }
    }

    /// The same, to be sent again when its answer is lost.
    pub(super) fn repeatable(self) -> Self {
        Self { again: Again::Safe, ..self }
    }
}

/// Requests that were sent.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) polls: AtomicU64,
    pub(super) logins: AtomicU64,
}

/// One cloud.
pub(super) struct Cloud {
    pub(super) spec: CinderCloud,
    /// Its name in handles; `None`: the first.
    pub(super) prefix: Option<String>,
    timeout: Duration,
    connected: tokio::sync::Mutex<Option<Arc<Connected>>>,
    /// Where it was when it was first connected to.
    place: OnceLock<Place>,
    /// The cloud's clock less ours, in milliseconds.
    skew: AtomicI64,
    pub(super) counts: Counts,
    pub(super) volumes: Watch<CinderVolume>,
    pub(super) snapshots: Watch<CinderSnapshot>,
    pub(super) backups: Watch<CinderBackup>,
    /// What was found of the zones when they were last compared.
    pub(super) zones: Mutex<Option<String>>,
    /// Whether it answers, when it was asked that.
    pub(super) asked: Asked,
}

impl Cloud {
    pub(super) fn new(spec: CinderCloud, prefix: Option<String>, timeout: Duration) -> Self {
        Self {
            spec,
            prefix,
            timeout,
            connected: tokio::sync::Mutex::default(),
            place: OnceLock::new(),
            skew: AtomicI64::new(0),
            asked: Asked::default(),
            counts: Counts::default(),
            volumes: Watch::default(),
            snapshots: Watch::default(),
            backups: Watch::default(),
            zones: Mutex::default(),
        }
    }

    /// The session; made anew when its token ends soon. One at a time makes it.
    pub(super) async fn connected(&self) -> Result<Arc<Connected>> {
        let mut held = self.connected.lock().await;
        if let Some(connected) = held.as_ref().filter(|connected| !connected.ends_soon()) {
            return Ok(connected.clone());
        }
        self.counts.logins.fetch_add(1, Ordering::Relaxed);
        let connected = Arc::new(Connected::new(&self.spec, self.timeout).await?);
        self.require_place(&connected.place())?;
        tracing::info!(cloud = %self.spec.name, versions = %connected.versions(), "connected");
        *held = Some(connected.clone());
        Ok(connected)
    }

    /// Another project, or another Cinder, has none of the volumes that this process knows, and would say so of each:
    /// [`Error::Unavailable`].
    fn require_place(&self, now: &Place) -> Result<()> {
        let first = self.place.get_or_init(|| now.clone());
        if first == now {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "cloud {}: Keystone now gives project {} and Cinder at {}, and it was project {} and Cinder at {}; nothing is \
             asked there, for what is not found in another place is not gone. If this is meant, restart the driver",
            self.spec.name,
            now.project.as_deref().unwrap_or("none"),
            now.volume,
            first.project.as_deref().unwrap_or("none"),
            first.volume
        )))
    }

    /// Lets a session go whose token is refused.
    async fn forget(&self, old: &Arc<Connected>) {
        let mut held = self.connected.lock().await;
        if held.as_ref().is_some_and(|now| Arc::ptr_eq(now, old)) {
            *held = None;
        }
    }

    /// The cloud's time now.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now()
            .saturating_add(SignedDuration::from_millis(self.skew.load(Ordering::Relaxed)))
            .unwrap_or(Timestamp::MAX)
    }

    /// Sends a request, again after passing troubles where that is safe. The answer's JSON; `null` where it has none.
    pub(super) async fn send(&self, ask: Ask) -> Result<Value, Fault> {
        let (begun, mut pause, mut renewed) = (Instant::now(), PAUSE, false);
        loop {
            let connected = self.connected().await?;
            let raw = self.once(&connected, &ask).await;
            if matches!(&raw, Ok(raw) if is_of_token(raw, connected.since.elapsed())) && !renewed {
                renewed = true;
                self.forget(&connected).await;
                continue;
            }
            let (outcome, wait) = judge(&ask, raw, pause);
            match wait {
                Some(wait) if begun.elapsed() + wait < BUDGET => {
                    self.counts.retries.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(wait).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                _ => return outcome,
            }
        }
    }

    async fn once(&self, connected: &Connected, ask: &Ask) -> Result<Raw, Fault> {
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let raw = connected.send(ask).await?;
        tracing::debug!(method = %ask.method, path = %ask.path, status = raw.status, "asked");
        if let Some(date) = raw.date {
            let skew = date.duration_since(Timestamp::now()).as_millis();
            self.skew.store(i64::try_from(skew).unwrap_or(0), Ordering::Relaxed);
        }
        Ok(raw)
    }

    /// Notes what was found of the zones; whether that is news.
    pub(super) fn note_zones(&self, text: &str) -> bool {
        let mut noted = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        let news = noted.as_deref() != Some(text);
        *noted = Some(text.to_owned());
        news
    }
}

/// Whether an answer may be another one with a new token: this one is refused, or it has the roles that the user had when it
/// was made, `age` ago.
fn is_of_token(raw: &Raw, age: Duration) -> bool {
    let by_roles = || raw.status == 403 && age > ROLES && !is_limit(&message(&raw.body));
    raw.is_services() && (raw.status == 401 || by_roles())
}

/// What an answer is, and how long to wait before the request is sent again; `None`: it is not.
fn judge(ask: &Ask, raw: Result<Raw, Fault>, pause: Duration) -> (Result<Value, Fault>, Option<Duration>) {
    let safe = ask.again == Again::Safe;
    let raw = match raw {
        Ok(raw) => raw,
        Err(fault) => {
            let wait = (safe && matches!(fault, Fault::Lost(_))).then_some(pause);
            return (Err(fault), wait);
        }
    };
    if (200..300).contains(&raw.status) {
        if raw.body.is_empty() && ask.method == Method::GET {
            return (Err(Fault::Lost("an empty answer".into())), safe.then_some(pause));
        }
        if raw.body.is_empty() {
            return (Ok(Value::Null), None);
        }
        return match serde_json::from_slice(&raw.body) {
            Ok(value) => (Ok(value), None),
            Err(error) => {
                (Err(Fault::Lost(format!("the answer is no whole JSON: {error}"))), safe.then_some(pause))
            }
        };
    }
    let text = message(&raw.body);
    let later = raw.retry_after.filter(|after| !after.is_zero());
    match raw.status {
        // Not done, by the status' meaning (RFC 6585); a quota says so without a time.
        429 => (Err(Fault::Status(429, text)), Some(later.unwrap_or(pause))),
        413 => (Err(Fault::Status(413, text)), later),
        500..=599 if safe => (Err(Fault::Status(raw.status, text)), Some(later.unwrap_or(pause))),
        // A proxy that asks to come later has not passed it on.
        503 if later.is_some() => (Err(Fault::Status(503, text)), later),
        500..=599 => (Err(Fault::Lost(format!("HTTP {}: {text}", raw.status))), None),
        status if raw.is_services() => (Err(Fault::Status(status, text)), None),
        // Of what there is, only the service itself knows.
        status => {
            let why = format!("HTTP {status} of something before the service: {text}");
            (Err(Fault::Lost(why)), safe.then_some(pause))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(
        again: Again,
        status: u16,
        retry_after: Option<u64>,
        body: &str,
    ) -> (Result<Value, Fault>, Option<Duration>) {
        let ask = Ask { again, ..Ask::get(Service::Volume, "volumes") };
        let raw = Raw {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            date: None,
            from_service: true,
            body: body.as_bytes().to_vec(),
        };
        judge(&ask, Ok(raw), PAUSE)
    }

    #[test]
    fn a_token_of_old_roles_is_made_anew() {
        let of = |status, body: &str, seconds| {
            let body = body.as_bytes().to_vec();
            let raw = Raw { status, retry_after: None, date: None, from_service: true, body };
            is_of_token(&raw, Duration::from_secs(seconds))
        };
        let policy = r#"{"forbidden": {"code": 403, "message": "Policy doesn't allow volume:create to be performed."}}"#;
        let limit = r#"{"forbidden": {"code": 403, "message": "Maximum number of volumes (26) exceeded"}}"#;
        assert!(of(401, "", 0) && of(403, policy, 61));
        assert!(!of(403, policy, 59) && !of(403, limit, 61) && !of(404, "", 61));
    }

    #[test]
    fn a5_another_project_or_cinder_is_not_asked() {
        let cloud = Cloud::new(CinderCloud::default(), None, PAUSE);
        let place =
            |project: &str, volume: &str| Place { project: Some(project.into()), volume: volume.into() };
        cloud.require_place(&place("p", "http://a/v3")).unwrap();
        cloud.require_place(&place("p", "http://a/v3")).unwrap();
        for other in [place("q", "http://a/v3"), place("p", "http://b/v3")] {
            assert_eq!(cloud.require_place(&other).unwrap_err().label(), "unavailable");
        }
    }

    #[test]
    fn only_what_is_safe_or_was_not_done_is_sent_again() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(judged(Again::Never, 429, Some(1), "").1, second);
        assert_eq!(judged(Again::Never, 503, Some(1), "").1, second);
        assert_eq!(judged(Again::Never, 413, Some(0), "").1, None);
        assert_eq!(judged(Again::Safe, 502, None, "").1, Some(PAUSE));
        for (status, body) in [(500, ""), (503, ""), (504, ""), (202, "{\"volume\": {")] {
            let (outcome, wait) = judged(Again::Never, status, None, body);
            assert!(matches!(outcome, Err(Fault::Lost(_))), "{status}: {outcome:?}");
            assert_eq!(wait, None, "{status}");
        }
        assert_eq!(judged(Again::Safe, 404, None, "").1, None);
        let empty = Raw { status: 202, retry_after: None, date: None, from_service: true, body: Vec::new() };
        assert!(judge(&Ask::delete(Service::Volume, "volumes/x"), Ok(empty), PAUSE).0.unwrap().is_null());
    }

    /// A gateway's, a proxy's or a portal's answer says nothing of what there is.
    #[test]
    fn a5_only_the_service_says_what_there_is() {
        let page = "<html><h1>not here</h1></html>";
        let raw = |status, body: &str, from_service| Raw {
            status,
            retry_after: None,
            date: None,
            from_service,
            body: body.as_bytes().to_vec(),
        };
        let get = Ask::get(Service::Volume, "volumes/x");
        for status in [302, 400, 401, 403, 404, 405, 409, 410] {
            for body in [page, "", r#"{"message": "no route"}"#] {
                let (outcome, wait) = judge(&get, Ok(raw(status, body, false)), PAUSE);
                assert!(matches!(outcome, Err(Fault::Lost(_))), "{status} {body}: {outcome:?}");
                assert_eq!(wait, Some(PAUSE));
            }
        }
        for body in [page, ""] {
            let (outcome, _) = judge(&get, Ok(raw(200, body, false)), PAUSE);
            assert!(matches!(outcome, Err(Fault::Lost(_))), "{body}: {outcome:?}");
        }
        let (outcome, _) = judge(&get, Ok(raw(404, page, true)), PAUSE);
        assert!(matches!(outcome, Err(Fault::Status(404, _))), "{outcome:?}");
    }
}
