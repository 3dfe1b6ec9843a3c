//! `volumectl lock`: who has images open and locked, and taking them from owners that are dead.

mod recover;

use anyhow::Result;
use clap::{Args, Subcommand};
use kubernetes::Kubernetes;
use provisioners::ExitCode;
use provisioners::rbd::{Admin, ImageLocks};
use serde_json::{Value, json};

use crate::ceph::CephArgs;
use crate::output::{self, Column, Format, Show};
use crate::progress;

/// The arguments of every verb.
#[derive(Debug, Args)]
pub struct LockArgs {
    #[command(flatten)]
    ceph: CephArgs,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List images that are locked or open: owner, node, volume, and whether the owner lives
    #[command(visible_alias = "list")]
    Ls {
        /// Only this image: POOL/IMAGE or POOL/NAMESPACE/IMAGE
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
        /// Only what this node has
        #[arg(long, value_name = "NODE")]
        node: Option<String>,
    },
    /// Take an image from an owner that is dead: fence it, break its lock, open it afresh
    Recover(recover::RecoverArgs),
    /// Take the fence of a recovery back
    Undo {
        /// The journal entry's id, as `recover` and `journal` print it
        #[arg(value_name = "ID")]
        entry: String,
    },
    /// List what was fenced, step by step
    Journal,
}

const LOCKS: &[Column] = &[
    Column("IMAGE", "/image", Show::Plain),
    Column("KIND", "/kind", Show::Plain),
    Column("OWNER", "/address", Show::Plain),
    Column("CLIENT", "/client", Show::Wide),
    Column("COOKIE", "/cookie", Show::Wide),
    Column("NODE", "/node", Show::Plain),
    Column("PV", "/pv", Show::Plain),
    Column("CLAIM", "/claim", Show::Wide),
    Column("PODS", "/pods", Show::Wide),
    Column("ALIVE", "/alive", Show::Plain),
    Column("SINCE", "/since", Show::Wide),
    Column("EVIDENCE", "/evidence", Show::Plain),
];

const JOURNAL: &[Column] = &[
    Column("ID", "/id", Show::Plain),
    Column("IMAGE", "/image", Show::Plain),
    Column("FENCED", "/fence", Show::Plain),
    Column("UNDONE", "/undone", Show::Plain),
    Column("LAST STEP", "/last", Show::Plain),
];

impl LockArgs {
    /// Runs the verb. A recovery that waits for an answer of the user has its time, too.
    pub fn run(self, format: Format) -> Result<ExitCode> {
        self.ceph.clone().bounded(move || run(&self, format))
    }
}

fn run(args: &LockArgs, format: Format) -> Result<ExitCode> {
    let admin = args.ceph.admin()?;
    match &args.verb {
        Verb::Ls { image, node } => {
            let image = image.as_ref().map(|image| args.ceph.image(image));
            list(&admin, &args.ceph, image.as_deref(), node.as_deref(), format)?;
        }
        Verb::Recover(wish) => return recover::run(&admin, &args.ceph, wish, format),
        Verb::Undo { entry } => {
            let report = serde_json::to_value(admin.undo(entry)?)?;
            output::print(format, &with_last(report), JOURNAL)?;
        }
        Verb::Journal => {
            let all = admin.journal()?.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
            output::print(format, &all.into_iter().map(with_last).collect(), JOURNAL)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(
    admin: &Admin,
    ceph: &CephArgs,
    image: Option<&str>,
    node: Option<&str>,
    format: Format,
) -> Result<()> {
    let bar = progress::count("looking at images");
    let mut found = admin.locks(ceph.pool.as_deref(), image, &|done, all| bar.at(done, all))?;
    bar.end();
    found.retain(|image| node.is_none_or(|node| has_node(image, node)));
    let kubernetes = Kubernetes::at_hand();
    if matches!(format, Format::Json | Format::Yaml) {
        let all = found.iter().map(|image| in_full(image, kubernetes.as_ref())).collect::<Result<Value>>()?;
        return output::print(format, &all, LOCKS);
    }
    let rows: Vec<_> = found.iter().flat_map(|image| rows(image, kubernetes.as_ref())).collect();
    output::print(format, &rows.into(), LOCKS)
}

/// An image with the pods that use it, where Kubernetes can be asked.
fn in_full(image: &ImageLocks, kubernetes: Option<&Kubernetes>) -> Result<Value> {
    let mut value = serde_json::to_value(image)?;
    if let Some(kubernetes) = kubernetes {
        value["pods"] = pods(image, kubernetes).into();
    }
    Ok(value)
}

fn pods(image: &ImageLocks, kubernetes: &Kubernetes) -> Vec<String> {
    let claim = image.claim.as_deref().and_then(|claim| claim.split_once('/'));
    claim.map(|(namespace, name)| kubernetes.pods_of_claim(namespace, name)).unwrap_or_default()
}

fn has_node(image: &ImageLocks, node: &str) -> bool {
    image.locks.iter().any(|lock| lock.node.as_deref() == Some(node))
        || image.watchers.iter().any(|watcher| watcher.node.as_deref() == Some(node))
        || image.mapping.as_ref().is_some_and(|claim| claim.node == node)
        || image.published.iter().any(|published| published == node)
}

/// A row a lock, a row a watcher that holds none, and one for a claim whose client is not among them.
fn rows(image: &ImageLocks, kubernetes: Option<&Kubernetes>) -> Vec<Value> {
    let pods = kubernetes.map(|kubernetes| pods(image, kubernetes)).unwrap_or_default();
    let row = |extra: Value| {
        let mut row = json!({"image": image.image, "pv": image.pv, "claim": image.claim, "pods": pods});
        if let (Some(row), Some(extra)) = (row.as_object_mut(), extra.as_object()) {
            row.extend(extra.clone());
        }
        row
    };
    let locks = image.locks.iter().map(|lock| row(serde_json::to_value(lock).unwrap_or_default()));
    let holds = |address: &str| image.locks.iter().any(|lock| lock.address == address);
    let open = image.watchers.iter().filter(|watcher| !holds(&watcher.address)).map(|watcher| {
        row(json!({
            "kind": "none", "address": watcher.address, "client": watcher.client, "node": watcher.node,
            "alive": "yes", "evidence": "it has the image open and has not written",
        }))
    });
    let shown = |address: &str| image.watchers.iter().any(|watcher| watcher.address == address);
    let claim = image.mapping.iter().filter(|claim| claim.client.as_deref().is_none_or(|c| !shown(c)));
    let claim = claim.map(|claim| {
        row(json!({
            "kind": "claim", "address": claim.client, "node": claim.node, "since": claim.since,
            "alive": if claim.holds { "yes" } else { "no" }, "evidence": claim.evidence,
        }))
    });
    locks.chain(open).chain(claim).collect()
}

/// A journal entry with its last step in words.
fn with_last(mut entry: Value) -> Value {
    let last = entry["steps"].as_array().and_then(|steps| steps.last()).map(|step| {
        format!(
            "{}: {}",
            step["what"].as_str().unwrap_or_default(),
            step["result"].as_str().unwrap_or_default()
        )
    });
    entry["last"] = last.into();
    entry
}
