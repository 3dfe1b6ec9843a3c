//! What StatefulSets and other workloads claim: the claims that their controllers would make of the templates in them.
//! No pod is started.

use std::ops::Range;

use serde::Deserialize;

use super::objects::{Claim, ClaimSpec, Map, Meta};

/// Kinds with claims of their own, each with its API group.
pub const KINDS: [(&str, &str); 6] = [
    ("Pod", ""),
    ("StatefulSet", "apps"),
    ("Deployment", "apps"),
    ("ReplicaSet", "apps"),
    ("DaemonSet", "apps"),
    ("Job", "batch"),
];

/// A workload, as far as its volumes matter.
#[derive(Debug, Deserialize)]
pub struct Workload {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    replicas: Option<u32>,
    parallelism: Option<u32>,
    completions: Option<u32>,
    ordinals: Ordinals,
    selector: Selector,
    volume_claim_templates: Vec<Template>,
    template: PodTemplate,
    // A pod's own.
    volumes: Vec<PodVolume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ordinals {
    start: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: Map,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodTemplate {
    spec: PodSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    volumes: Vec<PodVolume>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodVolume {
    name: String,
    #[serde(default)]
    ephemeral: Option<Ephemeral>,
    #[serde(default)]
    persistent_volume_claim: Option<ClaimVolume>,
    #[serde(default)]
    csi: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ephemeral {
    volume_claim_template: Template,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimVolume {
    claim_name: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Template {
    #[serde(default)]
    metadata: TemplateMeta,
    spec: ClaimSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TemplateMeta {
    name: String,
    labels: Map,
    annotations: Map,
}

/// The claims of one template: `before`, a number, `after`.
#[derive(Debug, Clone)]
pub struct Claims {
    /// The workload, such as `StatefulSet shop/db`.
    pub owner: String,
    /// A claim of this name in the file is the workload's own.
    pub adopts: bool,
    namespace: String,
    before: String,
    after: String,
    // None: one claim, without a number.
    numbers: Option<Range<u32>>,
    template: Template,
    labels: Map,
}

impl Claims {
    /// All of them.
    pub fn all(&self) -> Vec<Claim> {
        match self.numbers.clone() {
            None => vec![self.named(self.before.clone())],
            Some(numbers) => {
                numbers.map(|n| self.named(format!("{}{n}{}", self.before, self.after))).collect()
            }
        }
    }

    fn named(&self, name: String) -> Claim {
        let mut metadata = Meta::made(&self.namespace, name);
        metadata.labels = self.template.metadata.labels.clone();
        metadata.labels.extend(self.labels.clone());
        metadata.annotations = self.template.metadata.annotations.clone();
        Claim { metadata, spec: self.template.spec.clone(), owner: Some(self.owner.clone()) }
    }

    /// The claim of a name that could be its, also where there are fewer replicas now.
    pub fn of_path(&self, path: &str) -> Option<Claim> {
        let name = path.strip_prefix(&self.namespace)?.strip_prefix('/')?;
        let number = name.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        let ours = match self.numbers {
            None => number.is_empty(),
            Some(_) => number.parse::<u32>().is_ok_and(|n| n.to_string() == number),
        };
        ours.then(|| self.named(name.to_owned()))
    }
}

impl Workload {
    /// The claims that it makes.
    pub fn claims(&self, kind: &str) -> Vec<Claims> {
        let meta = &self.metadata;
        let claims =
            |before: String, after: String, numbers: Option<Range<u32>>, template: &Template| Claims {
                owner: format!("{kind} {}", meta.path()),
                adopts: false,
                namespace: meta.namespace.clone(),
                before,
                after,
                numbers,
                template: template.clone(),
                labels: Map::new(),
            };
        let numbers = self.numbers(kind);
        let of_set = self.spec.volume_claim_templates.iter().map(|template| Claims {
            adopts: true,
            labels: self.spec.selector.match_labels.clone(),
            ..claims(
                format!("{}-{}-", template.metadata.name, meta.name),
                String::new(),
                Some(numbers.clone()),
                template,
            )
        });
        let of_pods = self.volumes().filter_map(|volume| {
            let template = &volume.ephemeral.as_ref()?.volume_claim_template;
            Some(match kind {
                "Pod" => claims(format!("{}-{}", meta.name, volume.name), String::new(), None, template),
                _ => {
                    let after = format!("-{}", volume.name);
                    claims(format!("{}-", meta.name), after, Some(numbers.clone()), template)
                }
            })
        });
        of_set.chain(of_pods).collect()
    }

    fn volumes(&self) -> impl Iterator<Item = &PodVolume> {
        self.spec.template.spec.volumes.iter().chain(&self.spec.volumes)
    }

    /// The numbers of its pods. A DaemonSet has one on this node.
    fn numbers(&self, kind: &str) -> Range<u32> {
        let count = match kind {
            "DaemonSet" => 1,
            "Job" => self.spec.parallelism.unwrap_or(1).min(self.spec.completions.unwrap_or(u32::MAX)),
            _ => self.spec.replicas.unwrap_or(1),
        };
        let start = self.spec.ordinals.start;
        start..start.saturating_add(count)
    }

    /// Claims that its pods name.
    pub fn uses(&self) -> Vec<String> {
        let named = self.volumes().filter_map(|volume| volume.persistent_volume_claim.as_ref());
        named.map(|claim| format!("{}/{}", self.metadata.namespace, claim.claim_name)).collect()
    }

    /// Volumes that only kubelet can make.
    pub fn inline(&self) -> Vec<&str> {
        self.volumes().filter(|volume| volume.csi.is_some()).map(|volume| volume.name.as_str()).collect()
    }
}

/// What is done for a workload, in a line.
pub fn remark(label: &str, kind: &str, claims: &[Claims]) -> String {
    let paths: Vec<_> = claims.iter().flat_map(Claims::all).map(|claim| claim.metadata.path()).collect();
    if claims.is_empty() {
        return format!("ignored: {label} (it has no claims of its own, and no pod is started)");
    }
    let names = match kind {
        "Pod" | "StatefulSet" => "",
        _ => " (in a cluster its pods, and so these, have generated names)",
    };
    let paths = if paths.is_empty() { "none, as it has no replicas".into() } else { paths.join(", ") };
    format!("{label}: its claims are {paths}{names}; no pod is started")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claims(kind: &str, spec: &Value) -> Vec<Claims> {
        let object = json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": spec});
        serde_json::from_value::<Workload>(object).unwrap().claims(kind)
    }

    fn names(kind: &str, spec: &Value) -> Vec<String> {
        claims(kind, spec).iter().flat_map(Claims::all).map(|claim| claim.metadata.path()).collect()
    }

    fn ephemeral() -> Value {
        json!([{"name": "tmp", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}])
    }

    #[test]
    fn a_stateful_set_has_a_claim_a_template_and_ordinal() {
        let template = json!({"metadata": {"name": "data", "labels": {"a": "1"}}, "spec": {}});
        let spec = json!({"replicas": 2, "ordinals": {"start": 5}, "volumeClaimTemplates": [template],
            "selector": {"matchLabels": {"app": "db"}}, "template": {"spec": {"volumes": ephemeral()}}});
        assert_eq!(
            names("StatefulSet", &spec),
            ["shop/data-db-5", "shop/data-db-6", "shop/db-5-tmp", "shop/db-6-tmp"]
        );
        let claim = &claims("StatefulSet", &spec)[0].all()[0];
        assert_eq!(claim.metadata.labels.keys().collect::<Vec<_>>(), ["a", "app"]);
        assert_eq!(claim.owner.as_deref(), Some("StatefulSet shop/db"));
    }

    #[test]
    fn a_pod_and_its_volume_name_the_claim() {
        assert_eq!(names("Pod", &json!({"volumes": ephemeral()})), ["shop/db-tmp"]);
        let spec = json!({"replicas": 2, "template": {"spec": {"volumes": ephemeral()}}});
        assert_eq!(names("Deployment", &spec), ["shop/db-0-tmp", "shop/db-1-tmp"]);
        assert_eq!(names("DaemonSet", &spec), ["shop/db-0-tmp"]);
        assert_eq!(names("Job", &spec), ["shop/db-0-tmp"]);
    }

    #[test]
    fn claims_of_more_replicas_are_known_again() {
        let spec =
            json!({"replicas": 0, "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]});
        let claims = claims("StatefulSet", &spec);
        assert!(claims[0].all().is_empty());
        assert_eq!(claims[0].of_path("shop/data-db-7").unwrap().metadata.name, "data-db-7");
        for other in
            ["shop/data-db-", "shop/data-db-07", "shop/data-db-x", "web/data-db-7", "shop/data-dbs-7"]
        {
            assert!(claims[0].of_path(other).is_none(), "{other}");
        }
    }
}
