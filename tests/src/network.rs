//! A network name space with a cable to this machine, that can be made a black hole.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

/// The name space and its cable; both are gone when this is dropped.
#[derive(Debug)]
pub struct Network {
    /// The name space, for `ip netns`, and the cable's end on this machine.
    pub name: String,
    /// The address of this machine in it.
    pub here: String,
    /// The address of what runs in the name space.
    pub there: String,
}

impl Network {
    /// A new one, on a subnet that nobody here uses.
    pub fn new() -> Result<Self> {
        let seed = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos() ^ std::process::id();
        let mut last = None;
        for attempt in 0..20 {
            let number = (seed / 7 + attempt * 37) % 250;
            let name = format!("vctl{number}");
            let (here, there) = (format!("10.251.{number}.1"), format!("10.251.{number}.2"));
            // Who makes the name space has its subnet.
            match ip(&format!("netns add {name}")) {
                Ok(_) => {
                    let it = Self { name, here, there };
                    it.connect()?;
                    return Ok(it);
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no try")?)
    }

    fn connect(&self) -> Result<()> {
        let Self { name, here, there } = self;
        for line in [
            format!("link add {name} type veth peer name c netns {name}"),
            format!("addr add {here}/24 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add {there}/24 dev c"),
            format!("-n {name} link set c up"),
            format!("-n {name} link set lo up"),
        ] {
            ip(&line)?;
        }
        // An address that does not answer any more would be reported as unreachable.
        let links: serde_json::Value = serde_json::from_str(&ip(&format!("-n {name} -j link show c"))?)?;
        let hardware = links[0]["address"].as_str().context("no hardware address")?;
        ip(&format!("neigh replace {there} lladdr {hardware} dev {name} nud permanent"))?;
        self.inside("sh", &["-c", "echo 1 >/proc/sys/net/ipv4/conf/all/rp_filter"])
    }

    fn inside(&self, program: &str, args: &[&str]) -> Result<()> {
        let status = self.command(program).args(args).status()?;
        ensure!(status.success(), "{}: {program} {args:?}: {status}", self.name);
        Ok(())
    }

    /// A program that will run in it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// Makes it a black hole: packets are dropped in both directions, and nobody is told.
    pub fn cut(&self) -> Result<()> {
        ip(&format!("-n {} rule add pref 1 blackhole", self.name)).map(drop)
    }

    /// Ends that.
    pub fn mend(&self) -> Result<()> {
        ip(&format!("-n {} rule del pref 1", self.name)).map(drop)
    }
}

fn ip(line: &str) -> Result<String> {
    let command: Vec<_> = std::iter::once("ip").chain(line.split(' ')).collect();
    crate::run(&command)
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.name));
        let _ = ip(&format!("netns del {}", self.name));
    }
}
