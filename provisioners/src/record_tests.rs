//! Envelopes: what is read, what is refused, and that nobody passes over what cannot be read.

use super::*;

fn note() -> Publication {
    Publication { read_only: false, mode: AccessMode::SingleNodeWriter, block: true }
}

impl Stored for Publication {
    const KIND: &'static str = "Test";
}

#[test]
fn a_note_is_read_with_its_envelope_and_as_it_was_before() {
    assert_eq!(unseal::<Publication>("it", &seal(&note()).unwrap()).unwrap(), note());
    let before = serde_json::to_vec(&note()).unwrap();
    assert_eq!(unseal::<Publication>("it", &before).unwrap(), note());
    let fs = br#"{"formatted":"ext4"}"#;
    assert!(unseal::<FsState>("it", fs).is_ok());
    assert_eq!(unseal::<FsState>("it", b"{}").unwrap(), FsState::default());
}

#[test]
fn an_older_version_reads_a_note_in_its_envelope() {
    // It had no envelope and read the fields alone.
    assert_eq!(serde_json::from_slice::<Publication>(&seal(&note()).unwrap()).unwrap(), note());
}

#[test]
fn what_is_damaged_foreign_or_newer_is_refused_by_name() {
    for bad in [
        "",
        "x",
        "1",
        "null",
        "[]",
        "{",
        r#"{"v":2}"#,
        r#"{"schema":0,"kind":"FileSystem"}"#,
        r#"{"schema":1}"#,
        r#"{"kind":"FileSystem"}"#,
        r#"{"schema":1,"kind":"Volume"}"#,
        r#"{"formatted":"ext4","twice":1}"#,
    ] {
        let error = unseal::<FsState>("the thing", bad.as_bytes()).unwrap_err();
        assert!(matches!(&error, Error::Corrupt { what, .. } if what == "the thing"), "{bad}: {error}");
    }
    let newer = unseal::<FsState>("the thing", br#"{"schema":2,"kind":"FileSystem"}"#).unwrap_err();
    assert!(matches!(&newer, Error::Refused(text) if text.contains("the thing has schema 2")), "{newer}");
}

/// Ways to pass over an error.
const SWALLOWS: [&str; 7] =
    [".ok()", "is_ok_and", "unwrap_or_default()", "unwrap_or(None)", "let _ =", "if let Ok", "let Ok("];

/// What reads stored state.
const READS: [&str; 16] = [
    "unseal",
    "decode",
    "read_note",
    "Found::read",
    ".published()",
    ".clients()",
    ".fs()",
    ".growing()",
    ".claim()",
    ".modified()",
    "deletion(",
    ".entry",
    ".intent(",
    "serde_json::from",
    "try_record",
    ".noted()",
];

/// Statements that may, each with the reason: what cannot be read is shown as that, or there is nothing to be read.
const ALLOWED: &[(&str, &str, &str)] = &[
    (
        "rbd/locks.rs",
        "known(found.clients())).unwrap_or_default()",
        "for showing locks; the error is in the log",
    ),
    ("rbd/locks.rs", "known(found.claim()).flatten()", "for showing locks; the error is in the log"),
    (
        "rbd/delete.rs",
        "known(found.clients()).unwrap_or_default()",
        "for the text of a refusal; the error is in the log",
    ),
    ("cinder/errors.rs", "serde_json::from_slice(body)", "an answer of a service, not stored state"),
    ("cinder/instance.rs", "serde_json::from_slice(&text)", "what a metadata service says, not stored state"),
    ("cinder/blank.rs", "self.try_record().is_ok_and", "what cannot be read is not vouched for"),
];

fn sources() -> Vec<(String, String)> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let inside = |name| std::fs::read_dir(root.join(name)).unwrap().flatten().map(|entry| entry.path());
    let others = [root.join("record.rs")];
    let files = inside("rbd")
        .chain(inside("cinder"))
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .chain(others);
    let name = |path: &std::path::Path| path.strip_prefix(&root).unwrap().display().to_string();
    files.map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn no_error_of_stored_state_is_swallowed() {
    let has = |statement: &str, words: &[&str]| words.iter().any(|word| statement.contains(word));
    let mut found = Vec::new();
    let mut used = std::collections::BTreeSet::new();
    for (name, text) in &sources() {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for statement in code.split([';', '{']).filter(|it| has(it, &SWALLOWS) && has(it, &READS)) {
            match ALLOWED.iter().position(|(file, part, _)| file == name && statement.contains(part)) {
                Some(index) => drop(used.insert(index)),
                None => found.push(format!("{name}: {}", statement.trim())),
            }
        }
    }
    assert!(
        found.is_empty(),
        "pass the error on, or say here why it may be passed over:\n{}",
        found.join("\n")
    );
    let unused: Vec<_> =
        (0..ALLOWED.len()).filter(|index| !used.contains(index)).map(|i| ALLOWED[i]).collect();
    assert!(unused.is_empty(), "no longer there: {unused:?}");
}
