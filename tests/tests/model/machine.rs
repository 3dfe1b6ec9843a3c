//! Drives the system and compares it with the model after every step.

use std::marker::PhantomData;

use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use tonic::Code;

use crate::reference::{Answer, Call, Fault, Model, Step};
use crate::system::{Kind, System};

/// Says which backend a test is for.
pub trait Bed {
    /// The backend.
    fn kind() -> Kind;
}

/// The test.
pub struct Machine<B> {
    bed: PhantomData<B>,
    system: System,
    /// The model before the step that is being applied.
    before: Model,
}

impl<B: Bed> StateMachineTest for Machine<B> {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        Self { bed: PhantomData, system: System::start(B::kind()), before: Model::default() }
    }

    fn apply(mut machine: Self, after: &Model, step: Step) -> Self {
        let expected = machine.before.clone().call(&step.call);
        if let Some(fault) = step.fault {
            machine.meet(fault, &step.call, expected);
        }
        machine.answer(&step.call, expected);
        machine.write_content(&step.call, after);
        machine.before = after.clone();
        machine.system.compare(after);
        machine
    }

    fn teardown(mut machine: Self, after: Model) {
        // Everything goes, and nothing is left behind.
        for name in 0..crate::reference::NAMES {
            let delete = [Call::Detach { name }, Call::Delete { name }, Call::DeleteSnapshot { name }];
            delete.iter().for_each(|call| assert_eq!(machine.system.call(call), Ok(())));
        }
        let mut empty = after;
        empty.volumes.clear();
        empty.snapshots.clear();
        machine.system.compare(&empty);
        machine.system.assert_no_files();
    }
}

impl<B> Machine<B> {
    /// The call meets a fault. It may still be done, or answer what it would without the fault; it never does half.
    fn meet(&mut self, fault: Fault, call: &Call, expected: Answer) {
        let answer = match fault {
            Fault::FailsAt(n) => self.system.failing_at(n, call),
            Fault::CallerLeaves(after) => {
                self.system.caller_leaves(after, call);
                return;
            }
        };
        match answer {
            Err(Code::Unavailable) | Ok(()) => {}
            Err(code) => assert_eq!(Some(code), code_of(expected), "{call:?} with {fault:?}"),
        }
    }

    /// The call, repeated as a sidecar would, answers what the model says; once more, the same.
    fn answer(&mut self, call: &Call, expected: Answer) {
        for round in 0..2 {
            let answer = self.system.call(call);
            assert_eq!(answer.err(), code_of(expected), "{call:?}, round {round}");
        }
    }

    /// A new volume made from nothing gets content of its own, to be found again in its snapshots and clones.
    fn write_content(&mut self, call: &Call, after: &Model) {
        if let Call::Create { name, .. } = call
            && let Some(volume) = after.volumes.get(name)
            && !self.before.volumes.contains_key(name)
        {
            self.system.write(*name, volume);
        }
    }
}

fn code_of(answer: Answer) -> Option<Code> {
    match answer {
        Answer::Done => None,
        Answer::AlreadyExists => Some(Code::AlreadyExists),
        Answer::NotFound => Some(Code::NotFound),
        Answer::Refused => Some(Code::FailedPrecondition),
    }
}

#[test]
fn the_model_itself_is_idempotent() {
    let mut model = Model::default();
    let create = Call::Create { name: 0, mib: 2, directory: false };
    assert_eq!(model.call(&create), Answer::Done);
    let once = model.volumes.clone();
    assert_eq!(Model::apply(model, &Step { call: create, fault: None }).volumes, once);
}
