//! `volumectl lock recover`: the plan first, the deed after `--yes`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use clap::Args;
use kubernetes::Kubernetes;
use provisioners::ExitCode;
use provisioners::rbd::{Admin, FenceOptions, FencePlan};
use serde_json::json;

use crate::ceph::CephArgs;
use crate::errors::{REFUSED, Usage};
use crate::output::{self, Column, Format, Show};
use crate::progress;

/// What to recover, and how far to go.
// Each flag is one of the command line's.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The image: POOL/IMAGE or POOL/NAMESPACE/IMAGE, or a volume's handle
    image: String,
    /// Do it; without this the plan is printed and nothing is done
    #[arg(long)]
    yes: bool,
    /// Only print the plan
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Also from an owner that lives; asks for the image's name again
    #[arg(long)]
    force: bool,
    /// The image's name again, for --force without a terminal
    #[arg(long, value_name = "IMAGE", requires = "force")]
    confirm: Option<String>,
    /// Fence every client on the owner's host, not only the owner
    #[arg(long)]
    host: bool,
    /// How long the fence lasts, in seconds
    #[arg(long, default_value_t = 3600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(60..))]
    expire: u64,
}

const DONE: &[Column] = &[
    Column("ID", "/id", Show::Plain),
    Column("IMAGE", "/image", Show::Plain),
    Column("FENCED", "/fence", Show::Plain),
    Column("RESULT", "/result", Show::Plain),
];

pub(super) fn run(admin: &Admin, ceph: &CephArgs, wish: &RecoverArgs, format: Format) -> Result<ExitCode> {
    let image = ceph.image(&wish.image);
    let options = FenceOptions { force: wish.force, host: wish.host, expire: wish.expire };
    let kubernetes = Kubernetes::at_hand();
    let state = |node: &str| kubernetes.as_ref().map(|kubernetes| kubernetes.node_state(node));
    let bar = progress::count("looking for other images of the same client");
    let plan = admin.plan_recovery(&image, options, &state, &|done, all| bar.at(done, all))?;
    bar.end();
    let Some(plan) = plan else {
        let text = format!("{image}: nobody holds a lock; nothing to recover");
        say(format, &json!({"image": image, "locked": false}), &text)?;
        return Ok(ExitCode::SUCCESS);
    };
    if !wish.yes {
        say(format, &serde_json::to_value(&plan)?, &text_of(&plan))?;
        if !wish.dry_run && plan.refused.is_none() && format == Format::Table {
            anstream::println!("Nothing was done. Add --yes to do it.");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if wish.force && !confirmed(wish, &plan)? {
        anstream::eprintln!("not confirmed; nothing was done");
        return Ok(ExitCode::from(REFUSED));
    }
    if format == Format::Table {
        anstream::println!("{}", text_of(&plan));
    }
    let report = admin.recover(&image, &plan)?;
    let mut value = serde_json::to_value(&report)?;
    value["result"] = "recovered".into();
    output::print(format, &value, DONE)?;
    if format == Format::Table {
        anstream::println!("To take the fence back: volumectl lock undo {}", report.id);
    }
    Ok(ExitCode::SUCCESS)
}

fn say(format: Format, value: &serde_json::Value, text: &str) -> Result<()> {
    match format {
        Format::Json | Format::Yaml => output::print(format, value, &[]),
        _ => writeln!(anstream::stdout(), "{text}").context("writing to standard output"),
    }
}

fn text_of(plan: &FencePlan) -> String {
    let owner = &plan.owner;
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let mut text = format!(
        "image      {}\nvolume     {}\nclaim      {}\nlock       {} {:?}\nowner      {} ({}), node {}\nalive      {:?}: {}\n",
        plan.image.image,
        or(&plan.image.volume),
        or(&plan.image.claim),
        owner.kind,
        owner.cookie,
        owner.address,
        owner.client,
        or(&owner.node),
        owner.alive,
        owner.evidence,
    );
    if plan.others.is_empty() {
        text.push_str("also hit   nothing: the owner has no other image open\n");
    } else {
        text.push_str(&format!("also hit   {} images that it has open:\n", plan.others.len()));
        plan.others.iter().for_each(|other| text.push_str(&format!("             {other}\n")));
    }
    text.push_str("steps\n");
    for (i, step) in plan.steps.iter().enumerate() {
        text.push_str(&format!("  {}. {step}\n", i + 1));
    }
    if let Some(why) = &plan.refused {
        text.push_str(&format!("refused    {why}\n"));
    }
    text
}

/// Whether the image's name was typed again.
fn confirmed(wish: &RecoverArgs, plan: &FencePlan) -> Result<bool> {
    let name = plan.image.image.rsplit('/').next().unwrap_or_default();
    let is = |typed: &str| typed == name || typed == plan.image.image;
    if let Some(typed) = &wish.confirm {
        return Ok(is(typed));
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Usage(
            "--force asks for the image's name again; without a terminal give --confirm IMAGE".into(),
        )
        .into());
    }
    anstream::eprint!(
        "{}\nThe owner may live, and what it has not written yet is lost. Type {name} to go on: ",
        text_of(plan)
    );
    let mut typed = String::new();
    input.lock().read_line(&mut typed).context("reading the answer")?;
    Ok(is(typed.trim()))
}
