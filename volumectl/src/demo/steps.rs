//! The story: a database's volume, its snapshot, its growth, its restore and its clone.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Rows;
use super::data::{self, Sums};
use super::volumes::Volumes;
use crate::csi::args;
use crate::quantity::human;

const GIB: i64 = 1 << 30;

/// What the database has written.
struct Database {
    id: String,
    path: std::path::PathBuf,
    at_snapshot: Sums,
    now: Sums,
}

pub(super) async fn run(volumes: &mut Volumes, rows: &mut Rows, mib: u64) -> Result<()> {
    let mut db = create(volumes, rows, mib).await?;
    let snapshot = snapshot(volumes, rows, &mut db, mib).await?;
    expand(volumes, rows, &db).await?;
    restore(volumes, rows, &db, &snapshot).await?;
    clone(volumes, rows, &db).await
}

async fn create(volumes: &mut Volumes, rows: &mut Rows, mib: u64) -> Result<Database> {
    let begun = Instant::now();
    let id = volumes.create("postgresql", GIB, None).await.context("creating the volume")?;
    rows.add("create 1 GiB", begun.elapsed(), format!("{id}, named shop-postgresql by nameTemplate"));
    let begun = Instant::now();
    let path = volumes.mount(&id).await.context("mounting the volume")?;
    rows.add("attach, format, mount", begun.elapsed(), "xfs");
    let begun = Instant::now();
    let sums = blocking({
        let path = path.clone();
        move || data::write(&path, "table", mib)
    })
    .await?;
    rows.add("write", begun.elapsed(), rate(mib, begun.elapsed(), sums.len()));
    Ok(Database { id, path, at_snapshot: sums.clone(), now: sums })
}

async fn snapshot(volumes: &mut Volumes, rows: &mut Rows, db: &mut Database, mib: u64) -> Result<String> {
    let begun = Instant::now();
    let id = volumes.snapshot(&db.id, "before-the-upgrade").await.context("taking a snapshot")?;
    rows.add("snapshot while mounted", begun.elapsed(), id.clone());
    let (begun, path, more) = (Instant::now(), db.path.clone(), mib / 3);
    let (added, changed) = blocking(move || {
        let added = data::write(&path, "upgrade", more)?;
        Ok((added, data::overwrite(&path.join("table-0"))?))
    })
    .await?;
    db.now.extend(added);
    db.now.insert("table-0".into(), changed);
    rows.add("keep writing", begun.elapsed(), format!("{more} MiB more, one file changed"));
    Ok(id)
}

async fn expand(volumes: &Volumes, rows: &mut Rows, db: &Database) -> Result<()> {
    let begun = Instant::now();
    let (before, after) =
        volumes.expand(&db.id, &db.path, 2 * GIB).await.context("expanding the mounted volume")?;
    if after <= before {
        bail!("the file system did not grow: {before} bytes before, {after} after");
    }
    let text = |bytes: u64| human(i64::try_from(bytes).unwrap_or(i64::MAX));
    rows.add(
        "expand to 2 GiB while mounted",
        begun.elapsed(),
        format!("df: {} to {}", text(before), text(after)),
    );
    Ok(())
}

async fn restore(volumes: &mut Volumes, rows: &mut Rows, db: &Database, snapshot: &str) -> Result<()> {
    let begun = Instant::now();
    let source = args::source(Some(snapshot.to_owned()), None);
    let id = volumes.create("postgresql-restored", GIB, source).await.context("restoring the snapshot")?;
    let path = volumes.mount(&id).await.context("mounting the restored volume")?;
    rows.add("restore the snapshot, mount", begun.elapsed(), id);
    check(rows, "verify the restored data", &path, &db.at_snapshot).await?;
    check(rows, "verify the live data", &db.path, &db.now).await
}

async fn clone(volumes: &mut Volumes, rows: &mut Rows, db: &Database) -> Result<()> {
    let begun = Instant::now();
    let source = args::source(None, Some(db.id.clone()));
    let id = volumes.create("postgresql-clone", 2 * GIB, source).await.context("cloning the volume")?;
    let path = volumes.mount(&id).await.context("mounting the clone")?;
    rows.add("clone the live volume, mount", begun.elapsed(), id);
    check(rows, "verify the clone", &path, &db.now).await
}

async fn check(rows: &mut Rows, step: &str, path: &Path, sums: &Sums) -> Result<()> {
    let (begun, path, expected) = (Instant::now(), path.to_owned(), sums.clone());
    blocking(move || data::verify(&path, &expected)).await.with_context(|| step.to_owned())?;
    rows.add(step, begun.elapsed(), format!("{} files, SHA-256 equal", sums.len()));
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("the work ended early")?
}

fn rate(mib: u64, time: Duration, files: usize) -> String {
    // Numbers of MiB are small.
    #[allow(clippy::cast_precision_loss)]
    let per_second = mib as f64 / time.as_secs_f64().max(0.001);
    format!("{mib} MiB in {files} files, {per_second:.0} MiB/s with checksums, synced")
}
