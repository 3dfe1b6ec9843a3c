//! What the end-to-end tests share: the driver in this process or as a process of its own, clients for its socket, a
//! scratch directory that is left clean also when a test fails, and the contract suite that every backend passes.

pub mod capabilities;
pub mod ceph;
pub mod children;
pub mod clients;
pub mod container;
pub mod contract;
pub mod control;
pub mod drivers;
pub mod fuzzing;
pub mod kubernetes;
pub mod network;
pub mod nfs;
pub mod openstack;
pub mod pages;
pub mod proxy;
pub mod random;
pub mod relay;
pub mod requests;
pub mod scratch;
pub mod script;

use std::io::Write as _;

/// Says why a test did not run: printed, and added to the file that `SKIP_LOG` names, so that the run can count it.
pub fn skip(test: &str, reason: &str) {
    let line = format!("skip: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("SKIP_LOG")
        && let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open(file)
    {
        let _ = log.write_all(line.as_bytes());
    }
}

/// Runs a program; its standard output. An exit other than 0 is an error that has what it said.
pub fn run(command: &[&str]) -> anyhow::Result<String> {
    let output = std::process::Command::new(command[0]).args(&command[1..]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// Whether this process may mount and attach loop devices; when not, the test is skipped.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "needs root for loop devices and mounts");
    }
    root
}

/// Whether a program is installed; when not, the test is skipped.
pub fn has_program(test: &str, program: &str) -> bool {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|dir| std::path::Path::new(dir).join(program).exists());
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// Whether the kernel lets this process grow a mounted ext4: that asks for CAP_SYS_RESOURCE (ext4 online resize,
/// `EXT4_IOC_RESIZE_FS`), which even root may lack.
pub fn can_grow_ext4_online() -> Result<(), String> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective =
        status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    match effective.map(|caps| caps >> CAP_SYS_RESOURCE & 1) {
        Some(1) => Ok(()),
        _ => Err("this process lacks CAP_SYS_RESOURCE, so the kernel refuses to grow a mounted ext4".into()),
    }
}

/// Runs futures at once on this task.
pub async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
