//! Which server of Nova this node is, and in which zone: from the config drive, the metadata service, what cloud-init has
//! noted, or the firmware's tables. Each source has a short time; one that fails is passed over.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::config::{CinderConfig, MetadataSource};
use super::handle::is_uuid;
use crate::{Error, Result};

/// How long one source may take.
const SHORT: Duration = Duration::from_secs(3);
/// The document on the config drive and of the metadata service.
const DOCUMENT: &str = "openstack/latest/meta_data.json";
/// The largest answer that is read.
const ANSWER_MAX: u64 = 1 << 20;

/// This node as Nova knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    /// The server's UUID.
    pub(super) id: String,
    pub(super) zone: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    uuid: String,
    #[serde(default)]
    availability_zone: Option<String>,
}

impl Instance {
    /// Asks the sources in their order. None knows: [`Error::Unavailable`] with what each said.
    pub(super) fn find(config: &CinderConfig) -> Result<Self> {
        if let Some(id) = &config.instance {
            return Ok(Self { id: id.clone(), zone: config.zone.clone() });
        }
        let mut said = Vec::new();
        let mut found: Option<Self> = None;
        for source in &config.metadata_order {
            match ask(config, *source) {
                // A source that knows the server but not its zone is helped by the next.
                Ok(instance) => {
                    let same = found.as_ref().is_none_or(|found| found.id == instance.id);
                    if !same {
                        continue;
                    }
                    let zone = instance.zone.clone();
                    found = Some(instance);
                    if zone.is_some() {
                        break;
                    }
                }
                Err(why) => said.push(format!("{source:?}: {why}")),
            }
        }
        let mut found = found.ok_or_else(|| {
            Error::Unavailable(format!(
                "which server of Nova this node is could not be learned ({}); set instanceId, or make one of the sources work",
                said.join("; ")
            ))
        })?;
        found.zone = config.zone.clone().or(found.zone);
        Ok(found)
    }
}

fn ask(config: &CinderConfig, source: MetadataSource) -> Result<Instance, String> {
    match source {
        MetadataSource::ConfigDrive => config_drive(&config.root),
        MetadataSource::MetadataService => service(&config.metadata_url),
        MetadataSource::CloudInit => cloud_init(&config.root),
        MetadataSource::Dmi => dmi(&config.root),
    }
}

fn parse(text: &[u8]) -> Result<Instance, String> {
    let metadata: Metadata = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    named(&metadata.uuid, metadata.availability_zone)
}

fn named(uuid: &str, zone: Option<String>) -> Result<Instance, String> {
    let id = uuid.trim().to_ascii_lowercase();
    if !is_uuid(&id) {
        return Err(format!("{uuid:?} is no UUID"));
    }
    Ok(Instance { id, zone: zone.filter(|zone| !zone.is_empty()) })
}

/// The drive where it is mounted already; else it is looked for among the node's disks and read without mounting it.
fn config_drive(root: &Path) -> Result<Instance, String> {
    for dir in ["mnt/config", "media/configdrive", "media/config-2", "run/cloud-init/tmp", "config-2"] {
        if let Ok(text) = fs::read(root.join(dir).join(DOCUMENT)) {
            return parse(&text);
        }
    }
    for name in ["config-2", "CONFIG-2"] {
        let device = root.join("dev/disk/by-label").join(name);
        if device.exists() {
            return parse(&super::iso::read(&device, DOCUMENT)?);
        }
    }
    super::iso::labelled(root, "config-2").map_or_else(
        || Err("no disk has the label config-2".into()),
        |device| super::iso::read(&device, DOCUMENT).and_then(|text| parse(&text)),
    )
}

/// One GET by HTTP/1.0: the service is plain HTTP on a link-local address.
fn service(url: &str) -> Result<Instance, String> {
    let place = url.trim_end_matches('/').strip_prefix("http://").ok_or("must begin with http://")?;
    let (host, path) =
        place.split_once('/').map_or((place, String::new()), |(host, path)| (host, format!("/{path}")));
    let with_port = if host.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    let address = with_port.to_socket_addrs().map_err(|e| e.to_string())?.next().ok_or("no address")?;
    let mut stream = TcpStream::connect_timeout(&address, SHORT).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(SHORT)).map_err(|e| e.to_string())?;
    stream.set_write_timeout(Some(SHORT)).map_err(|e| e.to_string())?;
    let request =
        format!("GET {path}/{DOCUMENT} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(|e| e.to_string())?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no HTTP answer")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    if head.split_ascii_whitespace().nth(1) != Some("200") {
        return Err(format!("it answered {:?}", head.lines().next().unwrap_or_default()));
    }
    parse(&answer[end + 4..])
}

fn cloud_init(root: &Path) -> Result<Instance, String> {
    let data = root.join("run/cloud-init/instance-data.json");
    let zone = fs::read(&data).ok().and_then(|text| {
        let value: serde_json::Value = serde_json::from_slice(&text).ok()?;
        value["v1"]["availability_zone"].as_str().map(str::to_owned)
    });
    let path = root.join("var/lib/cloud/data/instance-id");
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    named(&text, zone)
}

fn dmi(root: &Path) -> Result<Instance, String> {
    let path: PathBuf = root.join("sys/class/dmi/id/product_uuid");
    let vendor = fs::read_to_string(root.join("sys/class/dmi/id/product_name")).unwrap_or_default();
    if !vendor.contains("OpenStack") {
        return Err(format!("the product is {:?}, not OpenStack's", vendor.trim()));
    }
    named(&fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?, None)
}

#[cfg(test)]
#[path = "instance_tests.rs"]
mod tests;
