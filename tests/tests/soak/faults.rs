//! The plan of faults, which follows from the seed.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::children::Killer;
use e2e::control;
use e2e::random::Random;
use tokio::runtime::Handle;

use crate::report::Report;
use crate::world::World;

/// A fault: how it begins and how it ends.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The server is killed and started again.
    Kill(Server),
    /// It is stopped for some seconds.
    Stop(Server),
    /// It is stopped for a moment again and again.
    Slow(Server),
    /// Its network is cut for some seconds.
    CutNfs,
    /// There is no room.
    FillNfs,
    FillLocal,
    FillRbd,
    /// A quota.
    FillCinder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Nfs,
    Osd(u32),
    Mon,
    Keystone,
    Cinder,
    Nova,
}

/// More volumes than there will be.
pub const NO_QUOTA: i64 = 5000;

/// Nova cannot go on with what it was at when it is killed, so it is only stopped and slowed.
const FAULTS: [Fault; 19] = [
    Fault::Kill(Server::Nfs),
    Fault::Kill(Server::Osd(0)),
    Fault::Kill(Server::Osd(1)),
    Fault::Kill(Server::Mon),
    Fault::Kill(Server::Keystone),
    Fault::Kill(Server::Cinder),
    Fault::Stop(Server::Nfs),
    Fault::Stop(Server::Osd(0)),
    Fault::Stop(Server::Mon),
    Fault::Stop(Server::Cinder),
    Fault::Stop(Server::Nova),
    Fault::Slow(Server::Nfs),
    Fault::Slow(Server::Osd(1)),
    Fault::Slow(Server::Cinder),
    Fault::CutNfs,
    Fault::FillNfs,
    Fault::FillLocal,
    Fault::FillRbd,
    Fault::FillCinder,
];

impl World {
    /// A command to the script that runs a server, with the server's name in it where the script runs several.
    fn tell(&self, server: Server, verb: &str, argument: &str) -> Result<()> {
        let command = |name: &str| format!("{verb} {name} {argument}").trim().to_owned();
        match server {
            Server::Nfs => self.nfs.tell(&command("")),
            Server::Osd(number) => self.ceph.tell(&command(&format!("osd.{number}"))),
            Server::Mon => self.ceph.tell(&command("mon.a")),
            Server::Keystone => self.cloud.tell(&command("keystone")),
            Server::Cinder => self.cloud.tell(&command("cinder")),
            Server::Nova => self.cloud.tell(&command("nova")),
        }
    }

    fn signal(&self, server: Server, signal: &str) -> Result<()> {
        self.tell(server, "signal", signal)
    }

    /// Ceph has seen the end of a fault.
    fn settle(&self, server: Server) -> Result<()> {
        match server {
            Server::Osd(_) | Server::Mon => self.ceph.tell("healthy"),
            _ => Ok(()),
        }
    }

    fn fill_local(&self) -> Result<()> {
        let root = self.scratch.path().join("volumes");
        let fs = rustix::fs::statvfs(&root)?;
        let file = std::fs::File::create(Self::filling(&root))?;
        // A little less than all, which others may have taken meanwhile.
        let bytes = (fs.f_bavail * fs.f_frsize).saturating_sub(8 << 20);
        let _ = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1));
        Ok(())
    }

    /// On the machine below; the end of the room is no failure.
    fn fill_nfs(&self) -> Result<()> {
        let file = format!("of={}", Self::filling(&self.share));
        control::run(&["dd", "if=/dev/zero", &file, "bs=1M", "count=2000"], &[]).map(drop)
    }

    fn inflict(&self, fault: Fault, hold: Duration) -> Result<()> {
        let wait = || std::thread::sleep(hold);
        match fault {
            Fault::Kill(server) => {
                self.signal(server, "KILL")?;
                wait();
                self.tell(server, "start", "")?;
                self.settle(server)
            }
            Fault::Stop(server) => {
                self.signal(server, "STOP")?;
                wait();
                self.signal(server, "CONT")?;
                self.settle(server)
            }
            Fault::Slow(server) => {
                let begun = Instant::now();
                while begun.elapsed() < hold {
                    self.signal(server, "STOP")?;
                    std::thread::sleep(Duration::from_millis(200));
                    self.signal(server, "CONT")?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            }
            Fault::CutNfs => {
                self.nfs.tell("cut")?;
                wait();
                self.nfs.tell("mend")
            }
            Fault::FillNfs => {
                self.fill_nfs()?;
                wait();
                control::run(&["rm", "-f", &Self::filling(&self.share)], &[]).map(drop)
            }
            Fault::FillLocal => {
                self.fill_local()?;
                wait();
                Ok(std::fs::remove_file(Self::filling(&self.scratch.path().join("volumes")))?)
            }
            Fault::FillRbd => {
                let quota = |objects| {
                    self.ceph.run("ceph", &["osd", "pool", "set-quota", "rbd", "max_objects", objects])
                };
                quota("1")?;
                wait();
                quota("0").map(drop)
            }
            Fault::FillCinder => {
                let runtime = Handle::current();
                runtime.block_on(self.cloud.fill_quota())?;
                wait();
                runtime.block_on(self.cloud.set_quota(NO_QUOTA))
            }
        }
    }
}

