//! `csi-driver`: wires the parts together in a fixed order: logs, configuration, backends, sockets, ready.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use csi_driver::cli::Cli;
use csi_driver::config::Config;
use csi_driver::driver::Service;
use csi_driver::metrics::Metrics;
use csi_driver::server::Server;
use csi_driver::{host, identity, registry, table, telemetry};
use provisioners::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// The command line or the configuration is wrong (EX_USAGE of sysexits(3)).
const EX_USAGE: u8 = 64;

fn main() {
    run().end()
}

fn run() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = host::run_helper(&arguments) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let cli = Cli::parse();
    if let Err(problem) = telemetry::init(cli.log_format, &cli.log) {
        return usage(&problem);
    }
    if cli.backends {
        print!("{}", table::markdown(&registry::examples()));
        return ExitCode::SUCCESS;
    }
    let config = match cli.config.as_deref().map(Config::load) {
        Some(Ok(config)) => config,
        Some(Err(problem)) => return usage(&problem.to_string()),
        None => return usage("--config is required"),
    };
    match start(&cli, config) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{}", provisioners::plain(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("csi-driver: {}", provisioners::plain(problem));
    ExitCode::from(EX_USAGE)
}

fn start(cli: &Cli, mut config: Config) -> Result<ExitCode> {
    config.http_address = cli.http_address.or(config.http_address);
    if cli.print_config {
        print!("{}", serde_saphyr::to_string(&config).context("printing the configuration")?);
        return Ok(ExitCode::SUCCESS);
    }
    let metrics = Metrics::new();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), csi = csi_proto::SPEC_VERSION, mode = ?cli.mode, "starting");
    let built = if cli.check {
        registry::idle_drivers(&config, cli.mode, &metrics)
    } else {
        registry::drivers(&config, cli.mode, &metrics)
    };
    let drivers = match built {
        Ok(drivers) => drivers,
        Err(problem) => return Ok(usage(&problem)),
    };
    // One thread takes and answers the calls; the work is on the blocking threads, whose number is bounded for each
    // backend and class of call, never by the pool that all share. More threads for the calls cost memory and wake each
    // other up.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(registry::most_threads(&config))
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let code = if cli.check {
        runtime.block_on(check(&drivers))
    } else {
        runtime.block_on(serve(config, drivers, metrics))?
    };
    // Work that cannot be interrupted must not keep a stopped process alive.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(code)
}

async fn check(drivers: &[Service]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for driver in drivers {
        let problems: Vec<String> = driver.examined().await.iter().filter_map(identity::problem).collect();
        if problems.is_empty() {
            println!("{}: ready", driver.name);
        }
        for problem in &problems {
            println!("{}: not ready: {problem}", driver.name);
            code = ExitCode::FAILURE;
        }
        for line in driver.backend.provisioner.describe().await {
            println!("  {line}");
        }
        if let Some(warning) = warning(driver) {
            println!("  warning: {warning}");
        }
    }
    code
}

/// What works now, and will not outlive this process's container.
fn warning(driver: &Service) -> Option<String> {
    let fuse = driver.mode.node() && driver.backend.provisioner.kind() == "rbd";
    let problem = driver.host.outlives().err().filter(|_| fuse)?;
    Some(format!(
        "volumes with `mounter: fuse` end with this driver's container, and their pods get I/O errors: {problem}"
    ))
}

async fn serve(config: Config, drivers: Vec<Service>, metrics: Metrics) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let sockets = config.backends.iter().map(|b| b.socket.clone());
    let drivers = drivers.into_iter().zip(sockets).collect();
    let grace = Duration::from_secs(config.shutdown_grace_seconds);
    let server = Server::bind(drivers, config.http_address, metrics, grace).await?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {},
            _ = interrupt.recv() => {},
        }
    };
    server.run(stop).await?;
    Ok(ExitCode::SUCCESS)
}
