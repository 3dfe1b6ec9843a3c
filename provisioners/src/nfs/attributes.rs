//! `volumeAttributes` of a PersistentVolume: what this driver gives out, and what those of csi-driver-nfs have.

use super::config::{NfsConfig, check_path, check_server, plain_path, plain_server};
use super::params::UNMOUNT_POLICIES;
use crate::access::NfsMount;
use crate::parameters::{Foreign, Ignored, docs, foreign};
use crate::{Error, NameTemplate, ParameterDoc, Parameters, Result, StringMap, split_parameters};

const FIELD: &str = "volume_context";

static KNOWN: [ParameterDoc; 5] = docs! {
    "server", "The NFS server.", "none", false;
    "share", "The exported path.", "none", false;
    "subDir", "The directory below it.", "the share itself", false;
    "mountOptions", "Mount options, separated by commas.", "none", false;
    "unmountPolicy", "`wait` or `force`.", "wait", false;
};

/// What csi-driver-nfs does when it mounts, or keeps there for the deletion.
pub(super) static FOREIGN: [Foreign; 6] = foreign! {
    "mountPermissions", ["0", ""], Ignored, "a node changes no permission bits: the directory keeps those that it has (chmod it once, or give the pod a fsGroup)";
    "uid", [""], Ignored, "a node changes no owner: the directory keeps the one that it has";
    "gid", [""], Ignored, "a node changes no group: the directory keeps the one that it has (or give the pod a fsGroup)";
    "onDelete", ["retain"], Ignored, "the directory of a volume without a record of this driver is never deleted";
    "archiveOnDelete", [], Ignored, "the directory of a volume without a record of this driver is never archived";
    "pathPattern", [], Ignored, "subDir names the directory";
};

/// Whether it says where the volume is.
pub(super) fn names_a_share(attributes: &StringMap) -> bool {
    attributes.keys().any(|key| key.eq_ignore_ascii_case("server") || key.eq_ignore_ascii_case("share"))
}

/// Where a volume is, and what of its attributes has no effect. Keys with a slash are other programs'.
pub(super) fn mount(config: &NfsConfig, attributes: &StringMap) -> Result<(NfsMount, Vec<Ignored>)> {
    let own = attributes.iter().filter(|(key, _)| !key.contains('/'));
    let own: StringMap = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    let reader = Parameters::with_foreign(FIELD, &own, &KNOWN, &FOREIGN)?;
    let get = |key: &str| {
        let missing = || Error::invalid(reader.field_of(key), "is required, beside server and share");
        reader.get(key).ok_or_else(missing)
    };
    let wrong = |key: &str| {
        let field = reader.field_of(key);
        move |problem: String| Error::invalid(field, problem)
    };
    let (server, share) = (get("server")?, get("share")?);
    check_server(server).map_err(wrong("server"))?;
    check_path(share).map_err(wrong("share"))?;
    let (server, share) = (plain_server(server), plain_path(share));
    let dir = directory(&reader, attributes)?;
    let options = reader.get("mountOptions").unwrap_or_default();
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    let force = reader.one_of("unmountPolicy", &UNMOUNT_POLICIES)? == Some("force");
    let local = config.shares.iter().find(|spec| spec.server == server && spec.path == share);
    let local = local.and_then(|spec| spec.local.clone());
    Ok((NfsMount { server, share, dir, options, force, local }, reader.ignored()))
}

/// `subDir`, whose variables csi-driver-nfs fills in on the node, too.
fn directory(reader: &Parameters<'_>, attributes: &StringMap) -> Result<String> {
    let Some(text) = reader.get("subDir").filter(|text| !text.is_empty()) else { return Ok(String::new()) };
    if text.contains("${") {
        let (pvc, _) = split_parameters(attributes);
        let name = pvc.pv_name.clone().unwrap_or_default();
        let filled = NameTemplate::parse_path(text).and_then(|template| template.render(&pvc, &name));
        return filled.map_err(|error| Error::invalid(reader.field_of("subDir"), error.to_string()));
    }
    let dir = text.trim_matches('/');
    check_path(&format!("/{dir}")).map_err(|problem| Error::invalid(reader.field_of("subDir"), problem))?;
    Ok(dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(attributes: &[(&str, &str)]) -> Result<(NfsMount, Vec<Ignored>)> {
        let map = attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        mount(&NfsConfig::default(), &map)
    }

    #[test]
    fn a_volume_of_csi_driver_nfs_is_found_where_that_driver_mounts_it() {
        let (mount, ignored) = read(&[
            ("csi.storage.k8s.io/pv/name", "pvc-1"),
            ("csi.storage.k8s.io/pvc/name", "data"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "1-2-nfs.csi.k8s.io"),
            ("server", "NAS.example.org"),
            ("share", "/srv//nfs/"),
            ("subdir", "${pvc.metadata.namespace}/${pvc.metadata.name}-${pv.metadata.name}"),
            ("mountPermissions", "0777"),
            ("onDelete", "delete"),
        ])
        .unwrap();
        assert_eq!((mount.server.as_str(), mount.share.as_str()), ("nas.example.org", "/srv/nfs"));
        assert_eq!(mount.dir, "shop/data-pvc-1");
        let fields: Vec<_> = ignored.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["volume_context[\"mountPermissions\"]", "volume_context[\"onDelete\"]"]);
    }

    #[test]
    fn what_is_unknown_missing_or_leads_out_is_refused() {
        let good = [("server", "nas"), ("share", "/srv")];
        for (more, words) in [
            (("subDirs", "x"), "did you mean \"subDir\""),
            (("subDir", "../x"), "subDir"),
            (("subDir", "${pvc.metadata.name}"), "did not pass"),
            (("unmountPolicy", "later"), "known: wait, force"),
            (("SERVER", "other"), "given twice"),
        ] {
            let error = read(&[good[0], good[1], more]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(read(&good[..1]).unwrap_err().to_string().contains("share"));
    }
}
