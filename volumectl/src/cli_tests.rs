//! The whole command line: what is called the same means the same, and stands in the same place.

use std::any::TypeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Arg;

use super::*;

/// Every command by its path, with its own arguments.
fn commands() -> Vec<(String, clap::Command)> {
    fn walk(path: &str, command: &clap::Command, found: &mut Vec<(String, clap::Command)>) {
        let path = format!("{path} {}", command.get_name());
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            walk(&path, below, found);
        }
        found.push((path, command.clone()));
    }
    let mut cli = Cli::command();
    cli.build();
    let mut found = Vec::new();
    walk("", &cli, &mut found);
    assert!(found.len() > 40, "the tree is walked");
    found
}

fn value_name(arg: &Arg) -> String {
    arg.get_value_names()
        .unwrap_or_default()
        .iter()
        .map(clap::builder::Str::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}

fn positionals(command: &clap::Command) -> Vec<String> {
    command.get_positionals().map(value_name).collect()
}

fn is_a<T: 'static>(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<T>()
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_is_made_is_named_first_and_its_source_second() {
    let mut seen = 0;
    for (path, command) in commands().iter().filter(|(_, command)| command.get_name() == "create") {
        let positionals = positionals(command);
        assert_eq!(positionals.first().map(String::as_str), Some("NAME"), "{path}");
        assert!(positionals.len() <= 2, "{path}: {positionals:?}");
        seen += 1;
    }
    assert_eq!(
        seen, 5,
        "csi create, csi snapshot create, csi group create, volume create, volume snap create"
    );
    // And where it is deleted by its name within something, as well.
    let all = commands();
    let rm = all.iter().find(|(path, _)| path.ends_with("volume snap rm")).unwrap();
    assert_eq!(positionals(&rm.1), ["NAME", "IMAGE"]);
}

#[test]
fn an_option_means_the_same_everywhere() {
    let (mut values, mut shorts) =
        (BTreeMap::<String, BTreeSet<_>>::new(), BTreeMap::<_, BTreeSet<_>>::new());
    for (_, command) in commands() {
        for arg in command.get_opts().filter(|arg| arg.get_long().is_some()) {
            let long = arg.get_long().unwrap_or_default().to_owned();
            let kind = format!("{:?}", arg.get_value_parser().type_id());
            // Sizes and seconds are read by one parser each; their numbers may be of another type.
            let kind =
                if ["SIZE", "SECONDS"].contains(&value_name(arg).as_str()) { String::new() } else { kind };
            values.entry(long.clone()).or_default().insert((value_name(arg), arg.get_short(), kind));
            if let Some(short) = arg.get_short() {
                shorts.entry(short).or_default().insert(long);
            }
        }
    }
    for (long, meanings) in values {
        assert_eq!(meanings.len(), 1, "--{long}: {meanings:?}");
    }
    for (short, meanings) in shorts {
        assert_eq!(meanings.len(), 1, "-{short}: {meanings:?}");
    }
}

#[test]
fn paths_are_options_with_a_name_that_says_so() {
    let mut seen = 0;
    for (path, command) in commands() {
        for arg in command.get_arguments().filter(|arg| is_a::<PathBuf>(arg)) {
            seen += 1;
            assert!(!arg.is_positional(), "{path}: {}", arg.get_id());
            let name = value_name(arg);
            assert!(["FILE", "DIR", "PATH"].contains(&name.as_str()), "{path} --{}: {name}", arg.get_id());
        }
    }
    assert!(seen > 10, "paths are found: {seen}");
}

#[test]
fn times_and_pairs_have_one_form() {
    let mut pairs = BTreeSet::new();
    for (path, command) in commands() {
        for arg in command.get_opts() {
            let (name, long) = (value_name(arg), arg.get_long().unwrap_or_default());
            assert!(!is_a::<Duration>(arg) || name == "SECONDS", "{path} --{long}");
            if is_a::<(String, String)>(arg) {
                assert_eq!(name, "KEY=VALUE", "{path} --{long}");
                pairs.insert(long.to_owned());
            }
        }
    }
    let known = ["context", "mutable", "param", "publish-context", "topology"];
    assert_eq!(pairs.iter().map(String::as_str).collect::<Vec<_>>(), known);
}

/// Who knows one tool's words need not learn another's.
#[test]
fn each_verb_answers_to_both_of_its_names() {
    for (path, command) in commands() {
        let name = command.get_name().to_owned();
        let names: BTreeSet<_> = command.get_visible_aliases().chain([name.as_str()]).collect();
        for pair in [["ls", "list"], ["rm", "delete"], ["resize", "expand"], ["snap", "snapshot"]] {
            let has = pair.iter().filter(|word| names.contains(**word)).count();
            assert_ne!(has, 1, "{path} has only one of {pair:?}");
        }
    }
}

#[test]
fn every_argument_has_a_help_text() {
    for (path, command) in commands() {
        assert!(command.get_about().is_some(), "{path}");
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{path}: {}", arg.get_id());
        }
    }
}
