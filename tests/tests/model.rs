//! Random sequences of RPCs with injected faults against a model of what CSI promises: nothing leaks, nothing is
//! doubled, a repeated call changes nothing, sizes are right. Runs without root: volumes are made, never mounted.

// Helpers of a test: what fails here stops it.
#![allow(clippy::unwrap_used)]

#[path = "model/beside.rs"]
mod beside;
#[path = "model/machine.rs"]
mod machine;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/system.rs"]
mod system;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use e2e::ceph::Ceph;
use e2e::nfs::Nfs;
use e2e::openstack::OpenStack;
use machine::{Bed, Machine};
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::{ReferenceStateMachine as _, StateMachineTest as _, prop_state_machine};
use reference::{Call, Model, Source, Step};
use system::Kind;

fn config(cases: u32) -> Config {
    Config {
        cases: std::env::var("MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    }
}

/// The local backend.
struct Local;

impl Bed for Local {
    fn kind() -> Kind {
        Kind::Local
    }
}

prop_state_machine! {
    #![proptest_config(config(48))]

    #[test]
    fn any_sequence_of_calls_keeps_the_promises(sequential 1..40 => Machine<Local>);
}

/// Controller calls beside a pod's life, on raw block devices and on file systems.
#[test]
fn a_controller_and_a_node_on_one_volume_leave_no_state_that_never_was() {
    if !e2e::is_root("model beside") {
        return;
    }
    let mut runner = TestRunner::new(Config { max_shrink_iters: 20, ..config(16) });
    let run = runner.run(&beside::rounds(), |(block, two, rounds)| {
        let mut shared = beside::Shared::new(block, two);
        rounds.iter().for_each(|round| shared.round(round));
        Ok(())
    });
    run.unwrap();
}

/// The rbd backend.
struct Rbd;

impl Bed for Rbd {
    fn kind() -> Kind {
        Kind::Rbd(Ceph::shared("model rbd").unwrap().unwrap())
    }
}

#[test]
fn any_sequence_of_calls_keeps_the_promises_on_a_ceph_cluster() {
    if Ceph::shared("model rbd").unwrap().is_some() {
        run::<Rbd>(40, |_| true);
    }
}

/// The nfs backend, by version 3.
struct Nfs3;

impl Bed for Nfs3 {
    fn kind() -> Kind {
        Kind::Nfs(Nfs::shared("model nfs").unwrap().unwrap(), "3")
    }
}

/// The nfs backend, by version 4.1.
struct Nfs41;

impl Bed for Nfs41 {
    fn kind() -> Kind {
        Kind::Nfs(Nfs::shared("model nfs").unwrap().unwrap(), "4.1")
    }
}

#[test]
fn any_sequence_of_calls_keeps_the_promises_on_an_nfs_server() {
    if Nfs::shared("model nfs").unwrap().is_some() {
        let attaches = |step: &Step| matches!(step.call, Call::Attach { .. } | Call::Detach { .. });
        run::<Nfs3>(24, |step| !attaches(step));
        run::<Nfs41>(24, |step| !attaches(step));
    }
}

/// The cinder backend.
struct Cinder;

impl Bed for Cinder {
    fn kind() -> Kind {
        Kind::Cinder(OpenStack::shared("model cinder").unwrap().unwrap())
    }
}

#[test]
fn any_sequence_of_calls_keeps_the_promises_on_openstack() {
    if OpenStack::shared("model cinder").unwrap().is_some() {
        run_tidied::<Cinder>(12, once_referred_to_never_made_again);
    }
}

/// A volume's handle is Cinder's, so what is made again by a name is another; the model knows only names. What a snapshot
/// or copy was made of is not made again.
fn once_referred_to_never_made_again(steps: &mut Vec<Step>) {
    let (mut volumes, mut snapshots) = (BTreeSet::new(), BTreeSet::new());
    let (mut gone_volumes, mut gone_snapshots) = (BTreeSet::new(), BTreeSet::new());
    steps.retain(|step| {
        match &step.call {
            Call::Create { name, .. } | Call::CreateFrom { name, .. }
                if volumes.contains(name) && gone_volumes.contains(name) =>
            {
                return false;
            }
            Call::Snapshot { name, .. } if snapshots.contains(name) && gone_snapshots.contains(name) => {
                return false;
            }
            _ => {}
        }
        let _new = match &step.call {
            Call::CreateFrom { source: Source::Volume(of), .. } | Call::Snapshot { of, .. } => {
                volumes.insert(*of)
            }
            Call::CreateFrom { source: Source::Snapshot(of), .. } => snapshots.insert(*of),
            Call::Delete { name } => gone_volumes.insert(*name),
            Call::DeleteSnapshot { name } => gone_snapshots.insert(*name),
            _ => false,
        };
        true
    });
}

/// Runs sequences of those steps that are wanted.
fn run<B: Bed>(cases: u32, wanted: impl Fn(&Step) -> bool) {
    run_tidied::<B>(cases, |steps| steps.retain(&wanted));
}

/// Runs sequences that were tidied.
fn run_tidied<B: Bed>(cases: u32, tidy: impl Fn(&mut Vec<Step>)) {
    let (config, begun, calls) = (config(cases), Instant::now(), AtomicUsize::new(0));
    let mut runner = TestRunner::new(config.clone());
    let run = runner.run(&Model::sequential_strategy(1..30), |(model, mut steps, seen)| {
        tidy(&mut steps);
        calls.fetch_add(steps.len(), Ordering::Relaxed);
        Machine::<B>::test_sequential(config.clone(), model, steps, seen);
        Ok(())
    });
    run.unwrap();
    println!("{} steps in {:.0} s", calls.into_inner(), begun.elapsed().as_secs_f64());
}
