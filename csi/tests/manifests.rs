//! The manifests in deploy/: what a node's pods show to the network, and what their accounts may do.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

use csi_driver::config::Config;
use serde_json::Value;

const BACKENDS: [&str; 4] = ["local", "rbd", "nfs", "cinder"];

/// The objects of a backend's manifest.
fn objects(backend: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(backend).join("csi-driver.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter(move |object| object["kind"] == kind)
}

/// The configuration that a pod's driver is started with.
fn config(objects: &[Value], pod: &Value) -> Option<Config> {
    let containers = pod["containers"].as_array().unwrap();
    let driver = containers.iter().find(|it| it["name"] == "csi-driver")?;
    let args = driver["args"].as_array().unwrap();
    let file = args.iter().find_map(|arg| arg.as_str()?.strip_prefix("--config=/etc/volumectl/")).unwrap();
    let text = of_kind(objects, "ConfigMap").find_map(|map| map["data"][file].as_str()).unwrap();
    Some(Config::parse(text).unwrap())
}

fn pods(objects: &[Value]) -> Vec<&Value> {
    let all = of_kind(objects, "DaemonSet").chain(of_kind(objects, "Deployment"));
    all.map(|object| &object["spec"]["template"]["spec"]).collect()
}

#[test]
fn e21_pages_of_pods_on_the_nodes_network_are_for_that_machine_alone() {
    for backend in BACKENDS {
        let objects = objects(backend);
        for pod in pods(&objects).into_iter().filter(|pod| pod["hostNetwork"] == true) {
            let config = config(&objects, pod).unwrap();
            let address = config.http_address.unwrap();
            assert!(address.ip().is_loopback(), "{backend}: {address}");
            let driver = &pod["containers"][0];
            for probe in ["livenessProbe", "readinessProbe"] {
                let get = &driver[probe]["httpGet"];
                assert_eq!((&get["host"], &get["port"]), (&"127.0.0.1".into(), &address.port().into()));
            }
        }
    }
}

/// What an account may do to PersistentVolumes, with the verbs that change them.
fn changes_volumes(objects: &[Value], account: &str) -> bool {
    let bound = of_kind(objects, "ClusterRoleBinding")
        .filter(|binding| binding["subjects"].as_array().unwrap().iter().any(|it| it["name"] == account));
    let roles: BTreeSet<&str> = bound.map(|binding| binding["roleRef"]["name"].as_str().unwrap()).collect();
    let rules = of_kind(objects, "ClusterRole")
        .filter(|role| roles.contains(role["metadata"]["name"].as_str().unwrap()))
        .flat_map(|role| role["rules"].as_array().unwrap());
    let has = |list: &Value, words: &[&str]| {
        list.as_array().unwrap().iter().any(|it| words.iter().any(|word| it == word))
    };
    let mut rules = rules;
    rules.any(|rule| {
        has(&rule["resources"], &["persistentvolumes", "*"])
            && has(&rule["verbs"], &["create", "delete", "patch", "update", "*"])
    })
}

#[test]
fn e21_no_account_on_every_node_may_change_the_volumes_of_others() {
    for backend in BACKENDS {
        let objects = objects(backend);
        let policies: Vec<String> =
            of_kind(&objects, "ValidatingAdmissionPolicy").map(ToString::to_string).collect();
        for set in of_kind(&objects, "DaemonSet") {
            let pod = &set["spec"]["template"]["spec"];
            let account = pod["serviceAccountName"].as_str().unwrap();
            let object = of_kind(&objects, "ServiceAccount").find(|it| it["metadata"]["name"] == account);
            let containers = pod["containers"].as_array().unwrap();
            let privileged = containers.iter().any(|it| it["securityContext"]["privileged"] == true);
            if privileged {
                let token = &object.unwrap()["automountServiceAccountToken"];
                assert_eq!(token, false, "{backend}: a privileged pod has the token of {account}");
            }
            if changes_volumes(&objects, account) {
                let user = format!("system:serviceaccount:volumectl:{account}");
                let held = policies.iter().any(|policy| {
                    policy.contains(&user)
                        && policy.contains(&format!("{backend}.csi.volumectl.io"))
                        && policy.contains("node-name")
                });
                assert!(held, "{backend}: {account} may change every PersistentVolume");
            }
        }
        let bindings = of_kind(&objects, "ValidatingAdmissionPolicyBinding").count();
        assert_eq!(bindings, policies.len(), "a policy that is not bound does nothing");
    }
}

/// The example classes and claims of a backend.
fn examples(backend: &str) -> (String, Vec<Value>) {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(backend).join("storageclass.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let objects = text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
    (text, objects)
}

fn containers(objects: &[Value]) -> impl Iterator<Item = &Value> {
    pods(objects).into_iter().flat_map(|pod| pod["containers"].as_array().unwrap())
}

#[test]
fn drivers_of_several_backends_go_on_one_node() {
    let mut ports = BTreeSet::new();
    for backend in BACKENDS {
        let objects = objects(backend);
        for pod in pods(&objects).into_iter().filter(|pod| pod["hostNetwork"] == true) {
            let address = config(&objects, pod).unwrap().http_address.unwrap();
            assert!(ports.insert(address.port()), "{backend}: port {} of the node is taken", address.port());
        }
    }
}

/// One resizer acts for all nodes, and can reach the driver of one.
#[test]
fn local_volumes_are_grown_by_the_driver_of_their_node() {
    let objects = objects("local");
    let configs: Vec<_> = pods(&objects).into_iter().filter_map(|pod| config(&objects, pod)).collect();
    assert!(!configs.is_empty());
    for backend in configs.iter().flat_map(|config| &config.backends) {
        assert_eq!(backend.expansion, Some(provisioners::local::ExpandedBy::Node));
    }
    let resizers: Vec<_> = of_kind(&objects, "Deployment")
        .filter(|it| it["spec"]["template"]["spec"]["containers"][0]["name"] == "resizer")
        .collect();
    assert_eq!(resizers.len(), 1);
    assert!(resizers[0]["spec"]["replicas"] == 1 && resizers[0]["spec"]["strategy"]["type"] == "Recreate");
}

#[test]
fn images_name_a_version_and_those_of_others_a_registry() {
    for backend in BACKENDS {
        for container in containers(&objects(backend)) {
            let image = container["image"].as_str().unwrap();
            let (name, tag) =
                image.rsplit_once(':').unwrap_or_else(|| panic!("{backend}: {image} has no tag"));
            assert!(!tag.is_empty() && tag != "latest", "{backend}: {image}");
            let ours = name.ends_with("csi-driver");
            assert!(!ours || tag == env!("CARGO_PKG_VERSION"), "{backend}: {image}");
            assert!(ours || name.starts_with("registry.k8s.io/sig-storage/"), "{backend}: {image}");
        }
    }
}

#[test]
fn probes_have_time_outs_and_name_spaces_are_there() {
    for backend in BACKENDS {
        let (objects, (_, examples)) = (objects(backend), examples(backend));
        for container in containers(&objects) {
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let probe = &container[probe];
                assert!(probe.is_null() || probe["timeoutSeconds"].as_u64() >= Some(5), "{backend}: {probe}");
            }
        }
        let made = of_kind(&objects, "Namespace").map(|it| it["metadata"]["name"].as_str().unwrap());
        let known: BTreeSet<_> = made.chain(["default"]).collect();
        for object in objects.iter().chain(&examples) {
            let space = object["metadata"]["namespace"].as_str();
            assert!(space.is_none_or(|space| known.contains(space)), "{backend}: no name space {space:?}");
        }
    }
}

#[test]
fn examples_go_beside_each_other_and_ask_for_what_there_is() {
    let mut names = BTreeSet::new();
    for backend in BACKENDS {
        let (objects, (text, examples)) = (objects(backend), examples(backend));
        for object in &examples {
            let name = (object["kind"].to_string(), object["metadata"]["name"].to_string());
            assert!(names.insert(name.clone()), "{backend}: {name:?} is another example's");
        }
        let has = |name: &str| containers(&objects).any(|it| it["name"] == name);
        let grows = of_kind(&examples, "StorageClass").any(|class| class["allowVolumeExpansion"] == true);
        assert_eq!(grows, has("resizer"), "{backend}: classes grow where there is a resizer");
        let snapshots = of_kind(&examples, "VolumeSnapshotClass").count() > 0;
        assert_eq!(snapshots, has("snapshotter"), "{backend}");
        assert!(!snapshots || text.contains("external-snapshotter"), "{backend}: whose kinds are these?");
        // What a class names can be read by who reads it.
        let secrets: BTreeSet<_> = of_kind(&examples, "StorageClass")
            .flat_map(|class| class["parameters"].as_object().unwrap())
            .filter(|(key, _)| key.ends_with("-secret-name"))
            .map(|(_, name)| name.as_str().unwrap())
            .collect();
        let rules = of_kind(&objects, "Role").flat_map(|role| role["rules"].as_array().unwrap());
        let readable: Vec<_> = rules.filter_map(|rule| rule["resourceNames"].as_array()).flatten().collect();
        assert!(secrets.iter().all(|name| readable.iter().any(|it| it == name)), "{backend}: {secrets:?}");
    }
}
