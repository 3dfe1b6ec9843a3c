//! `volumectl`.

use clap::Parser as _;
use volumectl::{cli, errors};

fn main() {
    let cli = cli::Cli::parse();
    errors::caught(|| cli::run(cli)).unwrap_or_else(|error| errors::report(&error)).end()
}
