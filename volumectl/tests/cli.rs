//! The real program, without a driver: usage, exit codes, and what it prints.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn volumectl(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_volumectl"));
    command.args(args).env_remove("CSI_ENDPOINT").env_remove("CSI_SECRETS").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    for args in [
        &["csi", "create"][..],
        &["csi", "-e", "/x", "create", "a", "--size", "10gb"],
        &["csi", "-e", "/x", "create", "a", "--param", "nonsense"],
        &["csi", "list"],
        &["csi", "-e", "tcp://host:1", "list"],
        &["--output", "xml", "version"],
        &["frobnicate"],
    ] {
        let output = volumectl(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn nobody_on_the_socket_is_an_error_with_its_path() {
    let output = volumectl(&["csi", "-e", "unix:///nonexistent/csi.sock", "list"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("/nonexistent/csi.sock"), "{}", stderr(&output));
}

#[test]
fn help_version_completions_and_man_pages_are_printed() {
    for (args, word) in [
        (&["--help"][..], "Exit codes"),
        (&["version"], "CSI 1.12.0"),
        (&["completions", "bash"], "_volumectl"),
        (&["man"], ".TH volumectl"),
        (&["csi", "run", "--help"], "StorageClass"),
    ] {
        let output = volumectl(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(word), "{args:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let output = volumectl(&["man", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    assert!(dir.path().join("volumectl-csi-run.1").exists());
}

#[test]
fn there_is_no_flag_for_a_secret() {
    let output = volumectl(&["csi", "create", "--help"]);
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(help.contains("--secrets-file") && !help.contains("--secret "), "{help}");
}
