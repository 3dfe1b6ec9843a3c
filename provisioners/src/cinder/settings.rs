//! A cloud's settings: clouds.yaml or the environment as openstack_sdk reads them, completed by the forms that other
//! OpenStack clients take and it does not. What cannot be used names the key to set.

use std::path::Path;

use openstack_sdk::config::{Auth, CloudConfig, ConfigFile, find_clouds_file};
use serde_json::Value;

use super::config::CinderCloud;
use crate::{Error, Result};

/// The interfaces of a catalog.
const INTERFACES: [&str; 3] = ["public", "internal", "admin"];
/// How application credentials are called.
const CREDENTIAL: [&str; 3] = ["v3applicationcredential", "applicationcredential", "application_credential"];
/// How passwords are.
const PASSWORD: [&str; 2] = ["v3password", "password"];

/// What is needed to log in and to find the services.
pub(super) struct Settings {
    /// For logging in: Keystone is where `auth_url` says, whatever the interface.
    pub(super) config: CloudConfig,
    /// Of which interface the services' addresses are.
    pub(super) interface: String,
}

/// The cloud's settings, by clouds.yaml or the environment. What cannot be used: [`Error::Invalid`].
pub(super) fn settings(spec: &CinderCloud) -> Result<Settings> {
    let name = spec.cloud.clone().or_else(|| std::env::var("OS_CLOUD").ok().filter(|name| !name.is_empty()));
    let unread = |error: String| Error::invalid("cloudsFile", format!("cloud {}: {error}", spec.name));
    let (mut config, more) = match &name {
        None => {
            let config = CloudConfig::from_env();
            let config = config.map_err(|e| unread(format!("reading the OS_* variables: {e}")))?;
            (config, More::Environment)
        }
        Some(name) => {
            let config = of_file(spec, name).map_err(unread)?;
            (config, More::of_files(spec.clouds_file.as_deref(), name))
        }
    };
    if config.auth.as_ref().is_none_or(|auth| auth.auth_url.is_none()) {
        return Err(unread(
            "no auth_url was found; name a cloud of clouds.yaml, or set OS_CLOUD or OS_AUTH_URL".into(),
        ));
    }
    config.region_name = spec.region.clone().or(config.region_name);
    let interface = spec.interface.clone().or(config.interface).unwrap_or_else(|| INTERFACES[0].into());
    let interface = interface.trim_end_matches("URL").to_owned();
    if !INTERFACES.contains(&interface.as_str()) {
        return Err(unread(format!("interface: {interface:?} is none of {}", INTERFACES.join(", "))));
    }
    // Before it has logged in, openstack_sdk looks for Keystone itself among addresses of this interface.
    config.interface = Some(INTERFACES[0].into());
    let (auth, kind) = (config.auth.get_or_insert_default(), &mut config.auth_type);
    complete(auth, &more);
    kind.get_or_insert_with(|| {
        let credential = auth.application_credential_secret.is_some();
        if credential { CREDENTIAL[0] } else { PASSWORD[0] }.into()
    });
    if CREDENTIAL.contains(&kind.as_deref().unwrap_or_default()) {
        *kind = Some(CREDENTIAL[0].into());
    }
    check(auth, kind.as_deref().unwrap_or_default()).map_err(unread)?;
    Ok(Settings { config, interface })
}

fn of_file(spec: &CinderCloud, name: &str) -> Result<CloudConfig, String> {
    let file =
        ConfigFile::new_with_user_specified_configs(spec.clouds_file.as_ref(), spec.secure_file.as_ref());
    let file = file.map_err(|e| e.to_string())?;
    file.get_cloud_config(name).map_err(|e| e.to_string())?.ok_or_else(|| {
        let known = file.get_available_clouds().join(", ");
        format!("clouds.yaml has no cloud {name:?}; it has: {known}")
    })
}

/// Where keys are that openstack_sdk passes over.
enum More {
    Environment,
    Clouds(Vec<Value>),
}

