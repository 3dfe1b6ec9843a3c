//! Snapshots, restores and clones: all that makes a file what it is, complete or absent, of one moment.

use std::ffi::OsStr;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};

use crate::world::{VERSIONS, World, from_snapshot, from_volume, portrait};

fn age(path: &Path, seconds: i64) -> Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_000 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// A database's directory as PostgreSQL wants it (0700, its own user), with all that a file system has.
fn fill(dir: &Path) -> Result<()> {
    let base = dir.join("pgdata");
    fs::create_dir_all(base.join("base/1"))?;
    fs::create_dir_all(base.join("pg_wal/archive_status"))?;
    fs::write(base.join("PG_VERSION"), "15\n")?;
    fs::write(base.join("base/1/1259"), vec![7; 300_000])?;
    fs::write(base.join("empty"), "")?;
    fs::hard_link(base.join("base/1/1259"), base.join("second name"))?;
    symlink("../pg_wal", base.join("base/link"))?;
    symlink("dangling/nowhere", base.join("broken"))?;
    mknodat(CWD, base.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
    fs::write(base.join(OsStr::from_bytes(b"not utf-8 \xff\xfe")), "bytes")?;
    fs::write(base.join("setuid"), "#!/bin/sh\n")?;
    fs::set_permissions(base.join("setuid"), fs::Permissions::from_mode(0o4755))?;
    let mut sparse = fs::File::create(base.join("sparse"))?;
    sparse.write_all(b"head")?;
    sparse.seek(SeekFrom::Start(40 << 20))?;
    sparse.write_all(b"middle")?;
    sparse.set_len(48 << 20)?;
    for (path, uid) in
        [(&base, 26), (&base.join("base"), 26), (&base.join("base/1/1259"), 999), (&base.join("broken"), 26)]
    {
        std::os::unix::fs::lchown(path, Some(uid), Some(uid + 1))?;
    }
    chown(base.join("setuid"), Some(0), Some(0))?;
    fs::set_permissions(base.join("setuid"), fs::Permissions::from_mode(0o4755))?;
    fs::set_permissions(&base, fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(base.join("base"), fs::Permissions::from_mode(0o2750))?;
    for (i, path) in
        ["pgdata/PG_VERSION", "pgdata/base/1/1259", "pgdata/broken", "pgdata/base/1", "pgdata/base", "pgdata"]
            .iter()
            .enumerate()
    {
        age(&dir.join(path), 1_000_000_000 + i64::try_from(i)? * 1000)?;
    }
    Ok(())
}

/// D19: a restored PGDATA is the one that was saved: owners, modes, times, links of both kinds, holes, odd names.
#[tokio::test(flavor = "multi_thread")]
async fn d19_a_restored_database_directory_is_the_one_that_was_saved() -> Result<()> {
    for version in VERSIONS {
        let Some(w) = World::new("d19", version).await? else { return Ok(()) };
        let id = w.make("db").await?;
        fill(&w.dir.join("db"))?;
        fs::set_permissions(w.dir.join("db"), fs::Permissions::from_mode(0o1770))?;
        World::settle().await;
        let saved = portrait(&w.dir.join("db"))?;
        let snapshot = w.snapshot(&id, "saved").await?;
        fs::remove_dir_all(w.dir.join("db/pgdata"))?;
        w.copy("restored", from_snapshot(&snapshot.snapshot_id)).await?;
        let restored = w.dir.join("restored");
        ensure!(portrait(&restored)? == saved, "{version}: {:#?}\n{:#?}", portrait(&restored)?, saved);
        ensure!(fs::metadata(&restored)?.mode() & 0o7777 == 0o1770, "the directory itself");
        let sparse = fs::metadata(restored.join("pgdata/sparse"))?;
        ensure!(
            sparse.blocks() * 512 < 4 << 20,
            "{version}: the holes were filled: {} bytes",
            sparse.blocks() * 512
        );
        let clone = w.copy("clone", from_volume("main:restored")).await?;
        ensure!(portrait(&w.dir.join("clone"))? == saved, "{version}: the clone differs");
        for id in [&clone, "main:restored", &id] {
            w.delete(id).await?;
        }
        w.delete_snapshot(&snapshot.snapshot_id).await?;
        w.until_clean().await?;
    }
    Ok(())
}

/// Extended attributes go along where the protocol has them (RFC 8276: version 4.2) and the server does.
#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes_go_along_where_the_protocol_has_them() -> Result<()> {
    let backing = e2e::scratch::Scratch::new()?;
    if !e2e::nfs::Nfs::possible("xattrs") {
        return Ok(());
    }
    // Memory has no extended attributes of users; a disk has.
    let server = e2e::nfs::Nfs::start("3,4", &["no_root_squash", &backing.path().display().to_string()])?;
    let w = World::on(&server, "xattrs", ", nfsVersion: \"4.2\"").await?;
    let id = w.make("source").await?;
    let file = w.dir.join("source/file");
    fs::write(&file, "x")?;
    rustix::fs::setxattr(&file, "user.origin", b"here", rustix::fs::XattrFlags::empty())?;
    w.copy("copy", from_volume(&id)).await?;
    let mut value = [0; 16];
    match rustix::fs::getxattr(w.dir.join("copy/file"), "user.origin", &mut value) {
        Ok(length) => ensure!(&value[..length] == b"here"),
        Err(rustix::io::Errno::NODATA) => {
            e2e::skip("xattrs", "this server does not offer extended attributes (RFC 8276)");
        }
        Err(errno) => return Err(errno.into()),
    }
    Ok(())
}

/// D7: the same snapshot, with the same time and size, however often it is asked for; what is half made is not seen.
#[tokio::test(flavor = "multi_thread")]
async fn d7_a_snapshot_keeps_its_time_and_its_content() -> Result<()> {
    let Some(mut w) = World::new("d7", "4.1").await? else { return Ok(()) };
    let id = w.make("source").await?;
    fs::write(w.dir.join("source/file"), "before")?;
    let first = w.snapshot(&id, "snap").await?;
    fs::write(w.dir.join("source/file"), "after")?;
    w.restart().await?;
    let again = w.snapshot(&id, "snap").await?;
    ensure!(first == again, "{first:?} {again:?}");
    w.copy("restored", from_snapshot(&first.snapshot_id)).await?;
    ensure!(fs::read_to_string(w.dir.join("restored/file"))? == "before");
    w.delete(&id).await?;
    w.copy("later", from_snapshot(&first.snapshot_id)).await?;
    ensure!(fs::read_to_string(w.dir.join("later/file"))? == "before", "it outlives its volume");
    Ok(())
}

/// D20, D21: what an interrupted restore has left does not get in the way of the next try.
#[tokio::test(flavor = "multi_thread")]
async fn d20_d21_a_half_made_copy_is_thrown_away() -> Result<()> {
    let Some(w) = World::new("d20", "3").await? else { return Ok(()) };
    let id = w.make("source").await?;
    fill(&w.dir.join("source"))?;
    let saved = portrait(&w.dir.join("source"))?;
    // A copy whose process is gone: nobody marks it as alive any more.
    let half = w.own("tmp").join("0123456789abcdef01234567");
    fs::create_dir(&half)?;
    symlink("x", half.join("broken"))?;
    age(&half, 1_000_000_000)?;
    w.copy("copy", from_volume(&id)).await?;
    ensure!(portrait(&w.dir.join("copy"))? == saved);
    w.until_clean().await?;
    Ok(())
}

/// A source that is written to while it is copied gives a copy of one moment, or none; or any, where that is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_all_the_time_is_refused_unless_accepted() -> Result<()> {
    let Some(w) = World::new("changing", "4.1").await? else { return Ok(()) };
    let id = w.make("source").await?;
    let dir = w.dir.join("source");
    for i in 0..200 {
        fs::write(dir.join(format!("file-{i}")), "content")?;
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (stop, file) = (stop.clone(), dir.join("log"));
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = fs::write(&file, "again");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        })
    };
    let refused = w.snapshot(&id, "moving").await;
    let mut request = World::request("accepted", &[("ifChanging", "accept")]);
    request.volume_content_source = Some(from_volume(&id));
    let accepted = w.create(request).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().ok().context("the writer")?;
    let refused = refused.err().context("a snapshot of a source that changes")?;
    ensure!(
        refused.code() == tonic::Code::FailedPrecondition && refused.message().contains("log"),
        "{refused}"
    );
    accepted?;
    w.until_clean().await?;
    w.snapshot(&id, "moving").await?;
    Ok(())
}

