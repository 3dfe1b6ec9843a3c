//! What a configuration must have, and what it may not.

use std::path::{Component, Path, PathBuf};

use super::{BackendConfig, BackendType, Config};

impl Config {
    /// The first thing that is wrong: which key, and why.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, problem: String| Err((key.to_owned(), problem));
        if !is_label_value(&self.node_id) {
            let rule = "it must be a valid label value, for schedulers see it as one: 1 to 63 letters, digits, dots, dashes and underscores, a letter or digit at the ends (in a pod: NODE_ID from fieldRef spec.nodeName)";
            return wrong("nodeId", format!("{:?} is no node's name; {rule}", self.node_id));
        }
        if self.max_concurrent_operations == 0 {
            return wrong("maxConcurrentOperations", "must be at least 1".into());
        }
        if self.backends.is_empty() {
            return wrong(
                "backends",
                "names no backend; give at least one, such as \"- type: local\"".into(),
            );
        }
        for dir in [
            ("socketDir", &self.socket_dir),
            ("stateDir", &self.state_dir),
            ("kubeletDir", &self.kubelet_dir),
        ] {
            if !dir.1.is_absolute() {
                return wrong(dir.0, format!("{} is not an absolute path", dir.1.display()));
            }
        }
        self.backends.iter().enumerate().try_for_each(|(i, backend)| self.check_backend(i, backend))
    }

    fn check_backend(&self, i: usize, backend: &BackendConfig) -> Result<(), (String, String)> {
        let wrong = |key: &str, problem: String| Err((format!("backends[{i}].{key}"), problem));
        if !is_driver_name(&backend.driver_name) {
            let rule = "is not a driver name: at most 63 letters, digits, dots and dashes, a letter or digit at the ends";
            return wrong("driverName", format!("{:?} {rule}", backend.driver_name));
        }
        let earlier = &self.backends[..i];
        if let Some(j) = earlier.iter().position(|b| b.driver_name == backend.driver_name) {
            return wrong(
                "driverName",
                format!("{:?} is the name of backends[{j}] already", backend.driver_name),
            );
        }
        if let Some(j) = earlier.iter().position(|b| b.socket == backend.socket) {
            return wrong(
                "socket",
                format!("{} is the socket of backends[{j}] already", backend.socket.display()),
            );
        }
        if !backend.socket.is_absolute() || backend.socket.as_os_str().len() > 107 {
            let rule = "must be an absolute path of at most 107 bytes (unix(7))";
            return wrong("socket", format!("{} {rule}", backend.socket.display()));
        }
        check_roots(earlier, backend).or_else(|problem| wrong("roots", problem))?;
        check_type(backend).or_else(|(key, problem)| wrong(key, problem))
    }
}

/// What a backend's type requires, and the keys that only others have.
fn check_type(backend: &BackendConfig) -> Result<(), (&'static str, String)> {
    use BackendType::{Cinder, Local, Nfs, Rbd};
    let given: [(&'static str, bool, &[BackendType]); 26] = [
        ("roots", !backend.roots.is_empty(), &[Local]),
        ("reserve", backend.reserve.is_some(), &[Local]),
        ("expansion", backend.expansion.is_some(), &[Local]),
        ("clusters", !backend.clusters.is_empty(), &[Rbd]),
        ("mounter", backend.mounter.is_some(), &[Rbd]),
        ("purge", backend.purge.is_some(), &[Rbd]),
        ("purgeWorkers", backend.purge_workers.is_some(), &[Rbd]),
        ("maxOvercommit", backend.max_overcommit.is_some(), &[Rbd]),
        ("softCloneDepth", backend.soft_clone_depth.is_some(), &[Rbd]),
        ("hardCloneDepth", backend.hard_clone_depth.is_some(), &[Rbd]),
        ("callTimeoutSeconds", backend.call_timeout_seconds.is_some(), &[Rbd, Nfs, Cinder]),
        ("clouds", !backend.clouds.is_empty(), &[Cinder]),
        ("ignoreVolumeAZ", backend.ignore_volume_az.is_some(), &[Cinder]),
        ("forceDetach", backend.force_detach.is_some(), &[Cinder]),
        ("instanceId", backend.instance_id.is_some(), &[Cinder]),
        ("zone", backend.zone.is_some(), &[Cinder]),
        ("metadataOrder", backend.metadata_order.is_some(), &[Cinder]),
        ("metadataUrl", backend.metadata_url.is_some(), &[Cinder]),
        ("nodeVolumeAttachLimit", backend.node_volume_attach_limit.is_some(), &[Cinder]),
        ("deviceRoot", backend.device_root.is_some(), &[Cinder]),
        ("shares", !backend.shares.is_empty(), &[Nfs]),
        ("anyShare", backend.any_share.is_some(), &[Nfs]),
        ("onDelete", backend.on_delete.is_some(), &[Nfs]),
        ("treeWorkers", backend.tree_workers.is_some(), &[Nfs]),
        ("sweepSeconds", backend.sweep_seconds.is_some(), &[Nfs]),
        ("attach", !backend.attach, &[Local, Rbd]),
    ];
    let foreign = given.iter().find(|(_, given, owners)| *given && !owners.contains(&backend.r#type));
    if let Some((key, _, owners)) = foreign {
        let owners: Vec<_> = owners.iter().map(|owner| owner.name()).collect();
        return Err((key, format!("only a backend of type {} has it; remove it", owners.join(" or "))));
    }
    let missing = match backend.r#type {
        Local if backend.roots.is_empty() => {
            ("roots", "is required for type local, such as {default: /var/lib/volumectl/volumes}")
        }
        Rbd if backend.clusters.is_empty() => {
            ("clusters", "is required for type rbd, such as [{clusterID: ceph, monitors: [10.0.0.1:6789]}]")
        }
        Nfs if backend.shares.is_empty() && backend.any_share != Some(true) => (
            "shares",
            "is required for type nfs, such as [{name: main, server: 10.0.0.5, share: /srv/nfs}]; or set anyShare: true",
        ),
        _ => return Ok(()),
    };
    Err((missing.0, missing.1.into()))
}

/// Directories that belong to another backend already, or are within or around one that does: each of the two would take
/// the other's volumes for foreign, and count its space twice.
fn check_roots(earlier: &[BackendConfig], backend: &BackendConfig) -> Result<(), String> {
    let places = backend.roots.iter().map(|(name, root)| (name, plain(root)));
    for (name, place) in places {
        for (j, other) in earlier.iter().enumerate() {
            let shared = other.roots.iter().find(|(_, root)| {
                let theirs = plain(root);
                place.starts_with(&theirs) || theirs.starts_with(&place)
            });
            if let Some((theirs, root)) = shared {
                return Err(format!(
                    "{name}: {} shares its place with root {theirs} ({}) of backends[{j}]; give each backend a directory of its own",
                    place.display(),
                    root.display()
                ));
            }
        }
    }
    Ok(())
}

/// A path without what says nothing: `.`, and a slash at its end or twice.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

/// Kubernetes' rule for label values: the node's name is one, in the topology of volumes.
fn is_label_value(text: &str) -> bool {
    is_name(text, &['.', '-', '_'])
}

/// CSI GetPluginInfo: domain name notation, at most 63 characters.
fn is_driver_name(name: &str) -> bool {
    is_name(name, &['.', '-'])
}

/// 1 to 63 letters, digits and some marks, a letter or digit at the ends.
fn is_name(text: &str, marks: &[char]) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && end(text.chars().next())
        && end(text.chars().next_back())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(&c))
}
