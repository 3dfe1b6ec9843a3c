use proptest::prelude::*;

use super::*;

const DOCS: [ParameterDoc; 3] = [doc("mkfsOptions"), doc("mode"), doc("thick")];

const fn doc(name: &'static str) -> ParameterDoc {
    ParameterDoc { name, meaning: "", default: "", mutable: false }
}

fn map(pairs: &[(&str, &str)]) -> StringMap {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest() {
    let given = map(&[("mkfsOption", "-m 0")]);
    let error = Parameters::new("parameters", &given, &DOCS).unwrap_err().to_string();
    assert_eq!(
        error,
        "parameters[\"mkfsOption\"]: unknown; did you mean \"mkfsOptions\"? known: mkfsOptions, mode, thick"
    );
    let far = map(&[("zzz", "")]);
    assert!(!Parameters::new("parameters", &far, &DOCS).unwrap_err().to_string().contains("did you mean"));
    assert!(
        Parameters::new("parameters", &far, &[]).unwrap_err().to_string().contains("no parameters are known")
    );
}

#[test]
fn a_key_given_twice_in_other_case_is_refused() {
    let given = map(&[("Mode", "0700"), ("mode", "0770")]);
    let error = Parameters::new("parameters", &given, &DOCS).unwrap_err().to_string();
    assert!(error.contains("given twice"), "{error}");
}

#[test]
fn case_makes_no_difference_in_keys_and_errors_have_them_as_given() {
    let given = map(&[("MODE", "0700"), ("mkfsoptions", "x")]);
    let it = Parameters::new("parameters", &given, &DOCS).unwrap();
    assert_eq!(it.mode("mode").unwrap(), Some(0o700));
    let error = it.number::<u8>("mkfsOptions").unwrap_err().to_string();
    assert!(error.starts_with("parameters[\"mkfsoptions\"]: "), "{error}");
    assert_eq!(canonical(&given, &DOCS), map(&[("mode", "0700"), ("mkfsOptions", "x")]));
    let error = Parameters::mutable(&given, &DOCS).unwrap_err().to_string();
    assert!(error.contains("cannot be changed after creation"), "{error}");
}

#[test]
fn values_are_read_strictly() {
    let given = map(&[("mode", "0770"), ("thick", "true"), ("mkfsOptions", "7")]);
    let it = Parameters::new("parameters", &given, &DOCS).unwrap();
    assert_eq!(it.mode("mode").unwrap(), Some(0o770));
    assert_eq!(it.flag("thick").unwrap(), Some(true));
    assert_eq!(it.number::<u32>("mkfsOptions").unwrap(), Some(7));
    assert_eq!(it.flag("other").unwrap(), None);
    for (text, value) in [("True", true), ("1", true), ("f", false)] {
        let given = map(&[("THICK", text)]);
        assert_eq!(Parameters::new("parameters", &given, &DOCS).unwrap().flag("thick").unwrap(), Some(value));
    }
    for bad in ["", "yes", "tRUE", "on"] {
        let given = map(&[("thick", bad)]);
        let error = Parameters::new("parameters", &given, &DOCS).unwrap().flag("thick").unwrap_err();
        assert!(error.to_string().starts_with("parameters[\"thick\"]: "), "{error}");
    }
    for bad in ["", "9", "77", "0o770", "+770", "-770", "0888", "17777", "rwx"] {
        let given = map(&[("mode", bad)]);
        assert!(Parameters::new("parameters", &given, &DOCS).unwrap().mode("mode").is_err(), "{bad}");
    }
    for bad in ["", "-1", "+1", "4294967296", "1.0"] {
        let given = map(&[("mode", bad)]);
        assert!(
            Parameters::new("parameters", &given, &DOCS).unwrap().number::<u32>("mode").is_err(),
            "{bad}"
        );
    }
}

#[test]
fn sizes_are_read_as_kubernetes_writes_them() {
    for (text, bytes) in [
        ("0", 0),
        ("1", 1),
        ("1Ki", 1024),
        ("1k", 1000),
        ("10Gi", 10 << 30),
        ("10GiB", 10 << 30),
        ("500M", 500_000_000),
        ("500MB", 500_000_000),
        ("1.5Gi", 3 << 29),
        ("0.1Ki", 103),
        ("1e9", 1_000_000_000),
        ("1E", 1_000_000_000_000_000_000),
        ("7Ei", 7 << 60),
        (" 4Mi ", 4 << 20),
        ("9223372036854775807", i64::MAX as u64),
    ] {
        assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
    }
}

#[test]
fn what_is_no_size_is_refused() {
    for text in [
        "",
        "-1",
        "+1",
        "Gi",
        ".",
        "1..2",
        "1Xi",
        "1 Gi",
        "1gi",
        "8Ei",
        "9223372036854775808",
        "1e99",
        "1ki",
        "٣",
    ] {
        assert_eq!(parse_size(text).unwrap_err().label(), "invalid", "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = parse_size(&text);
        let given = map(&[(&text, &text)]);
        let _ = Parameters::new("parameters", &given, &DOCS);
        let given = map(&[("mode", &text)]);
        let it = Parameters::new("parameters", &given, &DOCS).unwrap();
        let _ = (it.mode("mode"), it.flag("mode"), it.number::<u64>("mode"));
    }

    #[test]
    fn whole_numbers_are_bytes(bytes in 0..=i64::MAX as u64) {
        prop_assert_eq!(parse_size(&bytes.to_string()).unwrap(), bytes);
    }
}
