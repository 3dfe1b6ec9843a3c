//! A session: clouds.yaml read and Keystone asked by openstack_sdk, and raw requests with the token.

use std::time::Duration;

use jiff::Timestamp;
use openstack_sdk::api::{ApiError, AsyncClient as _, RestClient as _};
use openstack_sdk::config::{CloudConfig, ConfigFile};
use openstack_sdk::types::ServiceType;
use openstack_sdk::{AsyncOpenStack, RestError};
use serde_json::Value;

use super::cloud::{Ask, Service};
use super::config::CinderCloud;
use super::errors::Fault;
use crate::{Error, Result};

/// The newest microversions whose answers this backend was tested with.
const NEWEST: [(Service, u16); 2] = [(Service::Volume, 60), (Service::Compute, 60)];
/// Cinder's microversion that grows volumes in use.
pub(super) const GROWS_ONLINE: u16 = 42;
/// Cinder's microversion that lists what has changed since a time.
pub(super) const LISTS_BY_TIME: u16 = 60;
/// Nova's microversion that attaches a volume to several servers.
pub(super) const MULTIATTACH: u16 = 60;
/// A token that ends in so many seconds is renewed.
const MARGIN: i64 = 120;

/// An answer.
pub(super) struct Raw {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) date: Option<Timestamp>,
    pub(super) body: Vec<u8>,
}

/// Where a service is, and which microversion it is asked with.
struct Endpoint {
    /// Without a slash at the end.
    base: String,
    minor: u16,
}

/// A session.
pub(super) struct Connected {
    client: AsyncOpenStack,
    volume: Endpoint,
    compute: Endpoint,
    /// When the token ends, in seconds since 1970.
    ends: Option<i64>,
}

impl Connected {
    /// Reads the cloud's settings, gets a token, finds the services and their versions.
    pub(super) async fn new(spec: &CinderCloud, timeout: Duration) -> Result<Self> {
        // Else the linker drops the plugin, which only registers itself.
        std::hint::black_box(&openstack_sdk_auth_applicationcredential::ANCHOR);
        let config = settings(spec)?;
        let url = config.auth.as_ref().and_then(|auth| auth.auth_url.clone()).unwrap_or_default();
        let builder = AsyncOpenStack::builder(&config)
            .disable_auth_cache(true)
            .max_auth_retries(0)
            .http_timeout(timeout)
            .http_connect_timeout(Duration::from_secs(5))
            .http_pool_max_idle_per_host(64);
        let client = builder.connect().await.map_err(|error| not_connected(spec, &url, &error))?;
        let ends = client.get_auth_info().map(|info| info.token.expires_at.timestamp());
        let mut connected = Self {
            volume: Endpoint { base: String::new(), minor: 0 },
            compute: Endpoint { base: String::new(), minor: 0 },
            client,
            ends,
        };
        connected.volume = connected.find(spec, Service::Volume).await?;
        connected.compute = connected.find(spec, Service::Compute).await?;
        Ok(connected)
    }

    /// Whether the token has to be renewed.
    pub(super) fn ends_soon(&self) -> bool {
        ends_soon(self.ends, Timestamp::now().as_second())
    }

    /// The microversion that a service is asked with, without `3.` or `2.`.
    pub(super) fn minor(&self, service: Service) -> u16 {
        self.endpoint(service).minor
    }

    /// The microversions, for people.
    pub(super) fn versions(&self) -> String {
        format!("Cinder 3.{}, Nova 2.{}", self.volume.minor, self.compute.minor)
    }

    fn endpoint(&self, service: Service) -> &Endpoint {
        match service {
            Service::Volume => &self.volume,
            Service::Compute => &self.compute,
        }
    }

    async fn find(&self, spec: &CinderCloud, service: Service) -> Result<Endpoint> {
        let (kind, given, name) = match service {
            Service::Volume => (ServiceType::BlockStorage, &spec.volume_endpoint, "Cinder"),
            Service::Compute => (ServiceType::Compute, &spec.compute_endpoint, "Nova"),
        };
        let base = match given {
            Some(url) => url.clone(),
            None => {
                let found = self.client.get_service_endpoint(&kind, None).await.map_err(|error| {
                    Error::Unavailable(format!(
                        "cloud {}: the catalog has no address of {name} for this region and interface: {error}",
                        spec.name
                    ))
                })?;
                found.url().as_str().to_owned()
            }
        };
        let base = base.trim_end_matches('/').to_owned();
        let max = self
            .newest(&root(&base, service))
            .await
            .map_err(|fault| fault.doing(&format!("asking {name} for its versions at {base}")))?;
        let cap = NEWEST.iter().find(|(of, _)| *of == service).map_or(0, |(_, minor)| *minor);
        Ok(Endpoint { base: self.with_project(base, service, max), minor: max.min(cap) })
    }

    /// Cinder before its microversion 3.67 has the project in every address.
    fn with_project(&self, base: String, service: Service, max: u16) -> String {
        let bare = base.ends_with("/v3");
        let project = self.client.get_current_project().and_then(|project| project.id);
        match project {
            Some(project) if service == Service::Volume && bare && max < 67 => format!("{base}/{project}"),
            _ => base,
        }
    }

