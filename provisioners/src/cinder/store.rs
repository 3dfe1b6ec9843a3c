//! What the parts of the backend share: configuration, clouds, and how a volume is found.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::answer::{CinderVolume, Thing};
use super::attempts::Attempts;
use super::cloud::{Ask, Cloud, Service};
use super::config::CinderConfig;
use super::handle::{Handle, Kind, parse_handle};
use super::notes::Notes;
use super::record::{CLUSTER, NAME, VolumeRecord, from_metadata};
use super::room::Attaching;
use super::status::advice;
use crate::parameters::Once;
use crate::parts::ask_beside;
use crate::{Condition, Error, Identity, NodeId, Part, Result, StringMap, Volume, VolumeId};

/// The backend's state.
pub(super) struct Store {
    pub(super) config: CinderConfig,
    pub(super) clouds: Vec<Arc<Cloud>>,
    pub(super) attempts: Attempts,
    pub(super) attaching: Attaching,
    pub(super) notes: Notes,
    /// What was said of parameters that have no effect.
    pub(super) told: Once,
}

/// A volume that was found.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) cloud: Arc<Cloud>,
    pub(super) handle: Handle,
    pub(super) volume: CinderVolume,
}

impl Store {
    pub(super) fn new(config: CinderConfig) -> Result<Self> {
        config.check()?;
        let clouds = config.clouds.iter().enumerate().map(|(i, spec)| {
            let prefix = (i > 0).then(|| spec.name.clone());
            Arc::new(Cloud::new(spec.clone(), prefix, config.call_timeout))
        });
        Ok(Self {
            clouds: clouds.collect(),
            told: Once::default(),
            notes: Notes::new(&config.state),
            config,
            attempts: Attempts::default(),
            attaching: Attaching::default(),
        })
    }

    /// Whether each cloud answers and lets us in; all are asked at once.
    pub(super) async fn parts(self: &Arc<Self>) -> Vec<Part> {
        // A node has no credentials, and a Probe must not ask the cloud from every node.
        let asked = self.clouds.iter().filter(|_| self.config.controller).map(|cloud| {
            let (store, cloud) = (self.clone(), cloud.clone());
            let (name, known) = (format!("cloud {}", cloud.spec.name), cloud.asked.clone());
            (name, known, async move { store.check(&cloud).await })
        });
        ask_beside(asked.collect()).await
    }

    async fn check(&self, cloud: &Cloud) -> Result<()> {
        let asked = cloud.send(Ask::get(Service::Volume, "limits")).await;
        asked.map_err(|fault| fault.doing(&format!("asking cloud {}", cloud.spec.name)))?;
        self.compare_zones(cloud).await;
        Ok(())
    }

