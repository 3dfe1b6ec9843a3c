//! A session: clouds.yaml read and Keystone asked by openstack_sdk, and raw requests with the token.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use openstack_sdk::api::{ApiError, AsyncClient as _, RestClient as _};
use openstack_sdk::config::CloudConfig;
use openstack_sdk::types::ServiceType;
use openstack_sdk::{AsyncOpenStack, RestError};
use serde_json::Value;

use super::cloud::{Ask, Service};
use super::config::CinderCloud;
use super::errors::Fault;
use super::settings::{Settings, settings};
use crate::{Error, Result};

/// The newest microversions whose answers this backend was tested with.
const NEWEST: [(Service, u16); 2] = [(Service::Volume, 60), (Service::Compute, 60)];
/// Cinder's microversion that grows volumes in use.
pub(super) const GROWS_ONLINE: u16 = 42;
/// Cinder's microversion that lists what has changed since a time.
pub(super) const LISTS_BY_TIME: u16 = 60;
/// Cinder's microversion that shows a volume's service, which is the last thing that is written when one is made.
pub(super) const SHOWS_SERVICE: u16 = 48;
/// Nova's microversion that attaches a volume to several servers.
pub(super) const MULTIATTACH: u16 = 60;
/// What the services' answers have, and others' have not.
const REQUEST_IDS: [&str; 2] = ["x-openstack-request-id", "x-compute-request-id"];
/// A token that ends in so many seconds is renewed.
const MARGIN: i64 = 120;

/// An answer.
pub(super) struct Raw {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) date: Option<Timestamp>,
    /// It has the request's number that OpenStack's services give (openstack.org, api-ref "Request ID").
    pub(super) from_service: bool,
    pub(super) body: Vec<u8>,
}

impl Raw {
    /// Whether the service itself has answered, as far as can be told.
    pub(super) fn is_services(&self) -> bool {
        self.from_service || super::errors::is_services(self.status, &self.body)
    }
}

/// Where a session is: what is not found in another place is not gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The project's id.
    pub(super) project: Option<String>,
    /// Cinder's address.
    pub(super) volume: String,
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
    /// When it was made.
    pub(super) since: Instant,
}

impl Connected {
    /// Reads the cloud's settings, gets a token, finds the services and their versions.
    pub(super) async fn new(spec: &CinderCloud, timeout: Duration) -> Result<Self> {
        // Else the linker drops the plugin, which only registers itself.
        std::hint::black_box(&openstack_sdk_auth_applicationcredential::ANCHOR);
        let Settings { config, interface } = settings(spec)?;
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
            since: Instant::now(),
        };
        connected.volume = connected.find(spec, &config, &interface, Service::Volume).await?;
        connected.compute = connected.find(spec, &config, &interface, Service::Compute).await?;
        Ok(connected)
    }

    /// Whether the token has to be renewed.
    pub(super) fn ends_soon(&self) -> bool {
        ends_soon(self.ends, Timestamp::now().as_second())
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        let project = self.client.get_current_project().and_then(|project| project.id);
        Place { project, volume: self.volume.base.clone() }
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

    async fn find(
        &self,
        spec: &CinderCloud,
        config: &CloudConfig,
        interface: &str,
        service: Service,
    ) -> Result<Endpoint> {
        let (kind, given, name) = match service {
            Service::Volume => (ServiceType::BlockStorage, &spec.volume_endpoint, "Cinder"),
            Service::Compute => (ServiceType::Compute, &spec.compute_endpoint, "Nova"),
        };
        let base = match given {
            Some(url) => url.clone(),
            // openstack_sdk knows only the interface that it has logged in with.
            None if interface != "public" && !is_overridden(config, service) => {
                let region = config.region_name.as_deref();
                self.in_catalog(service, interface, region).ok_or_else(|| {
                    Error::Unavailable(format!(
                        "cloud {}: the catalog has no address of {name} for the interface {interface} and region {}; set interface or region, or {}",
                        spec.name,
                        region.unwrap_or("(any)"),
                        if service == Service::Volume { "volumeEndpoint" } else { "computeEndpoint" }
                    ))
                })?
            }
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
        let base = versioned(&base, service);
        let max = self
            .newest(&root(&base, service))
            .await
            .map_err(|fault| fault.doing(&format!("asking {name} for its versions at {base}")))?;
        let cap = NEWEST.iter().find(|(of, _)| *of == service).map_or(0, |(_, minor)| *minor);
        Ok(Endpoint { base: self.with_project(base, service, max), minor: max.min(cap) })
    }

    /// A service's address in the catalog that came with the token.
    fn in_catalog(&self, service: Service, interface: &str, region: Option<&str>) -> Option<String> {
        let catalog = self.client.get_token_catalog()?;
        let in_region = |has: &Option<String>| region.is_none_or(|region| has.as_deref() == Some(region));
        types(service).iter().find_map(|kind| {
            let of_kind = catalog.iter().filter(|it| it.service_type == *kind);
            let mut all = of_kind.flat_map(|it| &it.endpoints);
            all.find(|it| it.interface == interface && in_region(&it.region)).map(|it| it.url.clone())
        })
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
            from_service: REQUEST_IDS.iter().any(|name| answer.headers().contains_key(*name)),
            body: answer.into_body().to_vec(),
        })
    }
}

