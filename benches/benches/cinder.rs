//! The driver with the cinder backend, as a process, against real Cinder and Nova, with a proxy that counts requests
//! before each. The baseline, in the same run: the same volumes made by requests without a driver.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use benches::{Driver, Line, median_ms, report};
use e2e::openstack::OpenStack;
use e2e::proxy::Proxy;
use e2e::requests as ask;
use e2e::scratch::Scratch;
use provisioners::cinder::{Bare, Service};
use serde_json::json;
use tokio::task::JoinSet;

/// Volumes that are made at once.
const VOLUMES: u32 = 100;
/// Volumes that are attached at once.
const ATTACHED: usize = 50;

fn main() -> Result<()> {
    // `cargo test --benches` and the like only ask whether it starts.
    if std::env::args().any(|a| a == "--test") {
        return Ok(());
    }
    let Some(cloud) = OpenStack::shared("benches cinder")? else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut lines = Vec::new();
    runtime.block_on(measure(cloud, &mut lines))?;
    report(&lines, "../target/bench-cinder.json")
}

fn line(what: &str, measured: f64, baseline: Option<f64>, unit: &'static str, target: &'static str) -> Line {
    Line { what: what.to_owned(), measured, baseline, unit, target }
}

#[allow(clippy::cast_precision_loss)]
fn each(count: usize, of: usize) -> f64 {
    count as f64 / of as f64
}

