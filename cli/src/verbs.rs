//! Each verb: load the context, do it, print. What they print on standard output is their data.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::admin::Admin;
use crate::apply::{self, ApplyOptions, Outcome};
use crate::args::{Args, Follow, Verb};
use crate::artifacts::Repo;
use crate::call;
use crate::clock;
use crate::context::Search;
use crate::dev;
use crate::events;
use crate::follow::{Fate, Followed};
use crate::message::Failure;
use crate::plan::{self, render};
use crate::show;

/// `plan`: there is something to do. (Exit code 1 is an error.)
const EXIT_CHANGES: u8 = 2;

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let search = Search::from_process(args.context)?;
    match args.verb {
        Verb::Dev(verb) => dev::command::run(verb).await,
        Verb::Plan(verb) => {
            let context = search.load()?;
            let admin = async { Admin::connect(&context).await?.newest().await };
            let (repo, newest) = tokio::try_join!(Repo::load(&context.python, &verb.dir), admin)?;
            let plan = plan::plan(&repo.declared()?, &newest);
            crate::message::print(format_args!(
                "{}",
                if verb.json { render::json(&plan) } else { render::text(&plan) }
            ));
            if let Some(group) = plan.forbidden().first() {
                return Err(Failure::new(
                    format!("{group} would be destroyed, but prevent_destroy protects it"),
                    "declare it with prevent_destroy=False, apply that, then remove it",
                )
                .into());
            }
            Ok(if plan.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CHANGES) })
        }
        Verb::Apply(verb) => {
            let context = search.load()?;
            let options = apply_options(&verb.follow);
            let mut out = plan_out(&verb.follow);
            let outcome = apply::apply(&context, &verb.dir, &options, &mut *out).await?;
            finish(outcome, &verb.follow)
        }
        Verb::Destroy(verb) => {
            let context = search.load()?;
            let options = apply_options(&verb.follow);
            let mut out = plan_out(&verb.follow);
            let outcome =
                apply::destroy(&context, verb.group.as_ref(), &options, &mut *out).await?;
            finish(outcome, &verb.follow)
        }
        Verb::Describe(verb) => {
            let context = search.load()?;
            let admin = Admin::connect(&context).await?;
            let (group, link) = tokio::try_join!(admin.group(&verb.group), admin.link())?;
            if verb.json {
                let json = show::json::group(&group, &link);
                crate::message::print(format_args!("{}\n", serde_json::to_string_pretty(&json)?));
            } else {
                crate::message::print(format_args!(
                    "{}",
                    show::describe(&group, &link, clock::now_unix_secs())
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Get(verb) => {
            let context = search.load()?;
            let admin = Admin::connect(&context).await?;
            let (groups, link) = tokio::try_join!(admin.groups(), admin.link())?;
            if verb.json {
                let json: Vec<_> =
                    groups.iter().map(|group| show::json::group(group, &link)).collect();
                crate::message::print(format_args!("{}\n", serde_json::to_string_pretty(&json)?));
            } else {
                crate::message::print(format_args!(
                    "{}",
                    show::groups(&groups, &link, clock::now_unix_secs())
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Agents(verb) => {
            let context = search.load()?;
            let agents = Admin::connect(&context).await?.agents().await?;
            if verb.json {
                crate::message::print(format_args!("{}\n", show::agents_json(&agents)));
            } else {
                crate::message::print(format_args!(
                    "{}",
                    show::agents(&agents, clock::now_unix_secs())
                ));
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Events(verb) => events::run(&search.load()?, &verb).await,
        Verb::Call(verb) => call::run(&search.load()?, &verb).await,
        Verb::Supervise(_) => unreachable!("taken before the runtime starts"),
    }
}

fn apply_options(follow: &Follow) -> ApplyOptions {
    ApplyOptions {
        yes: follow.yes,
        confirm_destroy: follow.confirm_destroy,
        follow: (!follow.no_wait).then(|| Duration::from_secs(follow.timeout)),
        interactive: ApplyOptions::is_interactive(),
    }
}

fn plan_out(follow: &Follow) -> Box<dyn std::io::Write + Send> {
    if follow.json { Box::new(std::io::stderr()) } else { Box::new(std::io::stdout()) }
}

fn finish(outcome: Outcome, follow: &Follow) -> anyhow::Result<ExitCode> {
    if follow.json {
        crate::message::print(format_args!("{}\n", outcome_json(&outcome)));
    }
    std::io::stdout().flush()?;
    match outcome {
        Outcome::NothingToDo | Outcome::Put(_) => Ok(ExitCode::SUCCESS),
        Outcome::Declined => {
            eprintln!("Nothing was changed.");
            Ok(ExitCode::FAILURE)
        }
        Outcome::Followed(followed) => match apply::not_converged(&followed) {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => Err(failure.into()),
        },
    }
}

fn outcome_json(outcome: &Outcome) -> serde_json::Value {
    use serde_json::{Map, Value, json};
    let group = |outcome: &str, more: Value| {
        let mut object = Map::new();
        object.insert("outcome".into(), outcome.into());
        if let Value::Object(more) = more {
            object.extend(more);
        }
        Value::Object(object)
    };
    let mut groups = Map::new();
    match outcome {
        Outcome::NothingToDo | Outcome::Declined => {}
        Outcome::Put(put) => {
            for (name, order) in put {
                groups.insert(name.to_string(), group("put", json!(order)));
            }
        }
        Outcome::Followed(Followed { orders, fates, pending }) => {
            for (name, fate) in fates {
                let order = json!(orders.get(name));
                let entry = match fate {
                    Fate::Converged => group("converged", order),
                    Fate::Refused(refused) => group("refused", json!(refused)),
                    Fate::Superseded(by) => {
                        let mut entry = group("superseded", order);
                        entry["by"] = json!(by);
                        entry
                    }
                };
                groups.insert(name.to_string(), entry);
            }
            for (name, order) in pending {
                groups.insert(name.to_string(), group("pending", json!(order)));
            }
        }
    }
    json!({"changed": !groups.is_empty(), "groups": groups})
}

/// The folder whose declarations a call is typed by, if there is one.
pub fn declarations_dir(explicit: Option<&PathBuf>) -> Option<PathBuf> {
    let here = PathBuf::from(".");
    explicit.cloned().or_else(|| here.join("features.py").is_file().then_some(here))
}