impl More {
    fn of_files(given: Option<&Path>, name: &str) -> Self {
        let files = find_clouds_file().into_iter().chain(given.map(Path::to_path_buf));
        // openstack_sdk has read them, and says what is wrong with one.
        let parsed = files.filter_map(|file| {
            let text = std::fs::read_to_string(file).ok()?;
            serde_saphyr::from_str::<Value>(&text).ok()
        });
        let mut clouds: Vec<_> = parsed.map(|mut all| all["clouds"][name].take()).collect();
        clouds.reverse();
        Self::Clouds(clouds)
    }

    /// A key's value, in `auth` or beside it.
    fn get(&self, key: &str) -> Option<String> {
        match self {
            Self::Environment => {
                let name = format!("OS_{}", key.to_ascii_uppercase());
                std::env::var(name).ok().filter(|value| !value.is_empty())
            }
            Self::Clouds(clouds) => clouds.iter().find_map(|cloud| {
                let value = [&cloud["auth"][key], &cloud[key]].into_iter().find_map(Value::as_str);
                value.map(str::to_owned)
            }),
        }
    }
}

/// Takes over older names, and one domain for user and project, as python-openstackclient does.
fn complete(auth: &mut Auth, more: &More) {
    let or = |has: &mut Option<String>, keys: &[&str]| {
        if has.is_none() {
            *has = keys.iter().find_map(|key| more.get(key));
        }
    };
    if auth.project_id.is_none() {
        or(&mut auth.project_name, &["tenant_name"]);
    }
    if auth.project_name.is_none() {
        or(&mut auth.project_id, &["tenant_id"]);
    }
    let (ids, names) =
        (["domain_id", "default_domain_id", "default_domain"], ["domain_name", "default_domain_name"]);
    if auth.username.is_some() && auth.user_domain_id.is_none() && auth.user_domain_name.is_none() {
        or(&mut auth.user_domain_id, &ids);
        if auth.user_domain_id.is_none() {
            or(&mut auth.user_domain_name, &names);
        }
    }
    if auth.project_name.is_some() && auth.project_domain_id.is_none() && auth.project_domain_name.is_none() {
        or(&mut auth.project_domain_id, &ids);
        if auth.project_domain_id.is_none() {
            or(&mut auth.project_domain_name, &names);
        }
    }
}