async fn measure(cloud: &'static OpenStack, lines: &mut Vec<Line>) -> Result<()> {
    let (volumes, compute) = (Proxy::start(&cloud.address("cinder"))?, Proxy::start(&cloud.address("nova"))?);
    let (scratch, server) = (Scratch::new()?, cloud.node()?);
    let more = format!(
        ", volumeEndpoint: \"http://{}/v3\", computeEndpoint: \"http://{}/v2.1\"",
        volumes.address(),
        compute.address()
    );
    let config = cloud.config("bench", &server, scratch.path(), &more, "");
    let driver = Driver::start(&scratch, &config, "cinder")?;
    let clients = driver.clients().await?;
    lines.push(line("resident memory, idle", driver.memory()?, None, "MiB", "reported"));
    let bare = cloud.bare("demo");
    // The services are warm, and both orders are measured: they slow down as volumes come.
    let first = bare_creates(&bare, "before").await?;
    volumes.forget();
    let (begun, mut calls) = (Instant::now(), JoinSet::new());
    for i in 0..VOLUMES {
        let (mut controller, request) =
            (clients.controller.clone(), ask::create(&format!("v-{i}"), 1 << 30, ask::block()));
        calls.spawn(async move {
            let made = controller.create_volume(request).await?.into_inner().volume.unwrap_or_default();
            Ok::<_, tonic::Status>(made.volume_id)
        });
    }
    let mut ids = Vec::new();
    while let Some(call) = calls.join_next().await {
        ids.push(call??);
    }
    let took = begun.elapsed().as_secs_f64();
    let requests = volumes.count("*", "/");
    let second = bare_creates(&bare, "after").await?;
    let baseline = f64::midpoint(first, second);
    lines.push(line("100 creates at once", took, Some(baseline), "s", "at most 1.15x"));
    lines.push(line("requests for each create", each(requests, ids.len()), None, "", "at most 3"));
    // To one server, which takes them one after the other, and to several, as a cluster does.
    for servers in [&cloud.nodes()?[..1], cloud.nodes()?] {
        attach(cloud, &clients, servers, &ids, (&volumes, &compute), lines).await?;
    }
    lines.push(line("resident memory after that load", driver.memory()?, None, "MiB", "reported"));
    let begun = Instant::now();
    let mut calls = JoinSet::new();
    for id in ids {
        let mut controller = clients.controller.clone();
        calls.spawn(async move { controller.delete_volume(ask::delete(&id)).await });
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    lines.push(line("100 deletes at once", begun.elapsed().as_secs_f64(), None, "s", "reported"));
    Ok(())
}

/// Seconds for making the volumes by requests alone; all are deleted again.
async fn bare_creates(bare: &Bare, name: &str) -> Result<f64> {
    let (begun, mut calls) = (Instant::now(), JoinSet::new());
    for i in 0..VOLUMES {
        let (bare, body) = (bare.clone(), json!({"volume": {"size": 1, "name": format!("bare-{name}-{i}")}}));
        calls.spawn(async move { bare.ask(Service::Volume, "volumes", Some(body)).await });
    }
    let mut ids = Vec::new();
    while let Some(call) = calls.join_next().await {
        ids.push(e2e::openstack::id(&call??["volume"])?);
    }
    while states(bare, &ids).await?.values().any(|status| status != "available") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed().as_secs_f64();
    for id in &ids {
        bare.delete(Service::Volume, &format!("volumes/{id}")).await?;
    }
    while !states(bare, &ids).await?.is_empty() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(took)
}

/// The statuses of volumes that are there.
async fn states(bare: &Bare, ids: &[String]) -> Result<BTreeMap<String, String>> {
    let listed = bare.ask(Service::Volume, "volumes/detail", None).await?;
    let all = listed["volumes"].as_array().context("no list")?.iter();
    let pairs = all.filter_map(|v| Some((v["id"].as_str()?.to_owned(), v["status"].as_str()?.to_owned())));
    Ok(pairs.filter(|(id, _)| ids.contains(id)).collect())
}

async fn attach(
    cloud: &OpenStack,
    clients: &e2e::clients::Clients,
    servers: &[String],
    ids: &[String],
    (volumes, compute): (&Proxy, &Proxy),
    lines: &mut Vec<Line>,
) -> Result<()> {
    volumes.forget();
    compute.forget();
    let (begun, mut calls) = (Instant::now(), JoinSet::new());
    for (i, id) in ids[..ATTACHED].iter().enumerate() {
        let server = &servers[i % servers.len()];
        let (mut controller, request, id) =
            (clients.controller.clone(), ask::attach(id, server, ask::block()), id.clone());
        calls.spawn(async move {
            controller.controller_publish_volume(request).await?;
            Ok::<_, tonic::Status>((id, std::time::SystemTime::now()))
        });
    }
    let mut noticed = BTreeMap::new();
    while let Some(call) = calls.join_next().await {
        let (id, at) = call??;
        noticed.insert(id, at.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64());
    }
    let took = begun.elapsed();
    let polls = volumes.count("GET", "/detail");
    let requests = volumes.count("*", "/") + compute.count("*", "/");
    let to = servers.len();
    let mut add = |what: &str, measured, unit, target| {
        lines.push(line(&format!("{what}, {to} server(s)"), measured, None, unit, target));
    };
    add("50 attaches at once", took.as_secs_f64(), "s", "reported");
    add("requests for each attach", each(requests, ATTACHED), "", "at most 2.5");
    add("polls a second while attaching", each(polls, 1) / took.as_secs_f64(), "", "bounded");
    // Cinder notes when a volume was attached.
    let listed = cloud.bare("demo").ask(Service::Volume, "volumes/detail", None).await?;
    let mut late = Vec::new();
    for volume in listed["volumes"].as_array().context("no list")? {
        let at = volume["attachments"][0]["attached_at"].as_str();
        let (Some(at), Some(seen)) = (at, volume["id"].as_str().and_then(|id| noticed.get(id))) else {
            continue;
        };
        late.push(Duration::try_from_secs_f64(seen - epoch(at)?).unwrap_or_default());
    }
    add("noticed late, median", median_ms(&mut late), "ms", "at most 500");
    let latest = late.iter().max().map_or(0.0, |late| late.as_secs_f64() * 1e3);
    add("noticed late, at most", latest, "ms", "reported");
    let mut calls = JoinSet::new();
    for id in &ids[..ATTACHED] {
        let (mut controller, request) = (clients.controller.clone(), ask::detach(id, ""));
        calls.spawn(async move { controller.controller_unpublish_volume(request).await });
    }
    while let Some(call) = calls.join_next().await {
        call??;
    }
    Ok(())
}

/// Cinder's time, which is UTC, as seconds since 1970.
fn epoch(text: &str) -> Result<f64> {
    let time: jiff::Timestamp = format!("{text}Z").parse()?;
    Ok(time.as_duration().as_secs_f64())
}
