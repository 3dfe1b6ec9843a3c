//! StorageClass parameters of the NFS backend: the names of csi-driver-nfs and of nfs-subdir-external-provisioner.

use serde::{Deserialize, Serialize};

use super::client::Version;
use super::config::{NfsConfig, NfsShare, check_path, check_server};
use super::handle::ShareId;
use crate::parameters::docs;
use crate::{Error, NameTemplate, ParameterDoc, Parameters, Result, StringMap};

/// Every parameter, for refusing others and for the documentation.
pub(super) static DOCS: [ParameterDoc; 14] = docs! {
    "shareName", "The configured share to make the volume on. Instead of `server` and `share`.",
        "the only share, or the one named `default`", false;
    "server", "The NFS server, as csi-driver-nfs has it: together with `share` a configured share, or any other where the configuration has `anyShare`.",
        "none", false;
    "share", "The exported path on `server`.", "none", false;
    "subDir", "The volume's directory below the share, made from `${pvc.namespace}`, `${pvc.name}`, `${pv.name}`, `${pvc.labels.KEY}` and `${pvc.annotations.KEY}`; it may have several parts (`${pvc.namespace}/${pvc.name}`). A directory that exists, or is within another volume, is refused.",
        "the volume's key", false;
    "pathPattern", "The same, as nfs-subdir-external-provisioner has it: `${.PVC.namespace}/${.PVC.name}`.", "none", false;
    "onDelete", "What becomes of the directory when the volume is deleted: `delete`, `retain` or `archive` (renamed to `archived-<name>`).",
        "the configuration's, else `archive` beside `pathPattern`, else `delete`", true;
    "onDeleteFailure", "What DeleteVolume does about content that the server does not let it remove (root_squash, immutable files): `trash`: it is answered, what is left stays in the trash, is tried again by every sweep, and shown by the log and `volumectl_csi_nfs_removals_stuck`. `fail`: it is answered when all is removed, before that with the first path that stays (FAILED_PRECONDITION).",
        "trash", true;
    "archiveOnDelete", "As nfs-subdir-external-provisioner has it: `true` is `onDelete: archive`, `false` is `onDelete: delete`. Beside `pathPattern` that driver's default holds, too.", "none", false;
    "mountPermissions", "Permission bits of the directory in octal, such as `0770`. `0`: those that csi-driver-nfs makes a directory with, `0755`, and no change later.", "0777", true;
    "uid", "The user id that owns the directory.", "the user that the controller's calls are made as", true;
    "gid", "The group id that owns the directory.", "the group that the controller's calls are made as", true;
    "mountOptions", "Mount options for nodes, separated by commas, such as `nfsvers=4.1,hard`; those of the StorageClass's own `mountOptions` come after.", "none", false;
    "unmountPolicy", "What a node does when it is to unmount the share with its last volume, and the server does not take what pods have written: `wait` for it (NodeUnstageVolume answers UNAVAILABLE, and is repeated), or give it up by `force`. Such volumes have a mount of their own.",
        "wait", false;
    "ifChanging", "Of a clone or snapshot whose source is written to meanwhile: `refuse` it, or `accept` files of different moments.", "refuse", false;
};

/// What becomes of a deleted volume's directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDelete {
    /// It is removed.
    #[default]
    Delete,
    /// It stays as it is.
    Retain,
    /// It is renamed.
    Archive,
}

impl OnDelete {
    const WORDS: [&str; 3] = ["delete", "retain", "archive"];

    fn from_word(word: &str) -> Self {
        match word {
            "retain" => Self::Retain,
            "archive" => Self::Archive,
            _ => Self::Delete,
        }
    }

