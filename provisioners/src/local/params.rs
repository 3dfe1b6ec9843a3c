//! StorageClass parameters of the local backend.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::LocalConfig;
use crate::filesystem::{FS_TYPES, mkfs_options};
use crate::parameters::{canonical, docs};
use crate::{Error, NameTemplate, ParameterDoc, Parameters, Result, StringMap};

/// Every parameter, for refusing others and for the documentation.
pub(super) static DOCS: [ParameterDoc; 9] = docs! {
    "root", "The directory to make the volume in: the name of a configured root, or its exact path.",
        "the only root, or the one named `default`", false;
    "type", "`file`: a file that becomes a loop device, with a file system or as a raw block device. `directory`: a plain directory that is bind mounted; its size is recorded, but not enforced.",
        "file", false;
    "thick", "`true`: all blocks of a file volume are allocated when it is made, so that it can always be filled.",
        "false", false;
    "mode", "Permission bits of the volume's root directory in octal, such as `0770`. For type `file` they are given to a fresh file system, so they can be changed only before the first use.",
        "0770 for type directory, as mkfs made it for type file", true;
    "uid", "The user id that owns the root directory; type `directory` only.", "0", true;
    "gid", "The group id that owns the root directory; type `directory` only.", "0", true;
    "fsType", "The file system of a type `file` volume, where the capability names none: `ext4`, `xfs` or `btrfs`.",
        "the capability's, else the driver's", false;
    "mkfsOptions", "Extra arguments for mkfs, separated by spaces, such as `-m 0 -i 8192`; no paths.", "none", false;
    "nameTemplate", "The name of the volume's directory below the root, made from `${pvc.namespace}`, `${pvc.name}`, `${pv.name}`, `${pvc.labels.KEY}` and `${pvc.annotations.KEY}`. A name that is taken is refused.",
        "the volume's key", false;
};

/// What a volume is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum VolumeType {
    /// `disk.img`, used through a loop device.
    File,
    /// `data/`, bind mounted.
    Directory,
}

impl VolumeType {
    /// As it is written in a StorageClass.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
        }
    }

    /// The name of the data below the volume's directory.
    pub(super) fn data_name(self) -> &'static str {
        match self {
            Self::File => "disk.img",
            Self::Directory => "data",
        }
    }
}

/// The parameters, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Params {
    /// The root's configured name.
    pub(super) root: String,
    pub(super) kind: VolumeType,
    pub(super) thick: bool,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) fs_type: Option<String>,
    pub(super) mkfs_options: Vec<String>,
    pub(super) template: Option<NameTemplate>,
}

/// What ControllerModifyVolume can change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mutable {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

impl Params {
    /// Reads a StorageClass's parameters, and over them those of a VolumeAttributesClass.
    pub(super) fn parse(config: &LocalConfig, given: &StringMap, mutable: &StringMap) -> Result<Self> {
        let reader = Parameters::new("parameters", given, &DOCS)?;
        let changed = Mutable::parse(mutable)?;
        let mutable = &canonical(mutable, &DOCS);
        let params = Self {
            root: root_name(config, &reader)?,
            kind: kind(&reader)?,
            thick: reader.flag("thick")?.unwrap_or(false),
            mode: changed.mode.or(reader.mode("mode")?),
            uid: changed.uid.or(reader.owner("uid")?),
            gid: changed.gid.or(reader.owner("gid")?),
            fs_type: reader.one_of("fsType", &FS_TYPES)?.map(str::to_owned),
            mkfs_options: reader.read("mkfsOptions", mkfs_options)?.unwrap_or_default(),
            template: reader.get("nameTemplate").map(NameTemplate::parse).transpose()?,
        };
        params.check_kind(&reader, mutable)?;
        Ok(params)
    }

    /// Refuses parameters that mean nothing for the volume's type.
    fn check_kind(&self, given: &Parameters<'_>, mutable: &StringMap) -> Result<()> {
        let (foreign, right): (&[&str], _) = match self.kind {
            VolumeType::File => (&["uid", "gid"], "directory"),
            VolumeType::Directory => (&["thick", "fsType", "mkfsOptions"], "file"),
        };
        for key in foreign {
            let field = match (given.get(key), mutable.contains_key(*key)) {
                (None, false) => continue,
                (Some(_), _) => given.field_of(key),
                (None, true) => format!("mutable_parameters[{key:?}]"),
            };
            return Err(Error::invalid(
                field,
                format!("only a volume of type {right:?} has it; remove it or set type"),
            ));
        }
        Ok(())
    }
}

impl Mutable {
    /// Reads a VolumeAttributesClass's parameters. One that cannot be changed: [`Error::Invalid`].
    pub(super) fn parse(given: &StringMap) -> Result<Self> {
        let reader = Parameters::mutable(given, &DOCS)?;
        Ok(Self { mode: reader.mode("mode")?, uid: reader.owner("uid")?, gid: reader.owner("gid")? })
    }
}

fn kind(reader: &Parameters<'_>) -> Result<VolumeType> {
    Ok(match reader.one_of("type", &["file", "directory"])? {
        Some("directory") => VolumeType::Directory,
        _ => VolumeType::File,
    })
}

fn root_name(config: &LocalConfig, reader: &Parameters<'_>) -> Result<String> {
    let names = || config.roots.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let field = reader.field_of("root");
    match reader.get("root") {
        Some(wish) => {
            let found =
                config.roots.iter().find(|(name, path)| *name == wish || path.as_path() == Path::new(wish));
            let name = found.map(|(name, _)| name.clone());
            name.ok_or_else(|| {
                Error::invalid(field, format!("{wish:?} is not a configured root; known: {}", names()))
            })
        }
        None if config.roots.len() == 1 => Ok(names()),
        None if config.roots.contains_key("default") => Ok("default".into()),
        None => Err(Error::invalid(
            field,
            format!("must be given, for no root is named default; known: {}", names()),
        )),
    }
}
