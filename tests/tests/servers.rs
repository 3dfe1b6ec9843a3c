//! The scripts of `tests/servers` themselves - side by side, and killed - and what is written of the tests.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::nfs::Nfs;
use e2e::scratch::Scratch;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a process namespace of its own the script has the process id 1, as every other one there.
#[test]
fn nfs_servers_of_one_process_id_have_networks_of_their_own() -> Result<()> {
    let test = "nfs_servers_of_one_process_id_have_networks_of_their_own";
    if !Nfs::possible(test) {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let mut running = Vec::new();
    for name in ["one", "two"] {
        let mut child = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(here("servers/nfs/run"))
            .arg(scratch.path().join(name))
            .arg("4")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        running.push(child);
        ensure!(line.starts_with("ready "), "the server {name} did not start: {line}");
    }
    for mut child in running {
        drop(child.stdin.take());
        child.wait()?;
    }
    Ok(())
}

/// SIGKILL of the script ends the guest, its servers and their network, and somebody removes what they had.
#[test]
fn a_guest_that_is_killed_leaves_nothing() -> Result<()> {
    let test = "a_guest_that_is_killed_leaves_nothing";
    if !e2e::is_root(test) || e2e::control::is_guest() {
        return Ok(());
    }
    if !here("../target/tools/kernel/stamp").exists() || !Path::new("/dev/net/tun").exists() {
        e2e::skip(test, "no guest is installed in target/tools/kernel, or there is no /dev/net/tun");
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let names = || -> Vec<_> {
        let entries = fs::read_dir(scratch.path()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let spaces = || fs::read_dir("/run/netns").map_or(0, Iterator::count);
    let before = spaces();
    let mut guest = Killed(
        Command::new(here("servers/kernel/run"))
            .args(["sleep", "600"])
            .env("TMPDIR", scratch.path())
            .env("GUEST_MEMORY", "512")
            .env_remove("KEEP_SCRATCH")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !holds() {
            ensure!(
                begun.elapsed() < Duration::from_secs(120),
                "not within two minutes: {what}; {:?}",
                names()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    };
    until("the guest begins", &|| names().iter().any(|dir| dir.join("a.qmp").exists()))?;
    guest.0.kill()?;
    guest.0.wait()?;
    until("its directory is gone", &|| names().is_empty())?;
    ensure!(spaces() <= before, "a network namespace was left: {} before, {} after", before, spaces());
    Ok(())
}

/// A guest does not see what is below /tmp: that is refused, not passed over.
#[test]
fn what_is_below_tmp_is_not_run_in_a_guest() -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("volumectl-below-").tempdir_in("/tmp")?;
    let copy = |from: &str| -> Result<PathBuf> {
        let to = scratch.path().join(from);
        fs::create_dir_all(to.parent().context("no parent")?)?;
        fs::copy(here("..").join(from), &to)?;
        Ok(to)
    };
    let program = copy("scripts/test-kernel")?;
    for (command, arguments) in [
        (program.clone(), &[][..]),
        (copy("tests/servers/kernel/run")?, &["/bin/true"][..]),
        (here("servers/kernel/run"), &[program.to_str().context("not text")?][..]),
    ] {
        let output = Command::new(&command).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "{command:?}: {:?}: {said}", output.status);
        ensure!(said.contains("below /tmp") && said.contains("elsewhere"), "{command:?}: {said}");
    }
    Ok(())
}

/// The sources of all tests.
fn sources(dir: &Path) -> Result<String> {
    let mut text = String::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            text += &sources(&path)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            text += &fs::read_to_string(&path)?;
        }
    }
    Ok(text)
}

/// docs/conformance.md: 96 specs, each with tests that exist.
#[test]
fn each_spec_of_csi_sanity_names_a_test_that_exists() -> Result<()> {
    let documented = fs::read_to_string(here("../docs/conformance.md"))?;
    let rows: Vec<Vec<&str>> = documented
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    ensure!(rows.len() == 96, "{} specs", rows.len());
    let sources = sources(&here("src"))? + &sources(&here("tests"))?;
    let suite = fs::read_to_string(here("src/contract/mod.rs"))?;
    for row in rows {
        let [_, spec, tests] = row[..] else { anyhow::bail!("not three cells: {row:?}") };
        for test in tests.split(", ").map(|name| name.trim_matches('`')) {
            let defined = format!("fn {test}(");
            ensure!(sources.contains(&defined), "{spec}: there is no test {test}");
            // A case of the contract that is not in the suite is never run.
            let of_contract = sources.contains(&format!("pub async {defined}s: &Subject"));
            ensure!(!of_contract || suite.contains(test), "{spec}: {test} is not in the contract suite");
        }
    }
    Ok(())
}