    /// As it is written in a StorageClass.
    pub(super) fn word(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

/// What `unmountPolicy` may be.
pub(super) const UNMOUNT_POLICIES: [&str; 2] = ["wait", "force"];

/// The parameters, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Params {
    pub(super) share: ShareId,
    pub(super) template: Option<NameTemplate>,
    pub(super) on_delete: OnDelete,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mount_options: String,
    pub(super) force: bool,
    pub(super) accept_changes: bool,
    /// DeleteVolume waits until all is removed.
    pub(super) fail: bool,
}

/// What `onDeleteFailure` may be.
const ON_FAILURE: [&str; 2] = ["trash", "fail"];

impl Params {
    /// Reads a StorageClass's parameters, and over them those of a VolumeAttributesClass.
    pub(super) fn parse(config: &NfsConfig, given: &StringMap, mutable: &StringMap) -> Result<Self> {
        let reader = Parameters::new("parameters", given, &DOCS)?;
        let changed = Mutable::parse(mutable)?;
        Ok(Self {
            share: share(config, &reader)?,
            template: template(&reader)?,
            on_delete: changed
                .on_delete
                .or(on_delete(&reader)?)
                .unwrap_or_else(|| default_policy(config, &reader)),
            mode: changed.mode.or(mode(&reader)?).unwrap_or(Mode::Bits(0o777)).bits(),
            uid: changed.uid.or(reader.owner("uid")?),
            gid: changed.gid.or(reader.owner("gid")?),
            mount_options: reader.read("mountOptions", mount_options)?.unwrap_or_default(),
            force: reader.one_of("unmountPolicy", &UNMOUNT_POLICIES)? == Some("force"),
            accept_changes: reader.one_of("ifChanging", &["refuse", "accept"])? == Some("accept"),
            fail: changed.fail.or(on_failure(&reader)?).unwrap_or(false),
        })
    }

    /// In what the asked ones differ from those that a volume has.
    pub(super) fn differences(&self, has: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |name: &str, asked: String, has: String| {
            if asked != has {
                found.push(format!("{name} (it has {has}; asked: {asked})"));
            }
        };
        let octal = |mode: Option<u32>| mode.map_or_else(|| "none".into(), |mode| format!("{mode:04o}"));
        compare("share", self.share.to_string(), has.share.to_string());
        compare("onDelete", self.on_delete.word().into(), has.on_delete.word().into());
        let failure = |fail: bool| ON_FAILURE[usize::from(fail)].to_owned();
        compare("onDeleteFailure", failure(self.fail), failure(has.fail));
        compare("mountPermissions", octal(self.mode), octal(has.mode));
        compare("uid", format!("{:?}", self.uid), format!("{:?}", has.uid));
        compare("gid", format!("{:?}", self.gid), format!("{:?}", has.gid));
        let policy = |force: bool| UNMOUNT_POLICIES[usize::from(force)].to_owned();
        compare("unmountPolicy", policy(self.force), policy(has.force));
        compare("mountOptions", self.mount_options.clone(), has.mount_options.clone());
        found
    }
}

/// What `mountPermissions` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    AsItIs,
    Bits(u32),
}

impl Mode {
    pub(super) fn bits(self) -> Option<u32> {
        match self {
            Self::AsItIs => None,
            Self::Bits(bits) => Some(bits),
        }
    }
}

/// What ControllerModifyVolume can change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mutable {
    pub(super) on_delete: Option<OnDelete>,
    pub(super) mode: Option<Mode>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) fail: Option<bool>,
}

impl Mutable {
    /// Reads a VolumeAttributesClass's parameters. One that cannot be changed: [`Error::Invalid`].
    pub(super) fn parse(given: &StringMap) -> Result<Self> {
        let reader = Parameters::mutable(given, &DOCS)?;
        Ok(Self {
            on_delete: on_delete(&reader)?,
            mode: mode(&reader)?,
            uid: reader.owner("uid")?,
            gid: reader.owner("gid")?,
            fail: on_failure(&reader)?,
        })
    }
}