/// What is missing to log in, with the key to set.
fn check(auth: &Auth, kind: &str) -> Result<(), String> {
    let missing = |what: &str, key: &str| Err(format!("auth: {what}; set {key}"));
    if CREDENTIAL.contains(&kind) {
        return match (&auth.application_credential_id, &auth.application_credential_name) {
            _ if auth.application_credential_secret.is_none() => missing(
                "the application credential has no secret",
                "application_credential_secret, here or in secure.yaml",
            ),
            (Some(_), _) => Ok(()),
            (None, Some(name)) => missing(
                &format!(
                    "the application credential {name:?} is given by its name, and is found by its id only"
                ),
                "application_credential_id (`openstack application credential show`)",
            ),
            (None, None) => missing("the application credential has no id", "application_credential_id"),
        };
    }
    if !PASSWORD.contains(&kind) {
        return Ok(());
    }
    if auth.username.is_none() && auth.user_id.is_none() {
        return missing("no user is given", "username and user_domain_name, or user_id");
    }
    if auth.password.is_none() {
        return missing("no password is given", "password, here or in secure.yaml");
    }
    if auth.user_id.is_none() && auth.user_domain_id.is_none() && auth.user_domain_name.is_none() {
        return missing("the user has no domain", "user_domain_name (such as Default) or user_domain_id");
    }
    if auth.project_id.is_some() {
        return Ok(());
    }
    if auth.project_name.is_none() {
        return missing(
            "no project is given, and volumes are a project's",
            "project_name and project_domain_name, or project_id",
        );
    }
    if auth.project_domain_id.is_none() && auth.project_domain_name.is_none() {
        return missing(
            "the project has no domain",
            "project_domain_name (such as Default) or project_domain_id",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(auth: &str, beside: &str) -> Result<Settings> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clouds.yaml");
        let text = format!("clouds:\n  c:\n    auth: {{auth_url: http://k/v3, {auth}}}\n    {beside}\n");
        std::fs::write(&file, text).unwrap();
        settings(&CinderCloud {
            name: "main".into(),
            cloud: Some("c".into()),
            clouds_file: Some(file),
            ..CinderCloud::default()
        })
    }

    fn auth(text: &str, beside: &str) -> Auth {
        read(text, beside).unwrap_or_else(|error| panic!("{text}: {error}")).config.auth.unwrap()
    }

    const USER: &str = "username: u, password: p";

    #[test]
    fn older_names_and_one_domain_for_both_are_taken() {
        let domains = "user_domain_name: U, project_domain_name: P";
        let plain = auth(&format!("{USER}, project_name: x, {domains}"), "");
        let old = auth(&format!("{USER}, tenant_name: x, {domains}"), "");
        assert_eq!((plain.project_name.as_deref(), old.project_name.as_deref()), (Some("x"), Some("x")));
        assert_eq!(old.user_domain_name.as_deref(), Some("U"));
        assert_eq!(auth(&format!("{USER}, tenant_id: i, {domains}"), "").project_id.as_deref(), Some("i"));
        for (inside, beside) in [
            ("default_domain: d", ""),
            ("", "default_domain: d"),
            ("domain_id: d", ""),
            ("default_domain_id: d", ""),
        ] {
            let both = auth(&format!("{USER}, project_name: x, {inside}"), beside);
            assert_eq!(both.user_domain_id.as_deref(), Some("d"), "{inside}{beside}");
            assert_eq!(both.project_domain_id.as_deref(), Some("d"), "{inside}{beside}");
        }
        for key in ["domain_name", "default_domain_name"] {
            let both = auth(&format!("{USER}, project_name: x, {key}: D, user_domain_name: U"), "");
            assert_eq!(both.user_domain_name.as_deref(), Some("U"), "what is given stays");
            assert_eq!(both.project_domain_name.as_deref(), Some("D"));
        }
    }

    #[test]
    fn the_way_to_log_in_is_seen_from_what_is_given() {
        let kind = |text: &str, beside: &str| read(text, beside).unwrap().config.auth_type.unwrap();
        let credential = "application_credential_id: i, application_credential_secret: s";
        assert_eq!(kind(credential, ""), "v3applicationcredential");
        assert_eq!(kind(credential, "auth_type: application_credential"), "v3applicationcredential");
        assert_eq!(kind(&format!("{USER}, project_id: x, user_domain_id: d"), ""), "v3password");
        assert_eq!(kind("token: t, project_id: x", "auth_type: v3token"), "v3token");
    }

    #[test]
    fn interfaces_are_of_the_services_and_not_of_keystone() {
        let credential = "application_credential_id: i, application_credential_secret: s";
        for (wish, interface) in [
            ("", "public"),
            ("interface: internal", "internal"),
            ("interface: admin", "admin"),
            ("interface: internalURL", "internal"),
        ] {
            let read = read(credential, wish).unwrap();
            assert_eq!(
                (read.interface.as_str(), read.config.interface.as_deref()),
                (interface, Some("public"))
            );
        }
        let error = read(credential, "interface: intern").err().unwrap().to_string();
        assert!(error.contains("interface: \"intern\" is none of public, internal, admin"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named_with_its_key() {
        for (text, words) in [
            (USER, "set user_domain_name"),
            ("password: p", "set username"),
            ("username: u", "set password"),
            (
                &*format!("{USER}, user_domain_name: D"),
                "no project is given, and volumes are a project's; set project_name",
            ),
            (&*format!("{USER}, user_domain_name: D, project_name: x"), "set project_domain_name"),
            (
                "application_credential_name: n, application_credential_secret: s",
                "set application_credential_id",
            ),
            ("application_credential_secret: s", "set application_credential_id"),
        ] {
            let error = read(text, "").err().unwrap_or_else(|| panic!("{text}")).to_string();
            assert!(error.contains("cloud main") && error.contains(words), "{text}: {error}");
        }
        let error = read("application_credential_id: i", "auth_type: v3applicationcredential").err().unwrap();
        assert!(error.to_string().contains("set application_credential_secret"), "{error}");
    }
}
