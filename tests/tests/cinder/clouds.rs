//! The forms of clouds.yaml: each connects, or says which key to set.

use anyhow::{Context as _, Result, ensure};
use e2e::openstack::OpenStack;
use provisioners::cinder::{Bare, CinderCloud, Service};
use serde_json::{Value, json};

/// Asks Cinder and Nova with what is made of a cloud in the services' own clouds.yaml.
async fn asked(
    cloud: &OpenStack,
    name: &str,
    change: impl Fn(&mut Value),
    volume_endpoint: Option<String>,
) -> Result<()> {
    let mut all: Value = serde_json::from_slice(&std::fs::read(cloud.clouds_file())?)?;
    change(&mut all["clouds"][name]);
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("clouds.yaml");
    std::fs::write(&file, all.to_string())?;
    let bare = Bare::new(CinderCloud {
        name: "main".into(),
        cloud: Some(name.into()),
        clouds_file: Some(file),
        volume_endpoint,
        ..CinderCloud::default()
    });
    ensure!(bare.ask(Service::Volume, "volumes", None).await?["volumes"].is_array());
    ensure!(bare.ask(Service::Compute, "servers", None).await?["servers"].is_array());
    Ok(())
}

/// Takes keys out of `auth`, and puts others there.
fn auth(cloud: &mut Value, without: &[&str], with: &Value) {
    let Some(auth) = cloud["auth"].as_object_mut() else { return };
    auth.retain(|key, _| !without.contains(&key.as_str()));
    auth.extend(with.as_object().cloned().unwrap_or_default());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_clouds_yaml_connects_or_names_the_key_to_set() -> Result<()> {
    let Some(cloud) = OpenStack::shared("forms")? else { return Ok(()) };
    for interface in ["internal", "admin", "public", "internalURL"] {
        asked(cloud, "demo", |it| it["interface"] = json!(interface), None).await.context(interface)?;
    }
    let error = asked(
        cloud,
        "demo",
        |it| (it["interface"], it["region_name"]) = (json!("internal"), json!("moon")),
        None,
    );
    let error = error.await.err().context("no such region")?.to_string();
    ensure!(error.contains("set interface or region"), "{error}");
    let domains = ["user_domain_id", "project_domain_id"];
    for with in [
        json!({"default_domain": "default"}),
        json!({"domain_id": "default"}),
        json!({"domain_name": "Default"}),
    ] {
        asked(cloud, "demo", |it| auth(it, &domains, &with), None).await.context(with.to_string())?;
    }
    let tenant = |it: &mut Value| auth(it, &["project_name"], &json!({"tenant_name": "demo"}));
    asked(cloud, "demo", tenant, None).await.context("tenant_name")?;
    let untyped = |it: &mut Value| drop(it.as_object_mut().and_then(|it| it.remove("auth_type")));
    asked(cloud, "app", untyped, None).await.context("no auth_type")?;
    let address = format!("http://{}", cloud.address("cinder"));
    asked(cloud, "demo", |_| {}, Some(address)).await.context("an address without a version")?;
    for (name, without, with, key) in [
        (
            "app",
            &["application_credential_id"][..],
            json!({"application_credential_name": "x"}),
            "application_credential_id",
        ),
        ("demo", &["project_name"], json!({}), "project_name"),
        ("demo", &["user_domain_id"], json!({}), "user_domain_name"),
    ] {
        let error = asked(cloud, name, |it| auth(it, without, &with), None).await.err();
        let error = error.with_context(|| format!("{without:?} was not missed"))?.to_string();
        ensure!(error.contains(&format!("set {key}")), "{error}");
    }
    Ok(())
}
