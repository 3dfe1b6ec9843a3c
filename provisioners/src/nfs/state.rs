//! What is known of a share as a whole: whether there is one, and what was wrong with it last.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::client::Outcome;
use super::errors::failed;
use super::pool::lock;
use super::share::Share;
use crate::parts::Asked;
use crate::{Error, Result};

/// For how long a share that was found dead is not tried by what can do without it.
const DOWN: Duration = Duration::from_secs(10);

/// What is known of a share's server.
#[derive(Default)]
pub(super) struct State {
    /// It has answered once.
    answered: AtomicBool,
    /// It was noted for the processes to come.
    noted: AtomicBool,
    /// Whether it can be used, when it was asked that.
    pub(super) asked: Asked,
    /// What was wrong at the last call, and when.
    problem: Mutex<Option<(Instant, Error)>>,
}

impl Share {
    /// Whether it is more than a name that somebody has given.
    pub(super) fn is_known(&self) -> bool {
        self.configured || self.state.answered.load(Ordering::Acquire)
    }

    /// Whether it has answered and is yet to be noted for the processes to come; not asked twice.
    pub(super) fn begin_note(&self) -> bool {
        self.state.answered.load(Ordering::Acquire) && !self.state.noted.swap(true, Ordering::AcqRel)
    }

    /// The note was not made.
    pub(super) fn note_again(&self) {
        self.state.noted.store(false, Ordering::Release);
    }

    /// A process before this one has found it to exist.
    pub(super) fn take_for_known(&self) {
        self.state.answered.store(true, Ordering::Release);
    }

    /// What was wrong when it was used last.
    pub(super) fn problem(&self) -> Option<Error> {
        lock(&self.state.problem).as_ref().map(|(_, error)| error.clone())
    }

    /// Whether it was found dead a moment ago, so that it need not be tried at once again.
    pub(super) fn is_down(&self) -> Option<Error> {
        let problem = lock(&self.state.problem);
        problem.as_ref().filter(|(at, _)| at.elapsed() < DOWN).map(|(_, error)| error.clone())
    }

    /// Keeps why it cannot be used.
    pub(super) fn note_use(&self, answer: &Result<()>) {
        *lock(&self.state.problem) = answer.as_ref().err().map(|error| (Instant::now(), error.clone()));
    }

    /// Keeps how a call went that says something of the share as a whole.
    pub(super) fn note<T>(&self, outcome: &Outcome<T>) {
        let mut problem = lock(&self.state.problem);
        match outcome {
            Ok(_) => *problem = None,
            Err(fault) if fault.is_of_share() => {
                let error = failed("using the share", &self.place(), fault);
                *problem = Some((Instant::now(), error));
            }
            Err(_) => {}
        }
    }
}
