//! `volumectl demo`: a database volume's whole life on the local backend, through the real driver and kernel.

mod data;
mod driver;
mod steps;
mod volumes;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use provisioners::ExitCode;
use serde_json::{Value, json};

use crate::output::{self, Column, Format, Show};
use driver::Driver;
use volumes::Volumes;

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The csi-driver program (default: beside volumectl, else on PATH).
    #[arg(long, value_name = "FILE")]
    driver: Option<PathBuf>,
    /// Where the demo may work (default: a new temporary directory, removed at the end).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How much the database writes first, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 300, value_parser = clap::value_parser!(u64).range(8..=800))]
    write: u64,
}

/// The table of what was done.
#[derive(Debug, Default)]
pub(crate) struct Rows(Vec<Value>);

impl Rows {
    fn add(&mut self, step: &str, time: Duration, remark: impl Into<String>) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.0.push(json!({ "step": step, "ms": ms, "remark": remark.into() }));
    }
}

const COLUMNS: &[Column] = &[
    Column("STEP", "/step", Show::Plain),
    Column("MS", "/ms", Show::Plain),
    Column("REMARK", "/remark", Show::Plain),
];

/// Runs the demo; whatever happens, what it made is taken back.
pub async fn run(args: &DemoArgs, format: Format) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo attaches loop devices and mounts file systems: run it as root (sudo volumectl demo)");
    }
    let temporary =
        tempfile::Builder::new().prefix("volumectl-demo-").tempdir().context("making a directory")?;
    let dir = args.dir.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let mut rows = Rows::default();
    let mut driver = Driver::start(args.driver.as_deref(), &dir, &mut rows).await?;
    let mut volumes = Volumes::new(driver.connect().await?, &dir);
    let done = tokio::select! {
        done = steps::run(&mut volumes, &mut rows, args.write) => done,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let back = volumes.take_back(&mut rows).await;
    let stopped = driver.stop(&mut rows);
    output::print(format, &Value::Array(rows.0), COLUMNS)?;
    for failed in [done, back, stopped] {
        failed.inspect_err(|_| anstream::eprintln!("the driver's log ends:\n{}", driver.log_tail()))?;
    }
    nothing_left(&dir)?;
    if matches!(format, Format::Table | Format::Wide) {
        anstream::println!("nothing was left behind: no volume, no mount, no loop device");
    }
    Ok(ExitCode::SUCCESS)
}

/// Looks at the kernel and the disk for anything of the demo.
fn nothing_left(dir: &std::path::Path) -> Result<()> {
    let below = format!("{}/", dir.display());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("reading mountinfo")?;
    if let Some(mount) = mounts.lines().find(|line| line.contains(&below)) {
        bail!("a mount was left: {mount}");
    }
    for entry in std::fs::read_dir("/sys/block").context("reading /sys/block")?.flatten() {
        let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if file.starts_with(&below) {
            bail!("a loop device was left: {} over {}", entry.file_name().to_string_lossy(), file.trim());
        }
    }
    let left = std::fs::read_dir(dir.join("volumes")).into_iter().flatten().flatten().map(|e| e.file_name());
    let left: Vec<_> = left.filter(|name| name != ".volumectl").collect();
    if !left.is_empty() {
        bail!("volumes were left in {}: {left:?}", dir.display());
    }
    // The configuration, the log and the backend's empty index.
    for name in ["volumes", "state", "kubelet"] {
        let path = dir.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    for name in ["driver.yaml", "driver.log"] {
        std::fs::remove_file(dir.join(name)).with_context(|| format!("removing {name}"))?;
    }
    Ok(())
}
