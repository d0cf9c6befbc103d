//! Each verb: load the context, do it, print. What they print on standard output is their data.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use outstation_protocol::signing::SignerName;

use crate::admin::Admin;
use crate::apply::{self, ApplyOptions, Outcome};
use crate::args::{
    AgentRevoke, AgentVerb, AgentVerbs, Args, Follow, KeyCreate, KeyShow, KeyVerb, OrderVerb,
    OrderVerbs, Sign, Verb,
};
use crate::artifacts::Repo;
use crate::call;
use crate::clock;
use crate::context::{Context, Search};
use crate::dataplane;
use crate::dev;
use crate::environments;
use crate::events;
use crate::follow::{Fate, Followed};
use crate::key::{self, Key};
use crate::message::Failure;
use crate::orders;
use crate::plan::{self, render};
use crate::show;
use crate::signing::{Signing, Trust, no_key};

/// `plan`: there is something to do. (Exit code 1 is an error.)
const EXIT_CHANGES: u8 = 2;

pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let search = Search::from_process(args.context)?;
    match args.verb {
        Verb::Dev(verb) => dev::command::run(verb).await,
        Verb::Plan(verb) => {
            let context = signing_context(&search, verb.sign)?;
            let repo = Repo::load(&context.python, &verb.dir).await?;
            let declared = repo.declared()?;
            let signing = Signing::of(&context)?;
            let trust = signing.trust(&context);
            let newest = Admin::connect(&context).await?.newest(&trust).await?;
            let plan = plan::plan(&declared, &newest);
            trust.check(&newest)?;
            if verb.json {
                crate::message::print(format_args!("{}", render::json(&plan)));
            } else {
                let mut text = Vec::new();
                apply::print_plan(&plan, &signing, &mut text)?;
                crate::message::print(format_args!("{}", String::from_utf8_lossy(&text)));
            }
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
            let context = signing_context(&search, verb.follow.sign.clone())?;
            let options = apply_options(&verb.follow);
            let mut out = plan_out(&verb.follow);
            let outcome = apply::apply(&context, &verb.dir, &options, &mut *out).await?;
            finish(outcome, &verb.follow)
        }
        Verb::Destroy(verb) => {
            let context = signing_context(&search, verb.follow.sign.clone())?;
            let options = apply_options(&verb.follow);
            let mut out = plan_out(&verb.follow);
            let outcome =
                apply::destroy(&context, verb.group.as_ref(), &options, &mut *out).await?;
            finish(outcome, &verb.follow)
        }
        Verb::Describe(verb) => {
            let context = search.load()?;
            let admin = Admin::connect(&context).await?;
            let (mut group, link) = tokio::try_join!(admin.group(&verb.group), admin.link())?;
            group.look_at_signatures(&Trust::of_reader(&context));
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
            let (mut groups, link) = tokio::try_join!(admin.groups(), admin.link())?;
            if verb.json {
                let trust = Trust::of_reader(&context);
                groups.iter_mut().for_each(|group| group.look_at_signatures(&trust));
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
        Verb::Agent(AgentVerbs { verb: AgentVerb::Revoke(AgentRevoke { id }) }) => {
            let context = search.load()?;
            let agent = Admin::connect(&context).await?.revoke_agent(id.into()).await?;
            crate::message::print(format_args!(
                "{}: revoked; what it has accepted goes on in its account\n",
                agent.id
            ));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Dataplane(verbs) => dataplane::run(&search.load()?, verbs.verb).await,
        Verb::Environment(verbs) => environments::run(&search.load()?, verbs.verb).await,
        Verb::Events(verb) => events::run(&search.load()?, &verb).await,
        Verb::Call(verb) => call::run(&search.load()?, &verb).await,
        Verb::Order(OrderVerbs { verb: OrderVerb::Sign(verb) }) => {
            let context = signing_context(&search, verb.sign)?;
            let outcome =
                orders::sign(&context, &verb.file, verb.yes, &mut std::io::stdout()).await?;
            Ok(exit_of(&outcome))
        }
        Verb::Order(OrderVerbs { verb: OrderVerb::Put(verb) }) => {
            let context = search.load()?;
            let options = ApplyOptions {
                yes: false,
                confirm_destroy: None,
                follow: (!verb.no_wait).then(|| Duration::from_secs(verb.timeout)),
                interactive: false,
                out: None,
            };
            let outcome =
                orders::put(&context, &verb.file, &options, &mut std::io::stdout()).await?;
            end(outcome)
        }
        Verb::Key(verb) => key_verb(verb.verb, &search),
        Verb::Supervise(_) => unreachable!("taken before the runtime starts"),
    }
}

/// A context to sign with; from here on nobody else looks into this process.
fn signing_context(search: &Search, sign: Sign) -> anyhow::Result<Context> {
    key::shield_memory();
    let mut context = search.load()?;
    context.key = sign.key;
    context.trust_orders = sign.trust_order.into_iter().collect();
    Ok(context)
}

fn key_verb(verb: KeyVerb, search: &Search) -> anyhow::Result<ExitCode> {
    key::shield_memory();
    let (public, name) = match verb {
        KeyVerb::Create(KeyCreate { file, name }) => {
            let name = signer_name(name)?;
            let path = file.or_else(key::usual_place).context("name a file for the key")?;
            let public = key::create(&path)?.public();
            crate::message::print(format_args!("{} made: only you can read it\n", path.display()));
            if key::usual_place().as_ref() != Some(&path) {
                crate::message::print(format_args!(
                    "name it by --key, or by signing_key in the context\n"
                ));
            }
            (public, name)
        }
        KeyVerb::Show(KeyShow { file: Some(file), name }) => {
            (key::read(&file)?.public(), signer_name(name)?)
        }
        KeyVerb::Show(KeyShow { file: None, name }) => {
            let found = match search.find() {
                Ok(path) => key::find(&Context::read(&path)?)?,
                // A key can be shown before there is any context.
                Err(_) => key::of_person()?.map(Key::Held),
            };
            (found.ok_or_else(no_key)?.public(), signer_name(name)?)
        }
    };
    crate::message::print(format_args!("{}", key::introduction(&public, &name)));
    Ok(ExitCode::SUCCESS)
}

fn signer_name(name: Option<String>) -> anyhow::Result<SignerName> {
    let Some(name) = name else { return Ok(key::default_name()) };
    SignerName::try_from(name).map_err(|what| Failure::new(what, "for example ops@example").into())
}

fn apply_options(follow: &Follow) -> ApplyOptions {
    ApplyOptions {
        yes: follow.yes,
        confirm_destroy: follow.confirm_destroy,
        follow: (!follow.no_wait).then(|| Duration::from_secs(follow.timeout)),
        interactive: ApplyOptions::is_interactive(),
        out: follow.out.clone(),
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
    end(outcome)
}

fn exit_of(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::NothingToDo | Outcome::Put(_) | Outcome::Written(_) | Outcome::Followed(_) => {
            ExitCode::SUCCESS
        }
        Outcome::Declined => {
            eprintln!("Nothing was changed.");
            ExitCode::FAILURE
        }
    }
}

fn end(outcome: Outcome) -> anyhow::Result<ExitCode> {
    match outcome {
        Outcome::NothingToDo | Outcome::Put(_) | Outcome::Written(_) | Outcome::Declined => {
            Ok(exit_of(&outcome))
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
        Outcome::NothingToDo | Outcome::Declined | Outcome::Written(_) => {}
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
