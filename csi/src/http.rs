//! `/metrics`, `/healthz` and `/readyz`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::driver::Service;
use crate::identity::{self, problem};
use crate::metrics::Metrics;

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    /// For `/metrics`.
    pub(crate) metrics: Metrics,
    /// For `/readyz`: how the drivers are.
    pub(crate) drivers: Arc<Vec<Service>>,
    /// Set once all sockets are bound, cleared when the process stops.
    pub(crate) serving: Arc<AtomicBool>,
    /// Whether only this machine sees them, so that they may say what is wrong: errors name servers and paths.
    pub(crate) private: bool,
}

/// The routes.
pub(crate) fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/readyz/{driver}", get(ready_of))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match pages.metrics.encode() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, TYPE)], text)),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// 200 while one of the drivers can serve, with a line for each of them and for all that is wrong with it.
async fn ready(State(pages): State<Pages>) -> (StatusCode, String) {
    shown(&pages, |_| true).await
}

/// The same for one driver.
async fn ready_of(State(pages): State<Pages>, Path(driver): Path<String>) -> (StatusCode, String) {
    shown(&pages, |name| name == driver).await
}

async fn shown(pages: &Pages, wanted: impl Fn(&str) -> bool) -> (StatusCode, String) {
    if !pages.serving.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n".into());
    }
    // At the same time: one that is slow keeps none of the others' waiting.
    let asked: Vec<_> = (pages.drivers.iter().filter(|driver| wanted(&driver.name)).cloned())
        .map(|driver| (driver.name.clone(), tokio::spawn(async move { driver.readiness().await })))
        .collect();
    let (mut text, mut serves) = (String::new(), false);
    for (name, parts) in asked {
        let Some(parts) = parts.await.unwrap_or_default() else {
            let _ = writeln!(text, "{name}: not ready: it has not answered yet");
            continue;
        };
        let problems: Vec<String> = parts.iter().filter_map(problem).collect();
        let good = identity::serves(&parts);
        serves |= good;
        let state = match (good, problems.is_empty()) {
            (true, true) => "ready",
            (true, false) => "ready in part",
            (false, _) => "not ready",
        };
        let _ = writeln!(text, "{name}: {state}");
        for problem in problems.iter().filter(|_| pages.private) {
            let _ = writeln!(text, "{name}: {problem}");
        }
    }
    if text.is_empty() {
        return (StatusCode::NOT_FOUND, "there is no such driver\n".into());
    }
    (if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}