    /// The newest microversion of a service, without `3.` or `2.`.
    async fn newest(&self, root: &str) -> Result<u16, Fault> {
        let raw = self.request(http::Request::get(format!("{root}/")), Vec::new()).await?;
        if !(200..300).contains(&raw.status) {
            return Err(Fault::Status(raw.status, super::errors::message(&raw.body)));
        }
        let document: Value = serde_json::from_slice(&raw.body)
            .map_err(|e| Fault::Lost(format!("the versions are no JSON: {e}")))?;
        let one = document.get("version").into_iter();
        let many = document["versions"].as_array().into_iter().flatten();
        let newest = one.chain(many).filter_map(|entry| {
            entry["version"].as_str()?.split_once('.').and_then(|(_, minor)| minor.parse().ok())
        });
        Ok(newest.max().unwrap_or(0))
    }

    /// Sends one request.
    pub(super) async fn send(&self, ask: &Ask) -> Result<Raw, Fault> {
        let endpoint = self.endpoint(ask.service);
        let version = match ask.service {
            Service::Volume => format!("volume 3.{}", endpoint.minor),
            Service::Compute => format!("compute 2.{}", endpoint.minor),
        };
        let mut request = http::Request::builder()
            .method(ask.method.clone())
            .uri(format!("{}/{}", endpoint.base, ask.path))
            .header("Accept", "application/json")
            .header("OpenStack-API-Version", version);
        let mut body = Vec::new();
        if let Some(value) = &ask.body {
            request = request.header("Content-Type", "application/json");
            body = value.to_string().into_bytes();
        }
        self.request(request, body).await
    }

    async fn request(&self, request: http::request::Builder, body: Vec<u8>) -> Result<Raw, Fault> {
        let answer = self.client.rest_async(request, body).await.map_err(|error| lost(&error))?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        Ok(Raw {
            status: answer.status().as_u16(),
            retry_after: header("retry-after")
                .and_then(|text| text.trim().parse().ok())
                .map(Duration::from_secs),
            date: header("date")
                .and_then(|text| jiff::fmt::rfc2822::parse(text).ok())
                .map(|date| date.timestamp()),
            body: answer.into_body().to_vec(),
        })
    }
}

/// Whether a token that ends then (seconds since 1970) is to be renewed now.
fn ends_soon(ends: Option<i64>, now: i64) -> bool {
    ends.is_some_and(|ends| ends.saturating_sub(now) < MARGIN)
}

/// The address whose document has the versions: without what follows the major version.
fn root(base: &str, service: Service) -> String {
    let major = if service == Service::Volume { "/v3" } else { "/v2.1" };
    match base.find(major) {
        Some(at) => base[..at + major.len()].to_owned(),
        None => base.to_owned(),
    }
}

/// An error and what is behind it, the innermost last.
fn causes(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}

fn lost(error: &ApiError<RestError>) -> Fault {
    // The outer text is "communication with openstack"; the innermost says what happened.
    Fault::Lost(causes(error).pop().unwrap_or_default())
}

/// The cloud's settings, by clouds.yaml or the environment.
fn settings(spec: &CinderCloud) -> Result<CloudConfig> {
    let name = spec.cloud.clone().or_else(|| std::env::var("OS_CLOUD").ok().filter(|name| !name.is_empty()));
    let unread = |error: String| Error::invalid("cloudsFile", format!("cloud {}: {error}", spec.name));
    let mut config = match &name {
        None => CloudConfig::from_env().map_err(|e| unread(format!("reading the OS_* variables: {e}")))?,
        Some(name) => {
            let file = ConfigFile::new_with_user_specified_configs(
                spec.clouds_file.as_ref(),
                spec.secure_file.as_ref(),
            );
            let file = file.map_err(|e| unread(e.to_string()))?;
            let found = file.get_cloud_config(name).map_err(|e| unread(e.to_string()))?;
            found.ok_or_else(|| {
                let known = file.get_available_clouds().join(", ");
                unread(format!("clouds.yaml has no cloud {name:?}; it has: {known}"))
            })?
        }
    };
    if config.auth.as_ref().is_none_or(|auth| auth.auth_url.is_none()) {
        return Err(unread(
            "no auth_url was found; name a cloud of clouds.yaml, or set OS_CLOUD or OS_AUTH_URL".into(),
        ));
    }
    config.region_name = spec.region.clone().or(config.region_name);
    config.interface = spec.interface.clone().or(config.interface);
    Ok(config)
}

fn not_connected(spec: &CinderCloud, url: &str, error: &openstack_sdk::OpenStackError) -> Error {
    let mut chain = causes(error);
    chain.dedup();
    let all = chain.join(": ");
    let text = format!("connecting to cloud {} at {url}: {all}", spec.name);
    let refused =
        ["401", "Unauthorized", "requires authentication", "403"].iter().any(|words| all.contains(words));
    if refused {
        return Error::Denied(format!(
            "{text}; check the user, its password or application credential, and the project"
        ));
    }
    Error::Unavailable(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        assert!(!ends_soon(Some(1000), 1000 - MARGIN) && !ends_soon(None, i64::MAX));
        assert!(ends_soon(Some(1000), 1001 - MARGIN) && ends_soon(Some(1000), 5000));
    }

    #[test]
    fn the_version_document_is_above_the_project() {
        assert_eq!(root("http://c:8776/v3/0123", Service::Volume), "http://c:8776/v3");
        assert_eq!(root("https://c/volume/v3", Service::Volume), "https://c/volume/v3");
        assert_eq!(root("https://c/compute/v2.1", Service::Compute), "https://c/compute/v2.1");
    }
}