    /// What the clouds were found to be, a line each.
    pub(super) async fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for cloud in self.clouds.iter().filter(|_| self.config.controller) {
            if let Ok(connected) = cloud.connected().await {
                lines.push(format!("cloud {}: {}", cloud.spec.name, connected.versions()));
            }
            lines.extend(
                cloud.zones.lock().ok().and_then(|zones| zones.clone()).filter(|text| !text.is_empty()),
            );
        }
        lines
    }

    /// Warns when Nova and Cinder have other zones: a volume is then made in a zone where no server can have it.
    async fn compare_zones(&self, cloud: &Cloud) {
        let mut zones = Vec::new();
        for service in [Service::Compute, Service::Volume] {
            match cloud.zone_names(service).await {
                Ok(names) => zones.push(names),
                Err(_) => return,
            }
        }
        let same = self.config.ignore_zone || zones[0].iter().all(|zone| zones[1].contains(zone));
        let text = if same {
            String::new()
        } else {
            format!(
                "cloud {}: Nova has the zones {} and Cinder {}: volumes for nodes in the others cannot be made; set ignoreVolumeAZ: true if Cinder's serve all",
                cloud.spec.name,
                zones[0].join(", "),
                zones[1].join(", ")
            )
        };
        if cloud.note_zones(&text) && !text.is_empty() {
            tracing::warn!("{text}");
        }
    }

    /// A cloud by its name; `None`: the first.
    pub(super) fn cloud(&self, name: Option<&str>) -> Option<&Arc<Cloud>> {
        match name {
            None => self.clouds.first(),
            Some(name) => self.clouds.iter().find(|cloud| cloud.spec.name == name),
        }
    }

    /// A cloud that a class names: [`Error::Invalid`] if there is none such.
    pub(super) fn cloud_of_class(&self, name: Option<&str>) -> Result<&Arc<Cloud>> {
        self.cloud(name).ok_or_else(|| {
            let known: Vec<_> = self.clouds.iter().map(|cloud| cloud.spec.name.as_str()).collect();
            let problem = format!(
                "{:?} is not a configured cloud; known: {}",
                name.unwrap_or_default(),
                known.join(", ")
            );
            Error::invalid("parameters[\"cloud\"]", problem)
        })
    }

    /// A handle, as this driver writes it. No handle of ours: [`Error::Invalid`].
    pub(super) fn handle(&self, text: &str) -> Result<Handle> {
        Ok(parse_handle(text)?.without(self.config.first_cloud()))
    }

    /// What a handle names; a text that is none names itself.
    pub(super) fn identity(text: &str) -> Identity {
        parse_handle(text).map_or_else(|_| Identity::new(text), |handle| handle.identity())
    }

    /// A volume. None such, or no handle of ours: [`Error::NotFound`].
    pub(super) async fn volume(&self, id: &VolumeId) -> Result<Found> {
        let none = || Error::NotFound(format!("there is no volume {id}"));
        let handle = self.handle(&id.0).map_err(|_| none())?;
        let cloud =
            self.cloud(handle.cloud.as_deref()).filter(|_| handle.kind == Kind::Plain).ok_or_else(none)?;
        let volume =
            cloud.one(&handle.id).await.map_err(|fault| fault.doing(&format!("asking for volume {id}")))?;
        let volume: CinderVolume =
            volume.filter(|volume: &CinderVolume| !volume.is_marked()).ok_or_else(none)?;
        Ok(Found { cloud: cloud.clone(), handle, volume })
    }

    /// A volume; `None`: there is none such, which is what deleting and detaching are for.
    pub(super) async fn volume_if_any(&self, id: &VolumeId) -> Result<Option<Found>> {
        present(self.volume(id).await)
    }

    /// A cloud's volumes (or snapshots, or backups) of a CSI name that are this cluster's, the oldest first. `display` is
    /// their name in Cinder.
    pub(super) async fn named<T: Thing>(&self, cloud: &Cloud, display: &str, name: &str) -> Result<Vec<T>> {
        let listed = cloud.list::<T>(&format!("name={}", escape(display))).await;
        let listed = listed.map_err(|fault| fault.doing(&format!("looking for {} {display:?}", T::ONE)))?;
        // One that cannot be read may be the one that is looked for.
        let mut all = listed.whole()?;
        all.retain(|it| {
            owner(it) == Some(&self.config.owner) && it.metadata().get(NAME).is_some_and(|has| has == name)
        });
        all.sort_by(|a, b| order(a).cmp(&order(b)));
        Ok(all)
    }

    /// A volume as the rest of the program sees it.
    pub(super) fn show(&self, found: &Found) -> Volume {
        let volume = &found.volume;
        let record = found.try_record();
        let source = record.as_ref().ok().and_then(|record| record.as_ref()?.source.clone());
        let zone = volume.availability_zone.clone().filter(|_| !self.config.ignore_zone);
        Volume {
            id: VolumeId(found.handle.to_string()),
            capacity: volume.bytes(),
            context: context(record.as_ref().ok().and_then(Option::as_ref)),
            source,
            topology: zone
                .map(|zone| StringMap::from([(self.config.topology_key.clone(), zone)]))
                .into_iter()
                .collect(),
            published: volume.servers().map(NodeId::from).collect(),
            condition: match record {
                Err(error) => Condition::abnormal(error.to_string()),
                Ok(_) => condition(volume),
            },
        }
    }
}

impl Found {
    /// Of a volume of a cloud.
    pub(super) fn new(cloud: &Arc<Cloud>, volume: CinderVolume) -> Self {
        let handle = handle_of(cloud, Kind::Plain, &volume.id);
        Self { cloud: cloud.clone(), handle, volume }
    }

    /// The driver's record; `None`: it was not made by this driver.
    pub(super) fn try_record(&self) -> Result<Option<VolumeRecord>> {
        from_metadata(&format!("volume {}", self.handle), &self.volume.metadata)
    }

    /// The driver's record. A volume of others: [`Error::Refused`].
    pub(super) fn record(&self) -> Result<VolumeRecord> {
        self.try_record()?.ok_or_else(|| {
            Error::Refused(format!("volume {} has no record of this driver in its metadata", self.handle))
        })
    }

    /// Whose it is.
    pub(super) fn owner(&self) -> Option<&str> {
        owner(&self.volume)
    }

