//! `outstation-agent journal verify|show`: for whoever runs the host, and for an auditor who has the account
//! store only.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use outstation_protocol::GroupName;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::record::{Event, Record};
use super::store::Store;
use super::verify::{self, Kept, Verified};
use crate::account::config::Config;
use crate::hint::Hinted;
use crate::store::{Access, AccountStore, Location, there};

#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Hold all records against each other and against the anchors. Exit code 1: something was changed or
    /// is missing.
    Verify(Where),
    /// Print the records, oldest first.
    Show {
        #[command(flatten)]
        place: Where,
        /// Only what names this group
        #[arg(long)]
        group: Option<GroupName>,
        /// Calls that only look, too
        #[arg(long)]
        looks: bool,
        /// The lines as they are, one JSON object each
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Where {
    /// The account agent's configuration: its disk, and the account store
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The account store only: what an auditor can read
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    store: Option<Location>,
}

impl Where {
    fn read(&self) -> Result<Vec<Kept>> {
        let (disk, store) = match (&self.config, &self.store) {
            (Some(config), _) => {
                let config = Config::load(config)?;
                (Some(config.state.join("journal")), config.open_store()?)
            }
            (None, Some(store)) => (None, AccountStore::open(store, Access::of_environment(None))?),
            (None, None) => bail!("clap asks for one of the two"),
        };
        there(&store, "name its folder, or the configuration that does")?;
        verify::read(disk.as_deref(), &Store::new(store)).context("read the journal")
    }
}

pub fn run(command: &JournalCommand) -> Result<ExitCode> {
    match command {
        JournalCommand::Verify(place) => run_verify(&place.read()?),
        JournalCommand::Show { place, group, looks, json } => {
            show(&place.read()?, group.as_ref(), *looks, *json)
        }
    }
}

fn run_verify(kept: &[Kept]) -> Result<ExitCode> {
    let all: Vec<Verified> = kept.iter().map(verify::verify).collect();
    if all.is_empty() {
        println!("There is no journal yet.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut faults = 0;
    for chain in &all {
        let elsewhere = match chain.elsewhere {
            0 => String::new(),
            count => format!(", {count} of them on another agent's disk"),
        };
        println!(
            "{}  {} records, {} anchored{elsewhere}",
            chain.chain, chain.records, chain.anchors
        );
        for fault in &chain.faults {
            println!("  FAULT  {fault}");
        }
        faults += chain.faults.len();
    }
    let succession = verify::verify_succession(&all, kept);
    for fault in &succession {
        println!("FAULT  {fault}");
    }
    faults += succession.len();
    if faults == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    Err(Hinted::error(
        format!("the journal is not as it was written: {faults} faults"),
        "the records before the first fault stand; compare with AWS CloudTrail what came after, and keep disk \
         and account store as they are",
    ))
}

fn show(kept: &[Kept], group: Option<&GroupName>, looks: bool, json: bool) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    for chain in kept {
        let mut written = Ok(());
        let walked = verify::walk(chain, |record, _| {
            let is_wanted = (looks || !matches!(record.event, Event::Look { .. }))
                && group.is_none_or(|group| names(&record.event, group));
            if is_wanted && written.is_ok() {
                let line = if json {
                    serde_json::to_string(record).expect("plain values always serialize")
                } else {
                    line(record)
                };
                written = writeln!(out, "{line}");
            }
        });
        written?;
        walked.map_err(|why| {
            Hinted::error(
                format!("chain {}: {why}", chain.chain),
                "what follows is not to be trusted: outstation-agent journal verify shows more",
            )
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn names(event: &Event, wanted: &GroupName) -> bool {
    match event {
        Event::Order { group, .. } | Event::Action { group, .. } => group == wanted,
        // The body is a form: values that are names stand in it as they are.
        Event::Call { request, .. } => request.contains(wanted.as_str()),
        Event::Outcome { .. } | Event::Look { .. } => false,
        Event::Began { .. } | Event::Started { .. } | Event::Skipped { .. } => true,
    }
}

fn line(record: &Record) -> String {
    let at = i64::try_from(record.at_unix_secs).ok();
    let at = at.and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok());
    let at = at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| "?".to_owned());
    let said = |status: &Option<u16>, code: &Option<String>, request_id: &Option<String>| {
        let status = status.map_or("no answer".to_owned(), |status| format!("HTTP {status}"));
        let code = code.as_ref().map(|code| format!(" {code}")).unwrap_or_default();
        let id = request_id.as_ref().map(|id| format!(", request {id}")).unwrap_or_default();
        format!("{status}{code}{id}")
    };
    let text = match &record.event {
        Event::Began { data_plane, follows, reason } => {
            let follows = follows.as_ref().map_or("no other".to_owned(), |anchor| {
                format!("record {} of {}", anchor.seq, anchor.chain)
            });
            format!("chain begins   {data_plane}, follows {follows}: {reason}")
        }
        Event::Started { release, pid } => format!("agent started  release {release}, pid {pid}"),
        Event::Order { group, generation, digest, refused: None, .. } => {
            format!("accepted       {group} generation {generation} {}", digest.short())
        }
        Event::Order { group, generation, digest, refused: Some(rule), message } => format!(
            "refused        {group} generation {generation} {} by {rule:?}: {message}",
            digest.short()
        ),
        Event::Action { group, generation, action, .. } => {
            format!("does           {group} generation {generation}: {action}")
        }
        Event::Call { call, request, .. } => format!("calls          {call} {request}"),
        Event::Outcome { of, status, code, request_id } => {
            format!("call {of} ended  {}", said(status, code, request_id))
        }
        Event::Look { call, status, code, request_id, .. } => {
            format!("looked         {call} {}", said(status, code, request_id))
        }
        Event::Skipped { refusals, looks } => {
            format!("not written    {refusals} refusals and {looks} looks, one by one")
        }
    };
    format!("{at} {:>6}  {text}", record.seq)
}
