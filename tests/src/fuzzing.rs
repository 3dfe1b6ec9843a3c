//! What must hold for any bytes at all: the bodies of the fuzz targets (`fuzz/`), also run on a bounded number of
//! inputs by an ordinary test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use csi_driver::host::{Host, HostOptions, mountinfo};
use csi_driver::token;
use provisioners::local::{self, Local, LocalConfig};
use provisioners::{
    AccessMode, AccessType, Capability, CapacityRange, Error, NodeId, Provisioner, PvcMeta, Secrets,
    StringMap, VolumeSpec,
};

/// The text in some bytes; what is no UTF-8 is replaced.
fn text(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// StorageClass parameters (`key=value` lines) and a name: prepared without a panic, and what is accepted has a handle
/// that can be parsed and that CSI allows.
pub fn parameters(data: &[u8]) {
    static LOCAL: OnceLock<Arc<Local>> = OnceLock::new();
    let local = LOCAL.get_or_init(|| {
        let roots = BTreeMap::from([("default".to_owned(), PathBuf::from("/nonexistent/volumes"))]);
        let config = LocalConfig::new(roots, NodeId("node".into()));
        Arc::new(
            Local::new(config, Arc::new(Host::new(HostOptions::default())))
                .expect("the configuration is right"),
        )
    });
    let lines = text(data);
    let parameters: StringMap = lines
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let name: String = lines.chars().filter(|c| !c.is_control()).take(40).collect();
    if name.is_empty() {
        return;
    }
    let access = AccessType::Mount { fs_type: String::new(), flags: Vec::new(), group: None };
    let spec = VolumeSpec {
        name,
        range: CapacityRange::default(),
        capabilities: vec![Capability { access, mode: AccessMode::SingleNodeWriter }],
        parameters,
        mutable_parameters: StringMap::new(),
        source: None,
        topology: None,
        pvc: PvcMeta { name: Some(text(data)), namespace: Some("shop".into()), ..PvcMeta::default() },
        secrets: Secrets::default(),
    };
    match local.prepare(spec) {
        Ok(creation) => {
            let id = &creation.id().0;
            assert!(id.len() <= 128 && local::parse_handle(id).is_ok(), "{id:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A volume handle: what parses is written out again as it was, and leads nowhere.
pub fn handles(data: &[u8]) {
    let handle = text(data);
    if let Ok(parsed) = local::parse_handle(&handle) {
        assert_eq!(parsed.to_string(), handle);
        assert!(
            !parsed.key.contains('/') && parsed.key != ".." && !parsed.key.starts_with('.'),
            "{handle:?}"
        );
    }
    let key = provisioners::key_for(&handle);
    assert!(
        handle.is_empty() || local::parse_handle(&format!("default:{key}")).is_ok(),
        "{handle:?} has the key {key:?}"
    );
}

/// A paging token: only what was given is taken.
pub fn tokens(data: &[u8]) {
    let token = text(data);
    if let Ok(Some(after)) = token::decode("volumes", &token) {
        assert_eq!(token::encode("volumes", &after), token);
    }
    assert_eq!(token::decode("volumes", &token::encode("volumes", &token)).ok().flatten(), Some(token));
}

/// A mount table: read or refused, and both ways of reading agree.
pub fn mountinfo(data: &[u8]) {
    if let Ok(mounts) = mountinfo::parse(data) {
        assert_eq!(mountinfo::select(data, |_| true).ok(), Some(mounts));
    }
    let _ = mountinfo::select(data, |m| m.target == Path::new("/"));
}

/// A volume's record: read or damaged, nothing else.
pub fn records(data: &[u8]) {
    match local::check_volume_record(data) {
        Ok(id) => assert!(local::parse_handle(&id).is_ok(), "{id:?}"),
        Err(error) => assert!(matches!(error, Error::Corrupt { .. } | Error::Refused(_)), "{error}"),
    }
}

/// Sizes as people write them, in both readers.
pub fn quantities(data: &[u8]) {
    let size = text(data);
    if let Ok(bytes) = volumectl::quantity::parse(&size) {
        assert!(bytes >= 0);
        assert!(!volumectl::quantity::human(bytes).is_empty());
    }
    let _ = provisioners::parse_size(&size);
}
