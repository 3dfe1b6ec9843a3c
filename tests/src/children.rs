//! Kills what a driver starts, at random moments.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::random::Random;

/// A thread that kills (SIGKILL) the children of a process, each with some probability and after a random time, until it
/// is stopped.
pub struct Killer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Killer {
    /// Starts to kill the children of process `parent`, each after less than `within`.
    pub fn start(parent: u32, mut random: Random, within: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let kill = move || {
            let (mut seen, mut killed) = (Vec::new(), 0);
            while !stopped.load(Ordering::Relaxed) {
                for child in children(parent) {
                    if seen.contains(&child) {
                        continue;
                    }
                    seen.push(child);
                    if random.below(4) == 0 {
                        continue;
                    }
                    let most = usize::try_from(within.as_micros()).unwrap_or(usize::MAX);
                    std::thread::sleep(Duration::from_micros(u64::try_from(random.below(most)).unwrap_or(0)));
                    // It may have ended, and its number may be another's by now.
                    if children(parent).contains(&child) && kill_process(child, Signal::KILL).is_ok() {
                        killed += 1;
                    }
                }
                std::thread::sleep(Duration::from_micros(200));
            }
            killed
        };
        Self { stop, thread: Some(std::thread::spawn(kill)) }
    }

    /// Stops; how many were killed.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or(0))
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The children of a process and theirs (proc(5), `/proc/PID/task/TID/children`).
pub fn children(parent: u32) -> Vec<Pid> {
    let (mut found, mut left) = (Vec::new(), vec![parent]);
    while let Some(next) = left.pop() {
        for task in fs::read_dir(format!("/proc/{next}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for number in text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()) {
                found.extend(Pid::from_raw(number));
                left.extend(u32::try_from(number));
            }
        }
    }
    found
}
