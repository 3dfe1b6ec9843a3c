//! `volumectl`.

use std::process::ExitCode;

use clap::Parser as _;
use volumectl::{cli, errors};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => errors::report(&error),
    }
}
