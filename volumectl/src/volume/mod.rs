//! `volumectl volume`: images as an administrator handles them.

use anyhow::Result;
use clap::{Args, Subcommand};
use provisioners::ExitCode;
use provisioners::rbd::Admin;
use serde_json::{Value, json};

use crate::ceph::CephArgs;
use crate::csi::args::{map, pair};
use crate::errors::{Usage, WAITING};
use crate::output::{self, Column, Format, Show};
use crate::progress;

/// The arguments of every verb.
#[derive(Debug, Args)]
pub struct VolumeArgs {
    #[command(flatten)]
    ceph: CephArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List images, and which of them are volumes of the driver
    #[command(visible_alias = "list")]
    Ls,
    /// Make a volume
    Create {
        /// The image's name: POOL/IMAGE or POOL/NAMESPACE/IMAGE
        #[arg(value_name = "NAME")]
        image: String,
        /// Such as 10Gi or 1.5Ti; 10G is 10^10 bytes, as everywhere in Kubernetes
        #[arg(short, long, value_parser = size, value_name = "SIZE")]
        size: u64,
        /// A StorageClass parameter, such as imageFeatures=layering; can be given several times
        #[arg(long = "param", value_name = "KEY=VALUE", value_parser = pair)]
        parameters: Vec<(String, String)>,
        /// For use as a raw block device
        #[arg(long)]
        block: bool,
    },
    /// Delete a volume; without --yes only says what would be deleted
    #[command(visible_alias = "delete")]
    Rm {
        /// POOL/IMAGE or POOL/NAMESPACE/IMAGE
        image: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
    /// Make a volume larger, also while it is in use
    #[command(visible_alias = "expand")]
    Resize {
        /// POOL/IMAGE or POOL/NAMESPACE/IMAGE
        image: String,
        /// The new size, such as 20Gi
        #[arg(short, long, value_parser = size, value_name = "SIZE")]
        size: u64,
    },
    /// Show everything about an image
    #[command(visible_alias = "get")]
    Info {
        /// POOL/IMAGE or POOL/NAMESPACE/IMAGE
        image: String,
    },
    /// Copy what a clone shares with its parent
    Flatten {
        /// POOL/IMAGE or POOL/NAMESPACE/IMAGE
        image: String,
    },
    /// Snapshots of a volume
    #[command(visible_alias = "snapshot")]
    Snap {
        /// What to do.
        #[command(subcommand)]
        verb: Snap,
    },
}

#[derive(Debug, Subcommand)]
enum Snap {
    /// List the snapshots of a volume
    #[command(visible_alias = "list")]
    Ls {
        /// POOL/IMAGE or POOL/NAMESPACE/IMAGE
        image: String,
    },
    /// Take a snapshot
    Create {
        /// Its name
        name: String,
        /// Of what: POOL/IMAGE or POOL/NAMESPACE/IMAGE
        image: String,
    },
    /// Delete a snapshot; without --yes only says what would be deleted
    #[command(visible_alias = "delete")]
    Rm {
        /// Its name
        name: String,
        /// Of what: POOL/IMAGE or POOL/NAMESPACE/IMAGE
        image: String,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

const IMAGES: &[Column] = &[
    Column("IMAGE", "/image", Show::Plain),
    Column("SIZE", "/size", Show::Size),
    Column("VOLUME", "/volume", Show::Wide),
    Column("PV", "/pv", Show::Plain),
    Column("CLAIM", "/claim", Show::Plain),
    Column("NODES", "/published", Show::Plain),
    Column("CREATED", "/created", Show::Wide),
];

const INFO: &[Column] = &[
    Column("IMAGE", "/image", Show::Plain),
    Column("SIZE", "/size", Show::Size),
    Column("CLAIM", "/claim", Show::Plain),
    Column("FEATURES", "/details/features", Show::Plain),
    Column("PARENT", "/details/parent", Show::Plain),
    Column("SNAPSHOTS", "/details/snapshots", Show::Plain),
    Column("OPEN BY", "/details/watchers", Show::Plain),
    Column("VOLUME", "/volume", Show::Wide),
    Column("DATA POOL", "/details/dataPool", Show::Wide),
    Column("CHILDREN", "/details/children", Show::Wide),
    Column("FILE SYSTEM", "/details/fileSystem", Show::Wide),
];

const SNAPSHOTS: &[Column] = &[
    Column("SNAPSHOT", "/name", Show::Plain),
    Column("SIZE", "/size", Show::Size),
    Column("CREATED", "/created", Show::Plain),
    Column("ID", "/id", Show::Wide),
];

impl VolumeArgs {
    /// Runs the verb; a flattening takes as long as it takes.
    pub fn run(self, format: Format) -> Result<ExitCode> {
        if let Verb::Flatten { .. } = self.verb {
            return run(&self, format);
        }
        self.ceph.clone().bounded(move || run(&self, format))
    }
}

fn run(args: &VolumeArgs, format: Format) -> Result<ExitCode> {
    let (ceph, admin) = (&args.ceph, args.ceph.admin()?);
    match &args.verb {
        Verb::Ls => {
            let images = admin.images(ceph.pool.as_deref())?;
            output::print(format, &serde_json::to_value(images)?, IMAGES)?;
        }
        Verb::Create { image, size, parameters, block } => {
            let parameters = map("--param", parameters)?;
            let image = ceph.image(image);
            let volume = admin.create(&image, *size, parameters, *block)?;
            output::print(
                format,
                &json!({"image": image, "size": volume.capacity, "volume": volume.id.0}),
                IMAGES,
            )?;
        }
        Verb::Rm { image, yes } => return remove(&admin, &ceph.image(image), *yes, format),
        Verb::Resize { image, size } => {
            let image = ceph.image(image);
            let size = admin.resize(&image, *size)?;
            output::print(format, &json!({"image": image, "size": size}), &IMAGES[..2])?;
        }
        Verb::Info { image } => {
            let info = admin.info(&ceph.image(image))?;
            output::print(format, &serde_json::to_value(info)?, INFO)?;
        }
        Verb::Flatten { image } => {
            let bar = progress::count("flattening");
            admin.flatten(&ceph.image(image), |done, all| {
                bar.at(usize::try_from(done).unwrap_or(0), usize::try_from(all).unwrap_or(0));
            })?;
            bar.end();
        }
        Verb::Snap { verb } => return snap(&admin, ceph, verb, format),
    }
    Ok(ExitCode::SUCCESS)
}

fn remove(admin: &Admin, image: &str, yes: bool, format: Format) -> Result<ExitCode> {
    let info = admin.info(image)?;
    let value = serde_json::to_value(&info)?;
    if !yes {
        output::print(format, &value, INFO)?;
        if format == Format::Table {
            anstream::println!("Nothing was deleted. Add --yes to delete it with all of its data.");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let purged = admin.remove(image)?;
    output::print(
        format,
        &json!({"image": image, "deleted": true, "spaceFreed": purged}),
        &[
            Column("IMAGE", "/image", Show::Plain),
            Column("DELETED", "/deleted", Show::Plain),
            Column("SPACE FREED", "/spaceFreed", Show::Plain),
        ],
    )?;
    Ok(if purged { ExitCode::SUCCESS } else { ExitCode::from(WAITING) })
}

fn snap(admin: &Admin, ceph: &CephArgs, verb: &Snap, format: Format) -> Result<ExitCode> {
    let shown = |snapshot: &provisioners::Snapshot| {
        let name = snapshot.id.0.rsplit('/').next().unwrap_or_default();
        json!({"name": name, "size": snapshot.size, "created": snapshot.created.to_string(), "id": snapshot.id.0})
    };
    if let Snap::Create { name, image } | Snap::Rm { name, image, .. } = verb
        && name.contains('/')
    {
        let text =
            format!("{name} cannot be a snapshot's name; write the name, then the image: {image} {name}");
        return Err(Usage(text).into());
    }
    match verb {
        Snap::Ls { image } => {
            let all: Value = admin.snapshots(&ceph.image(image))?.iter().map(shown).collect();
            output::print(format, &all, SNAPSHOTS)?;
        }
        Snap::Create { image, name } => {
            output::print(format, &shown(&admin.snapshot(&ceph.image(image), name)?), SNAPSHOTS)?;
        }
        Snap::Rm { image, name, yes: false } => {
            anstream::println!(
                "Would delete snapshot {name} of {}. Add --yes to delete it.",
                ceph.image(image)
            );
        }
        Snap::Rm { image, name, yes: true } => admin.remove_snapshot(&ceph.image(image), name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A size, of which there is some.
fn size(text: &str) -> Result<u64, String> {
    match crate::csi::args::size(text)? {
        0 => Err("must be more than 0".into()),
        bytes => u64::try_from(bytes).map_err(|e| e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `csi create --size` reads, too.
    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        assert_eq!(size("10Gi"), Ok(10 << 30));
        assert_eq!(size("10G"), Ok(10_000_000_000));
        assert_eq!(size("1073741824"), Ok(1 << 30));
        assert!(size("0").is_err() && size("ten").is_err() && size("-1G").is_err());
    }
}
