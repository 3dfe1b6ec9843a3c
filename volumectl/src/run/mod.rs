//! `volumectl csi run`: what external-provisioner, external-attacher, external-resizer, external-snapshotter and
//! kubelet do for the objects in a file, in their order, and `undo` all the way back.

mod forward;
pub mod manifests;
mod plan;
mod session;
mod state;
mod undo;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use provisioners::ExitCode;
use serde_json::json;

use crate::client::Csi;
use crate::output::{self, Column, Format, Show};
use manifests::Bundle;
use session::Session;
use state::Notes;

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kubernetes YAML: StorageClass and PersistentVolumeClaim, also VolumeSnapshot, VolumeSnapshotClass,
    /// VolumeAttributesClass and Secret; other kinds are ignored.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Where the volumes are mounted: `DIR/namespace/claim`.
    #[arg(long, value_name = "DIR", default_value = "./volumes")]
    pub mount_dir: PathBuf,
    /// What to do when all is mounted.
    #[arg(long, value_enum)]
    pub then: Option<Then>,
    /// Delete volumes although their class says `reclaimPolicy: Retain`.
    #[arg(long, requires = "then")]
    pub force_delete: bool,
}

/// `--then`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Then {
    /// Unmount, detach and delete everything again.
    Delete,
}

/// `undo`.
#[derive(Debug, Args)]
pub struct UndoArgs {
    /// The file that was run.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Where its volumes are mounted.
    #[arg(long, value_name = "DIR", default_value = "./volumes")]
    pub mount_dir: PathBuf,
    /// Delete volumes although their class says `reclaimPolicy: Retain`.
    #[arg(long)]
    pub force_delete: bool,
}

const CLAIMS: &[Column] = &[
    Column("CLAIM", "/claim", Show::Plain),
    Column("VOLUME", "/volumeId", Show::Plain),
    Column("SIZE", "/capacityBytes", Show::Size),
    Column("AS", "/usedAs", Show::Plain),
    Column("NODE", "/nodeId", Show::Wide),
    Column("PATH", "/target", Show::Plain),
];

/// Runs a file.
pub async fn run(csi: &Csi, args: &RunArgs, format: Format) -> Result<ExitCode> {
    let bundle = Bundle::load(&args.file)?;
    for object in &bundle.ignored {
        anstream::eprintln!("ignored: {object} (not for a CSI driver)");
    }
    let session = Session::open(csi, Notes::new(&args.mount_dir)?).await?;
    let done = forward::run(&session, &bundle).await;
    match (&done, args.then) {
        (Ok(claims), _) => output::print(format, &json!(claims), CLAIMS)?,
        (Err(_), Some(Then::Delete)) => anstream::eprintln!("that failed; taking back what was done"),
        (Err(_), None) => {
            let (file, dir) = (args.file.display(), args.mount_dir.display());
            anstream::eprintln!("what was done stays; repeat the command to go on, or take it back with");
            anstream::eprintln!("  volumectl csi undo -f {file} --mount-dir {dir}");
        }
    }
    if args.then == Some(Then::Delete) {
        undo::run(&session, &bundle, args.force_delete).await?;
    }
    done.map(|_| ExitCode::SUCCESS)
}

/// Takes back what was run.
pub async fn undo(csi: &Csi, args: &UndoArgs) -> Result<ExitCode> {
    let bundle = Bundle::load(&args.file)?;
    if !args.mount_dir.is_dir() {
        bail!("{} is not there: nothing was run with it", args.mount_dir.display());
    }
    let session = Session::open(csi, Notes::new(&args.mount_dir)?).await?;
    undo::run(&session, &bundle, args.force_delete).await?;
    Ok(ExitCode::SUCCESS)
}
