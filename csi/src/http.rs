//! `/metrics`, `/healthz` and `/readyz`.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::driver::Service;
use crate::metrics::Metrics;

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    /// For `/metrics`.
    pub(crate) metrics: Metrics,
    /// For `/readyz`: every driver must answer its Probe.
    pub(crate) drivers: Arc<Vec<Service>>,
    /// Set once all sockets are bound, cleared when the process stops.
    pub(crate) serving: Arc<AtomicBool>,
}

/// The routes.
pub(crate) fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match pages.metrics.encode() {
        Ok(text) => Ok(([(header::CONTENT_TYPE, TYPE)], text)),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

/// 200 when every driver is ready, else 503 with a line for each that is not.
async fn ready(State(pages): State<Pages>) -> (StatusCode, String) {
    if !pages.serving.load(Ordering::Acquire) {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting or stopping\n".into());
    }
    let mut problems = String::new();
    for driver in pages.drivers.iter() {
        if let Err(error) = driver.probe_backend().await {
            let _ = writeln!(problems, "{}: {error}", driver.name);
        }
    }
    if problems.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems)
    }
}
