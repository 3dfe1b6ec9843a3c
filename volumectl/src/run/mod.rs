//! `volumectl csi run`: what external-provisioner, external-attacher, external-resizer, external-snapshotter and
//! kubelet do for the objects in a file, in their order, and `undo` all the way back.

mod check;
mod forward;
mod input;
mod lock;
mod lookups;
pub mod manifests;
mod mount;
mod objects;
mod plan;
mod selectors;
mod session;
mod snapshot_objects;
mod snapshots;
mod state;
mod undo;
mod volumes;
mod workloads;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use provisioners::ExitCode;
use serde_json::json;

use crate::client::Csi;
use crate::output::{self, Column, Format, Show};
use lock::Lock;
use manifests::Bundle;
use session::Session;
use state::{Bound, Notes};

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Kubernetes YAML, `-` is standard input; can be given several times. Read are StorageClass, PersistentVolumeClaim,
    /// PersistentVolume, VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, VolumeAttributesClass, Secret, and
    /// the claims of StatefulSets and of pods' ephemeral volumes. What is ignored is said, a line each.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Where the volumes are mounted: `DIR/namespace/claim`.
    #[arg(long, value_name = "DIR", default_value = "./volumes")]
    pub mount_dir: PathBuf,
    /// What to do when all is mounted.
    #[arg(long, value_enum)]
    pub then: Option<Then>,
    /// Delete volumes and snapshots although their class says Retain. PersistentVolumes of the file always stay.
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
    /// What was run, `-` is standard input; can be given several times.
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Where its volumes are mounted.
    #[arg(long, value_name = "DIR", default_value = "./volumes")]
    pub mount_dir: PathBuf,
    /// Delete volumes and snapshots although their class says Retain. PersistentVolumes of the file always stay.
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

/// Runs files.
pub async fn run(csi: &Csi, args: &RunArgs, format: Format) -> Result<ExitCode> {
    let bundle = Bundle::parse(&input::read(&args.files)?)?;
    let lock = Lock::take(&args.mount_dir, csi.timeout()).await?;
    let done = run_locked(csi, args, &bundle).await;
    lock.end();
    output::print(format, &json!(done?), CLAIMS)?;
    Ok(ExitCode::SUCCESS)
}

async fn run_locked(csi: &Csi, args: &RunArgs, bundle: &Bundle) -> Result<Vec<Bound>> {
    let session = Session::open(csi, Notes::new(&args.mount_dir)?).await?;
    let (site, known) = (session.site(), session.notes.all()?);
    let plans = check::plans(bundle, &site, &known)?;
    for line in check::remarks(bundle, &site, &plans) {
        anstream::eprintln!("{line}");
    }
    let others = session.notes.others(&bundle.claims.iter().collect::<Vec<_>>())?;
    if !others.is_empty() {
        anstream::eprintln!("left as they are: {} (noted here, and not in the file)", others.join(", "));
    }
    let done = forward::run(&session, bundle, &plans).await;
    match (&done, args.then) {
        (Err(_), Some(Then::Delete)) => anstream::eprintln!("that failed; taking back what was done"),
        (Err(_), None) => {
            anstream::eprintln!("what was done stays; repeat the command to go on, or take it back with");
            anstream::eprintln!("  {}", input::undo_command(&args.files, &args.mount_dir));
        }
        (Ok(_), _) => {}
    }
    if args.then == Some(Then::Delete) {
        let undone = undo::run(&session, bundle, args.force_delete).await;
        // Why it was taken back is the error, if there is one.
        return match (done, undone) {
            (Err(error), Err(second)) => {
                anstream::eprintln!("failed: {second:#}");
                Err(error)
            }
            (done, undone) => undone.and(done),
        };
    }
    done
}

/// Takes back what was run. Where nothing was, there is nothing to do.
pub async fn undo(csi: &Csi, args: &UndoArgs) -> Result<ExitCode> {
    let bundle = Bundle::parse(&input::read(&args.files)?)?;
    if !args.mount_dir.join(state::DIR).is_dir() {
        let dir = args.mount_dir.display();
        anstream::eprintln!("nothing to take back: in {dir} nothing was run, or all of it was taken back");
        return Ok(ExitCode::SUCCESS);
    }
    let lock = Lock::take(&args.mount_dir, csi.timeout()).await?;
    let session = Session::open(csi, Notes::new(&args.mount_dir)?).await;
    let done = match session {
        Ok(session) => undo::run(&session, &bundle, args.force_delete).await,
        Err(error) => Err(error),
    };
    lock.end();
    done.map(|()| ExitCode::SUCCESS)
}