fn share(config: &NfsConfig, reader: &Parameters<'_>) -> Result<ShareId> {
    let known = || config.shares.iter().map(|share| share.name.as_str()).collect::<Vec<_>>().join(", ");
    let named = |share: &NfsShare| ShareId::Named(share.name.clone());
    match (reader.get("shareName"), reader.get("server"), reader.get("share")) {
        (Some(name), None, None) => {
            let found = config.shares.iter().find(|share| share.name == name).map(named);
            found.ok_or_else(|| {
                let problem = format!("{name:?} is not a configured share; known: {}", known());
                Error::invalid(reader.field_of("shareName"), problem)
            })
        }
        (Some(_), _, _) => Err(Error::invalid(
            reader.field_of("shareName"),
            "is given beside server or share; give the one or the other",
        )),
        (None, Some(server), Some(path)) => direct(config, reader, server, path),
        (None, Some(_), None) => Err(Error::invalid(reader.field_of("share"), "must be given beside server")),
        (None, None, Some(_)) => Err(Error::invalid(reader.field_of("server"), "must be given beside share")),
        (None, None, None) => {
            let default = match &config.shares[..] {
                [only] => Some(only),
                shares => shares.iter().find(|share| share.name == "default"),
            };
            default.map(named).ok_or_else(|| {
                let problem = format!("must be given, for no share is named default; known: {}", known());
                Error::invalid(reader.field_of("shareName"), problem)
            })
        }
    }
}

/// A configured share by its server and path, or one that only the class names.
fn direct(config: &NfsConfig, reader: &Parameters<'_>, server: &str, path: &str) -> Result<ShareId> {
    check_server(server).map_err(|problem| Error::invalid(reader.field_of("server"), problem))?;
    check_path(path).map_err(|problem| Error::invalid(reader.field_of("share"), problem))?;
    match config.share_at(server, path) {
        id @ ShareId::Named(_) => Ok(id),
        id @ ShareId::Direct(..) if config.any_share => Ok(id),
        ShareId::Direct(..) => Err(Error::invalid(
            reader.field_of("server"),
            format!(
                "{server}:{path} is not a configured share; add it to the driver's configuration, or set anyShare there"
            ),
        )),
    }
}

fn template(reader: &Parameters<'_>) -> Result<Option<NameTemplate>> {
    match (reader.get("subDir"), reader.get("pathPattern")) {
        (Some(_), Some(_)) => Err(Error::invalid(
            reader.field_of("pathPattern"),
            "is given beside subDir, which means the same; give one",
        )),
        (Some(text), None) | (None, Some(text)) => NameTemplate::parse_path(text).map(Some),
        (None, None) => Ok(None),
    }
}

fn on_delete(reader: &Parameters<'_>) -> Result<Option<OnDelete>> {
    // csi-driver-nfs takes any case, and nothing for its default.
    let given = reader.get("onDelete").filter(|word| !word.is_empty());
    let word =
        given.map_or(Ok(None), |_| reader.word("onDelete", &OnDelete::WORDS))?.map(OnDelete::from_word);
    let archive = reader.flag("archiveOnDelete")?;
    let archive = archive.map(|archive| if archive { OnDelete::Archive } else { OnDelete::Delete });
    match (word, archive) {
        (Some(word), Some(archive)) if word != archive => Err(Error::invalid(
            reader.field_of("archiveOnDelete"),
            format!("contradicts onDelete: {}; give one", word.word()),
        )),
        (word, archive) => Ok(word.or(archive)),
    }
}

/// Where the class says nothing: a class of nfs-subdir-external-provisioner, known by its pattern, means its default.
fn default_policy(config: &NfsConfig, reader: &Parameters<'_>) -> OnDelete {
    let of_class = reader.get("pathPattern").map(|_| OnDelete::Archive);
    config.on_delete.or(of_class).unwrap_or_default()
}

fn on_failure(reader: &Parameters<'_>) -> Result<Option<bool>> {
    Ok(reader.one_of("onDeleteFailure", &ON_FAILURE)?.map(|word| word == "fail"))
}

/// Permission bits, or `0`, which is "no chmod" to csi-driver-nfs.
fn mode(reader: &Parameters<'_>) -> Result<Option<Mode>> {
    match reader.get("mountPermissions") {
        Some("0") => Ok(Some(Mode::AsItIs)),
        Some("") => Ok(None),
        _ => Ok(reader
            .mode("mountPermissions")?
            .map(|mode| if mode == 0 { Mode::AsItIs } else { Mode::Bits(mode) })),
    }
}