impl Fault {
    /// Whose server or room it is about.
    fn backend(self) -> &'static str {
        match self {
            Self::Kill(it) | Self::Stop(it) | Self::Slow(it) => match it {
                Server::Nfs => "nfs",
                Server::Osd(_) | Server::Mon => "rbd",
                Server::Keystone | Server::Cinder | Server::Nova => "cinder",
            },
            Self::CutNfs | Self::FillNfs => "nfs",
            Self::FillLocal => "local",
            Self::FillRbd => "rbd",
            Self::FillCinder => "cinder",
        }
    }

    fn name(self) -> String {
        let server = |server: Server| format!("{server:?}").to_lowercase();
        match self {
            Self::Kill(it) => format!("kill {}", server(it)),
            Self::Stop(it) => format!("stop {}", server(it)),
            Self::Slow(it) => format!("slow {}", server(it)),
            Self::CutNfs => "cut nfs".into(),
            Self::FillNfs => "fill nfs".into(),
            Self::FillLocal => "fill local".into(),
            Self::FillRbd => "fill rbd".into(),
            Self::FillCinder => "fill cinder".into(),
        }
    }
}

fn milliseconds(random: &mut Random, from: usize, to: usize) -> Duration {
    Duration::from_millis(u64::try_from(from + random.below(to - from)).unwrap_or(1000))
}

/// What harms, until when, and by which random numbers.
pub struct Harm {
    world: Arc<World>,
    report: Arc<Report>,
    random: Random,
    end: Instant,
}

impl Harm {
    pub fn new(world: &Arc<World>, report: &Arc<Report>, seed: u64, end: Instant) -> Self {
        Self { world: world.clone(), report: report.clone(), random: Random::new(seed), end }
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end && !self.world.is_stopped()
    }

    /// One fault after the other, with a little peace in between.
    pub async fn harm_servers(mut self) -> Result<()> {
        let possible = |it: &Fault| crate::chosen().any(|(_, backend)| backend == it.backend());
        let faults: Vec<_> = FAULTS.into_iter().filter(possible).collect();
        while self.goes_on() {
            let fault = faults[self.random.below(faults.len())];
            let hold = milliseconds(&mut self.random, 500, 7000);
            let peace = milliseconds(&mut self.random, 500, 4000);
            self.report.fault(&fault.name());
            let it = self.world.clone();
            let work = move || {
                // Without Keystone Cinder cannot tell Nova of a growth, and does not try again.
                let at_rest = matches!(fault, Fault::Kill(Server::Cinder | Server::Keystone));
                let drained = at_rest.then(|| it.cinder.blocking_write());
                if at_rest && !Handle::current().block_on(it.cinder_is_at_rest())? {
                    return Ok(());
                }
                let _alone = it.servers.lock().unwrap_or_else(PoisonError::into_inner);
                let done = it.inflict(fault, hold);
                drop(drained);
                done
            };
            tokio::task::spawn_blocking(work).await??;
            tokio::time::sleep(peace).await;
        }
        Ok(())
    }

    /// SIGKILL to what the driver starts, again and again.
    pub async fn harm_children(mut self) -> Result<()> {
        while self.goes_on() {
            tokio::time::sleep(milliseconds(&mut self.random, 3000, 10000)).await;
            let world = self.world.clone();
            // A mkfs that is killed each time that it runs is no fault of the driver's.
            let _alone = world.lives.write().await;
            let (pid, random) = (self.world.pid(), Random::new(self.random.next()));
            let killer = Killer::start(pid, random, Duration::from_millis(50));
            tokio::time::sleep(milliseconds(&mut self.random, 500, 3000)).await;
            if killer.stop() > 0 {
                self.report.fault("kill children");
            }
        }
        Ok(())
    }

    /// SIGKILL to the driver, or a successor beside it, again and again, and how much memory it had.
    pub async fn harm_drivers(mut self) -> Result<()> {
        while self.goes_on() {
            tokio::time::sleep(milliseconds(&mut self.random, 3000, 15000)).await;
            let world = self.world.clone();
            let _alone = world.lives.write().await;
            self.report.life(peak(&self.world.pid().to_string())?);
            let (it, kill) = (self.world.clone(), self.random.below(3) > 0);
            self.report.fault(if kill { "kill driver" } else { "replace driver" });
            tokio::task::spawn_blocking(move || if kill { it.restart() } else { it.hand_over() }).await??;
        }
        Ok(())
    }
}

/// The largest resident size of a process so far, in KiB (proc_pid_status(5), `VmHWM`).
fn peak(pid: &str) -> Result<u64> {
    let status = std::fs::read_to_string(PathBuf::from("/proc").join(pid).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    ensure!(peak > 0, "the driver has ended by itself");
    Ok(peak)
}