/// D6: no room is an error, and what was copied so far is no snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn d6_a_full_server_makes_no_snapshot() -> Result<()> {
    if !e2e::nfs::Nfs::possible("d6") {
        return Ok(());
    }
    let server = e2e::nfs::Nfs::start("3,4", &[])?;
    for version in ["3", "4.2"] {
        let w = World::on(&server, "d6", &format!(", nfsVersion: \"{version}\"")).await?;
        let id = w.make("source").await?;
        // 300 of the 512 MiB: there is no room for a second copy.
        fs::write(w.dir.join("source/large"), vec![1; 300 << 20])?;
        let error = w.snapshot(&id, "full").await.err().context("no room")?;
        ensure!(error.code() == tonic::Code::ResourceExhausted, "{error}");
        ensure!(!w.own("snapshots/full").exists());
        w.until_clean().await?;
        fs::write(w.dir.join("source/large"), "small now")?;
        w.snapshot(&id, "full").await?;
        fs::remove_dir_all(&w.dir)?;
    }
    Ok(())
}

/// D22: a tree of any width and depth is copied and removed in little memory.
#[tokio::test(flavor = "multi_thread")]
async fn d22_wide_and_deep_trees_are_copied_and_removed() -> Result<()> {
    for version in ["3", "4.1"] {
        let Some(w) = World::new("d22", version).await? else { return Ok(()) };
        let id = w.make("source").await?;
        let dir = w.dir.join("source");
        for i in 0..3000 {
            fs::write(dir.join(format!("{i:05}-{}", "x".repeat(60))), b"y")?;
        }
        let mut deep = dir.join("deep");
        for _ in 0..300 {
            deep.push("d");
        }
        fs::create_dir_all(&deep)?;
        fs::write(deep.join("bottom"), "here")?;
        let copy = w.copy("copy", from_volume(&id)).await?;
        ensure!(portrait(&w.dir.join("copy"))? == portrait(&dir)?);
        w.delete(&copy).await?;
        w.delete(&id).await?;
        ensure!(w.names()?.is_empty(), "gone in sight of the caller");
        w.until_clean().await?;
    }
    Ok(())
}

/// A large file is copied in parts, with its holes.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_copied_in_parts() -> Result<()> {
    for version in VERSIONS {
        let Some(w) = World::new("large", version).await? else { return Ok(()) };
        let id = w.make("source").await?;
        let content: Vec<u8> = (0..70_u32 << 18).flat_map(u32::to_le_bytes).collect();
        fs::write(w.dir.join("source/large"), &content)?;
        let copy = w.copy("copy", from_volume(&id)).await?;
        ensure!(fs::read(w.dir.join("copy/large"))? == content, "{version}");
        w.delete(&copy).await?;
        w.delete(&id).await?;
        w.until_clean().await?;
    }
    Ok(())
}