fn mount_options(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("write options separated by commas, without spaces".into());
    }
    Ok(text.to_owned())
}

/// The version that mount options ask for: `nfsvers=`, `vers=` (nfs(5)). `4` and `4.0` leave the choice.
pub(super) fn version_of(options: &[String]) -> Option<Version> {
    let of = |option: &str| {
        let value = option.strip_prefix("nfsvers=").or_else(|| option.strip_prefix("vers="))?;
        Version::parse(value)
    };
    options.iter().flat_map(|some| some.split(',')).filter_map(of).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NfsConfig {
        let share = |name: &str, path: &str| NfsShare {
            name: name.into(),
            server: "nas".into(),
            path: path.into(),
            ..NfsShare::default()
        };
        NfsConfig { shares: vec![share("one", "/one"), share("two", "/two")], ..NfsConfig::default() }
    }

    fn parse(given: &[(&str, &str)]) -> Result<Params> {
        let map = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Params::parse(&config(), &map, &StringMap::new())
    }

    #[test]
    fn both_drivers_spellings_are_understood() {
        let params = parse(&[
            ("server", "nas"),
            ("share", "/two/"),
            ("pathPattern", "${.PVC.namespace}/${.PVC.annotations.nfs.io/storage-path}"),
            ("archiveOnDelete", "true"),
            ("mountPermissions", "0"),
        ]);
        let params = params.unwrap();
        assert_eq!(params.share, ShareId::Named("two".into()));
        assert_eq!((params.on_delete, params.mode), (OnDelete::Archive, None));
        assert!(params.template.is_some());
    }

    #[test]
    fn what_contradicts_itself_is_refused_and_named() {
        for (given, field) in [
            (
                &[("onDelete", "retain"), ("archiveOnDelete", "true"), ("shareName", "one")][..],
                "archiveOnDelete",
            ),
            (&[("subDir", "a"), ("pathPattern", "b"), ("shareName", "one")], "pathPattern"),
            (&[("server", "nas")], "share"),
            (&[("server", "other"), ("share", "/x")], "server"),
            (&[], "shareName"),
            (&[("shareName", "one"), ("subdirs", "x")], "subdirs"),
            (&[("shareName", "one"), ("subdir", "x"), ("subDir", "x")], "subDir"),
        ] {
            let error = parse(given).unwrap_err().to_string();
            assert!(error.starts_with(&format!("parameters[\"{field}\"]")), "{error}");
        }
    }

    #[test]
    fn keys_and_policies_are_taken_in_any_case() {
        let params = parse(&[("SHARENAME", "one"), ("ondelete", "Retain"), ("subdir", "x")]).unwrap();
        assert_eq!((params.on_delete, params.template.is_some()), (OnDelete::Retain, true));
        assert!(parse(&[("shareName", "one"), ("onDelete", "keep")]).is_err());
    }

    #[test]
    fn a_pattern_without_a_policy_is_archived_as_its_driver_does() {
        let policy = |given: &[(&str, &str)], of_config| {
            let map = given.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let config = NfsConfig { on_delete: of_config, ..config() };
            Params::parse(&config, &map, &StringMap::new()).unwrap().on_delete
        };
        let pattern = ("pathPattern", "${.PVC.name}");
        let share = ("shareName", "one");
        assert_eq!(policy(&[share, pattern], None), OnDelete::Archive);
        assert_eq!(policy(&[share, pattern], Some(OnDelete::Delete)), OnDelete::Delete);
        assert_eq!(policy(&[share, pattern, ("archiveOnDelete", "False")], None), OnDelete::Delete);
        assert_eq!(policy(&[share], None), OnDelete::Delete);
    }

    #[test]
    fn the_last_version_counts() {
        assert_eq!(version_of(&["hard,nfsvers=3".into(), "vers=4.1".into()]), Some(Version::V41));
        assert_eq!(version_of(&["hard".into()]), None);
    }
}