    /// Sets a key of the volume's metadata; `doing` is for the error.
    pub(super) async fn set_metadata(&self, key: &str, value: String, doing: &str) -> Result<()> {
        let body = json!({"metadata": BTreeMap::from([(key, value)])});
        let path = format!("volumes/{}/metadata", self.handle.id);
        let sent = self.cloud.send(Ask::post(Service::Volume, path, body).repeatable()).await;
        sent.map(drop).map_err(|fault| fault.doing(doing))
    }

    /// Removes a key of the volume's metadata; none such is fine.
    pub(super) async fn remove_metadata(&self, key: &str, doing: &str) -> Result<()> {
        let path = format!("volumes/{}/metadata/{key}", self.handle.id);
        match self.cloud.send(Ask::delete(Service::Volume, path)).await {
            Err(fault) if !fault.is(404) => Err(fault.doing(doing)),
            _ => Ok(()),
        }
    }

    /// That it is not there any more.
    pub(super) fn gone(&self) -> Error {
        Error::NotFound(format!("there is no volume {}", self.handle))
    }

    /// An error that ends with what Cinder itself says of the volume.
    pub(super) async fn failed(&self, doing: &str) -> Error {
        let said = self.cloud.messages(&self.handle.id).await;
        let why = if said.is_empty() { "Cinder says nothing more".to_owned() } else { said.join("; ") };
        let text = format!("{doing}: volume {} has status {:?}: {why}", self.handle, self.volume.status);
        if why.contains("quota") || why.contains("No valid backend") || why.contains("space") {
            return Error::Exhausted(text);
        }
        Error::Internal(text)
    }
}

impl Cloud {
    /// All volumes (or snapshots, or backups) of the project.
    pub(super) async fn all<T: Thing>(&self) -> Result<Vec<T>> {
        let listed = self.list::<T>("").await;
        let listed = listed
            .map_err(|fault| fault.doing(&format!("listing {} of cloud {}", T::MANY, self.spec.name)))?;
        Ok(listed.readable())
    }

    /// The names of a service's zones that can be used.
    pub(super) async fn zone_names(&self, service: Service) -> Result<Vec<String>> {
        let answer = self.send(Ask::get(service, "os-availability-zone")).await;
        let answer = answer.map_err(|fault| fault.doing("listing zones"))?;
        let all = answer["availabilityZoneInfo"].as_array().into_iter().flatten();
        let usable = all.filter(|zone| zone["zoneState"]["available"] == true);
        Ok(usable.filter_map(|zone| zone["zoneName"].as_str().map(str::to_owned)).collect())
    }

    /// What Cinder noted for the user about a thing that failed.
    pub(super) async fn messages(&self, id: &str) -> Vec<String> {
        let answer = self.send(Ask::get(Service::Volume, format!("messages?resource_uuid={id}"))).await;
        let value = answer.unwrap_or_default();
        let all = value["messages"].as_array().into_iter().flatten();
        all.filter_map(|message| message["user_message"].as_str().map(str::to_owned)).take(3).collect()
    }
}

/// What was looked for, if it is there.
pub(super) fn present<T>(looked: Result<T>) -> Result<Option<T>> {
    match looked {
        Err(Error::NotFound(_)) => Ok(None),
        other => other.map(Some),
    }
}

/// The older comes first; of two of one time, the one with the smaller id.
pub(super) fn order<T: Thing>(thing: &T) -> (&str, &str) {
    (thing.created(), thing.id())
}

/// A text in a query (RFC 3986, 2.1).
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// The handle of something in a cloud.
pub(super) fn handle_of(cloud: &Cloud, kind: Kind, id: &str) -> Handle {
    Handle { cloud: cloud.prefix.clone(), kind, id: id.to_owned() }
}

/// Whose a thing is by its metadata.
pub(super) fn owner<T: Thing>(thing: &T) -> Option<&str> {
    thing.metadata().get(CLUSTER).map(String::as_str)
}

/// What nodes are told: they have no credentials to look it up.
fn context(record: Option<&VolumeRecord>) -> StringMap {
    let Some(record) = record else { return StringMap::new() };
    let mut context = StringMap::new();
    if let Some(fs_type) = &record.fs_type {
        context.insert("fsType".into(), fs_type.clone());
    }
    if let Some(options) = record.parameters.get("mkfsOptions") {
        context.insert("mkfsOptions".into(), options.clone());
    }
    context
}

fn condition(volume: &CinderVolume) -> Condition {
    if volume.status.starts_with("error") {
        return Condition::abnormal(advice(volume).unwrap_or_default());
    }
    Condition::healthy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_can_be_in_a_query() {
        assert_eq!(escape("pvc-1 & ü"), "pvc-1%20%26%20%C3%BC");
    }
}
