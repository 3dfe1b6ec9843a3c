//! The command line: what the user typed, and where it goes.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand};
use provisioners::ExitCode;

use crate::output::Format;
use crate::{csi, demo, lock, volume};

/// Manages the volumes of a Kubernetes cluster.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 refused as unsafe, 4 waiting (try again).
#[derive(Debug, Parser)]
#[command(name = "volumectl", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk to any CSI socket: what sidecars and kubelet do, by hand
    Csi(Box<csi::CsiArgs>),
    /// Who has images locked, and taking them from owners that are dead
    Lock(Box<lock::LockArgs>),
    /// Volumes in a backend, without Kubernetes
    Volume(Box<volume::VolumeArgs>),
    /// Carry a database volume through its whole life on the local backend, and leave nothing behind
    Demo(demo::DemoArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one for each command to a directory
    Man {
        /// The directory.
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Print the version and the CSI version spoken
    Version,
}

/// Runs a command. The runtime is made here, so that `--help` and completions start at once.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Csi(args) => runtime()?.block_on(csi::run(*args, cli.output)),
        Command::Lock(args) => args.run(cli.output),
        Command::Volume(args) => args.run(cli.output),
        Command::Demo(args) => runtime()?.block_on(demo::run(&args, cli.output)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "volumectl", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => man(dir).map(|()| ExitCode::SUCCESS),
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            writeln!(anstream::stdout(), "volumectl {version}, CSI {}", csi_proto::SPEC_VERSION)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}

fn man(dir: Option<PathBuf>) -> Result<()> {
    match dir {
        Some(dir) => {
            std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            clap_mangen::generate_to(Cli::command(), &dir)
                .with_context(|| format!("writing to {}", dir.display()))
        }
        None => clap_mangen::Man::new(Cli::command())
            .render(&mut std::io::stdout())
            .context("writing the man page"),
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
