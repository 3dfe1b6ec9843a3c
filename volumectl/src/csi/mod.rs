//! `volumectl csi`: a client for any CSI socket.

pub mod args;
mod controller;
mod info;
mod names;
mod node;
mod snapshots;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use provisioners::ExitCode;
use serde_json::Value;

use crate::client::Csi;
use crate::errors::Usage;
use crate::output::{self, Column, Format};
use crate::secrets::SecretArgs;
use crate::{load, run};

/// `volumectl csi …`
#[derive(Debug, Args)]
pub struct CsiArgs {
    /// The driver's socket: unix:///path or its absolute path.
    #[arg(short, long, global = true, env = "CSI_ENDPOINT", value_name = "ENDPOINT")]
    pub endpoint: Option<String>,

    /// How long one call may take, in seconds.
    #[arg(long, global = true, default_value = "120", value_name = "SECONDS", value_parser = args::seconds)]
    pub timeout: Duration,

    #[command(flatten)]
    secrets: SecretArgs,

    #[command(subcommand)]
    command: CsiCommand,
}

/// The verbs.
#[derive(Debug, Subcommand)]
enum CsiCommand {
    /// Show the driver's name, version and capabilities, and this node
    Info,
    /// Ask whether the driver is ready
    Probe,
    #[command(flatten)]
    Controller(controller::Verb),
    /// Snapshots
    #[command(subcommand, visible_alias = "snap")]
    Snapshot(snapshots::Verb),
    /// Snapshots of several volumes at one moment
    #[command(subcommand)]
    Group(snapshots::GroupVerb),
    #[command(flatten)]
    Node(node::Verb),
    /// Do what Kubernetes would for the StorageClasses and claims in a YAML file
    Run(run::RunArgs),
    /// Take back what `run` did for the same file
    Undo(run::UndoArgs),
    /// Measure a driver: throughput and latency of its RPCs
    Load(load::LoadArgs),
}

/// What a verb has to print: a value, and its columns as a table. `None`: nothing to say.
pub(crate) type Shown = Option<(Value, &'static [Column])>;

/// Runs a verb.
pub async fn run(args: CsiArgs, format: Format) -> Result<ExitCode> {
    let endpoint = args.endpoint.as_deref();
    let endpoint = endpoint
        .ok_or_else(|| Usage("--endpoint (or CSI_ENDPOINT) is required: the driver's socket".into()))?;
    let secrets = args.secrets.load().context("secrets")?;
    let csi = Csi::connect(endpoint, args.timeout).await?;
    let shown = match args.command {
        CsiCommand::Info => info::info(&csi).await?,
        CsiCommand::Probe => info::probe(&csi).await?,
        CsiCommand::Controller(verb) => controller::run(&csi, verb, secrets).await?,
        CsiCommand::Snapshot(verb) => snapshots::run(&csi, verb, secrets).await?,
        CsiCommand::Group(verb) => snapshots::run_group(&csi, verb, secrets).await?,
        CsiCommand::Node(verb) => node::run(&csi, verb, secrets).await?,
        CsiCommand::Run(args) => return run::run(&csi, &args, format).await,
        CsiCommand::Undo(args) => return run::undo(&csi, &args).await,
        CsiCommand::Load(args) => return load::run(endpoint, &csi, &args, format).await,
    };
    if let Some((value, columns)) = shown {
        output::print(format, &value, columns)?;
    }
    Ok(ExitCode::SUCCESS)
}
