//! Random sequences of RPCs with injected faults against a model of what CSI promises: nothing leaks, nothing is
//! doubled, a repeated call changes nothing, sizes are right. Runs without root: volumes are made, never mounted.

// Helpers of a test: what fails here stops it.
#![allow(clippy::unwrap_used)]

#[path = "model/machine.rs"]
mod machine;
#[path = "model/reference.rs"]
mod reference;
#[path = "model/system.rs"]
mod system;

use machine::Machine;
use proptest::test_runner::Config;
use proptest_state_machine::prop_state_machine;

prop_state_machine! {
    #![proptest_config(Config {
        cases: std::env::var("MODEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(48),
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    })]

    #[test]
    fn any_sequence_of_calls_keeps_the_promises(sequential 1..40 => Machine);
}