/// Whether a token that ends then (seconds since 1970) is to be renewed now.
fn ends_soon(ends: Option<i64>, now: i64) -> bool {
    ends.is_some_and(|ends| ends.saturating_sub(now) < MARGIN)
}

/// How a service is called in catalogs (service-types.openstack.org), the newest name first.
fn types(service: Service) -> &'static [&'static str] {
    match service {
        Service::Volume => &["block-storage", "block-store", "volumev3", "volume"],
        Service::Compute => &["compute"],
    }
}

/// Whether clouds.yaml has an address of the service itself.
fn is_overridden(config: &CloudConfig, service: Service) -> bool {
    let kinds = config.options.keys().filter_map(|key| key.strip_suffix("_endpoint_override"));
    kinds.map(|kind| kind.replace('_', "-")).any(|kind| types(service).contains(&kind.as_str()))
}

/// A service's address with its major version, which some catalogs leave out; no slash at its end.
fn versioned(base: &str, service: Service) -> String {
    let base = base.trim_end_matches('/');
    let major = if service == Service::Volume { "/v3" } else { "/v2.1" };
    let is_version = |part: &str| {
        part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    // The host's name is no version.
    let path = base.split_once("://").map_or(base, |(_, rest)| rest);
    if path.split('/').skip(1).any(is_version) { base.to_owned() } else { format!("{base}{major}") }
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

fn not_connected(spec: &CinderCloud, url: &str, error: &openstack_sdk::OpenStackError) -> Error {
    let mut chain = causes(error);
    chain.dedup();
    let all = chain.join(": ");
    let text = format!("connecting to cloud {} at {url}: {all}", spec.name);
    // Keystone's own words; a page of something before it has others.
    let refused = ["requires authentication", "not authorized to perform", "Could not find project"];
    if refused.iter().any(|words| all.contains(words)) {
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
    fn an_address_without_a_version_gets_it() {
        for (base, whole) in [
            ("http://c:8776", "http://c:8776/v3"),
            ("http://c:8776/", "http://c:8776/v3"),
            ("https://c/volume/", "https://c/volume/v3"),
            ("http://c:8776/v3/0123", "http://c:8776/v3/0123"),
            ("http://c:8776/v3/", "http://c:8776/v3"),
            ("http://v3.example:8776", "http://v3.example:8776/v3"),
        ] {
            assert_eq!(versioned(base, Service::Volume), whole);
        }
        assert_eq!(versioned("http://c/compute", Service::Compute), "http://c/compute/v2.1");
        assert_eq!(versioned("http://c/compute/v2.1", Service::Compute), "http://c/compute/v2.1");
    }

    #[test]
    fn the_version_document_is_above_the_project() {
        assert_eq!(root("http://c:8776/v3/0123", Service::Volume), "http://c:8776/v3");
        assert_eq!(root("https://c/volume/v3", Service::Volume), "https://c/volume/v3");
        assert_eq!(root("https://c/compute/v2.1", Service::Compute), "https://c/compute/v2.1");
    }
}
