//! Requests as they are, for benches and tests: with the token, and nothing more.

use std::sync::Arc;

use http::Method;
use serde_json::Value;

use super::cloud::{Again, Ask, Cloud, Service};
use super::config::CinderCloud;
use super::errors::Fault;
use crate::Result;

/// A cloud to send raw requests to.
#[derive(Clone)]
pub struct Bare {
    cloud: Arc<Cloud>,
}

impl Bare {
    /// Nothing is sent yet.
    pub fn new(cloud: CinderCloud) -> Self {
        let timeout = std::time::Duration::from_secs(60);
        Self { cloud: Arc::new(Cloud::new(cloud, None, timeout)) }
    }

    /// Sends `GET volumes/…` and the like; a body makes it a POST. The answer's JSON; any failure is an error with its
    /// status and message.
    pub async fn ask(&self, service: Service, path: &str, body: Option<Value>) -> Result<Value> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        self.send(service, method, path, body).await
    }

    /// Sends `PUT`.
    pub async fn put(&self, service: Service, path: &str, body: Value) -> Result<Value> {
        self.send(service, Method::PUT, path, Some(body)).await
    }

    /// Sends `DELETE`.
    pub async fn delete(&self, service: Service, path: &str) -> Result<()> {
        self.send(service, Method::DELETE, path, None).await.map(drop)
    }

    async fn send(&self, service: Service, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let doing = format!("{method} {path}");
        let ask = Ask { service, method, path: path.to_owned(), body, again: Again::Never };
        self.cloud.send(ask).await.map_err(|fault: Fault| fault.doing(&doing))
    }
}
