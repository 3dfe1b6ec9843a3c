use proptest::prelude::*;

use super::*;

fn claim() -> PvcMeta {
    PvcMeta {
        namespace: Some("shop".into()),
        name: Some("db".into()),
        pv_name: Some("pvc-1".into()),
        labels: StringMap::from([("app.kubernetes.io/name".into(), "mysql".into())]),
        annotations: StringMap::from([("dir".into(), "../etc".into())]),
    }
}

fn render(template: &str) -> Result<String> {
    NameTemplate::parse(template)?.render(&claim(), "csi-name")
}

#[test]
fn a_short_safe_name_is_its_own_key() {
    for name in ["a", "pvc-8f14e45f-ceea-467f-a9d1-0242ac120002", "A.b_c-9"] {
        assert_eq!(key_for(name), name);
    }
}

#[test]
fn other_names_are_hashed_and_stay_readable() {
    let key = key_for("my database/1");
    assert!(key.starts_with("mydatabase1-"), "{key}");
    assert_eq!(key.len(), "mydatabase1-".len() + HASH_DIGITS);
    assert!(key_for("..").starts_with("x-"));
    assert_ne!(key_for(""), key_for("x"));
}

#[test]
fn a_name_that_looks_hashed_cannot_take_anothers_key() {
    let victim = "x".repeat(128);
    let forged = key_for(&victim);
    assert_ne!(key_for(&forged), forged);
}

#[test]
fn variables_of_all_spellings_are_filled_in() {
    for (template, expected) in [
        ("${pvc.namespace}-${pvc.name}", "shop-db"),
        ("${pvc.metadata.namespace}.${pvc.metadata.name}", "shop.db"),
        ("${.PVC.namespace}_${.PVC.name}", "shop_db"),
        ("v${pv.name}", "vpvc-1"),
        ("${pv.metadata.name}", "pvc-1"),
        ("${pvc.labels.app.kubernetes.io/name}", "mysql"),
        ("${.PVC.labels.app.kubernetes.io/name}", "mysql"),
        ("plain", "plain"),
    ] {
        assert_eq!(render(template).unwrap(), expected, "{template}");
    }
    let bare = NameTemplate::parse("${pv.name}").unwrap();
    assert_eq!(bare.render(&PvcMeta::default(), "csi-name").unwrap(), "csi-name");
}

#[test]
fn wrong_templates_are_refused_with_what_is_wrong() {
    for (template, expected) in [
        ("", "is empty"),
        ("${pvc.nam}", "unknown variable `${pvc.nam}`"),
        ("a${pvc.name", "never closed"),
        ("a/b", "'/'"),
        ("${pvc.labels.}", "unknown variable"),
        ("$pvc", "'$'"),
        ("ä", "'ä'"),
        ("${pvc.labels.other}", "csi.volumectl.io/pvc/labels/other"),
        ("${pvc.annotations.dir}", "not a safe directory name"),
        (".${pvc.name}", "not a safe directory name"),
        (".volumectl", "not a safe directory name"),
    ] {
        let error = render(template).unwrap_err();
        assert_eq!(error.label(), "invalid");
        assert!(error.to_string().contains(expected), "{template}: {error}");
    }
    let missing = NameTemplate::parse("${pvc.name}").unwrap().render(&PvcMeta::default(), "x").unwrap_err();
    assert!(missing.to_string().contains("--extra-create-metadata"), "{missing}");
    assert!(render(&"a".repeat(101)).unwrap_err().to_string().contains("101 bytes"));
}

proptest! {
    #[test]
    fn a_key_is_always_safe_and_short(name in any::<String>()) {
        let key = key_for(&name);
        prop_assert!(is_safe_component(&key) && key.len() <= KEY_MAX);
        prop_assert_eq!(key, key_for(&name));
    }

    #[test]
    fn different_names_have_different_keys(a in "[ -~]{0,70}", b in "[ -~]{0,70}") {
        prop_assert_eq!(key_for(&a) == key_for(&b), a == b);
        prop_assert_ne!(key_for(&format!("{a}\u{1}")), key_for(&a));
        let hashed = key_for(&format!("{a}\u{1}"));
        prop_assert_ne!(key_for(&hashed), hashed);
    }

    #[test]
    fn whatever_a_template_makes_is_one_safe_component(template in any::<String>(), value in any::<String>()) {
        let pvc = PvcMeta { name: Some(value), ..claim() };
        for text in [template.clone(), format!("{template}${{pvc.name}}"), "${pvc.name}".into()] {
            if let Ok(name) = NameTemplate::parse(&text).and_then(|it| it.render(&pvc, "n")) {
                prop_assert!(is_safe_component(&name) && name.len() <= RENDERED_MAX);
            }
        }
    }

    #[test]
    fn whatever_a_path_template_makes_stays_below_the_share(
        template in "[a-z./${}]{0,20}",
        value in "(\\.\\./|/|\\.volumectl|[a-z.]|\\PC|\\x00){0,12}",
    ) {
        let pvc = PvcMeta { name: Some(value), ..claim() };
        for text in [template.clone(), format!("{template}${{pvc.name}}"), "a/${pvc.name}/b".into()] {
            if let Ok(path) = NameTemplate::parse_path(&text).and_then(|it| it.render(&pvc, "n")) {
                prop_assert!(!path.is_empty() && path.len() <= PATH_MAX && !path.starts_with('/'));
                for part in path.split('/') {
                    prop_assert!(!["", ".", ".."].contains(&part) && part.len() <= 255, "{path:?}");
                    prop_assert!(!part.starts_with(".volumectl") && !part.chars().any(char::is_control), "{path:?}");
                }
            }
        }
    }
}
