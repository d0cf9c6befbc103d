//! `outstation-agent adopt`: a person decides, group by group, whether the account or its ledger is
//! right when they contradict each other. The running agent sees the decision at its next look.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use outstation_protocol::GroupName;

use super::aws::Aws;
use super::config::Config;
use super::floor::{Contradiction, Floor, Floors, Tag, contradictions};
use super::guardrails::Guardrails;
use super::ledger::Ledger;
use crate::clock;
use crate::hint::Hinted;
use crate::store::there;

/// There is something to decide and nothing was: `--dry-run`, or groups that need more than a yes.
const EXIT_UNDECIDED: u8 = 2;

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The account agent's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Decide without asking
    #[arg(long)]
    yes: bool,
    /// Only show what would be decided
    #[arg(long)]
    dry_run: bool,
    /// The ledger is right about this group, and its tag is wrong: the agent rewrites the tag
    #[arg(long, value_name = "GROUP")]
    from_ledger: Vec<GroupName>,
}

pub async fn run(args: AdoptArgs) -> Result<ExitCode> {
    let config = Config::load(&args.config)?;
    let store = config.open_store()?;
    there(&store, "mount it, or correct store in the configuration")?;
    let guardrails = Guardrails::read(&store).map_err(|why| {
        Hinted::error(
            format!("the account has no valid guardrails: {why}"),
            "they say which AutoScaling groups are ours: mend them first",
        )
    })?;
    let mut ledger = Ledger::open(&store).context("open the ledger")?;
    let aws = Aws::connect(&config, None).await;
    aws.check_account(&config).await.context("ask STS whose account this is")?;
    let observed = aws.observe(&config.tenant, &guardrails).await.context("look at the account")?;

    let found = contradictions(ledger.accepted(), ledger.floors(), &observed);
    let found = config.profile.counts(found);
    let Decided { decisions, undecided } =
        decide(&found, ledger.floors(), &args.from_ledger, clock::unix_secs())?;
    if found.is_empty() {
        println!("Nothing to decide: account and ledger of {} agree.", config.data_plane());
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", show(&decisions, &undecided));
    if args.dry_run || decisions.is_empty() {
        return Ok(ExitCode::from(EXIT_UNDECIDED));
    }
    if !args.yes && !confirmed(decisions.len())? {
        println!("Nothing was decided; everything is held on.");
        return Ok(ExitCode::from(EXIT_UNDECIDED));
    }
    for Decision { contradiction, floor, .. } in decisions {
        let group = &contradiction.group;
        ledger.decide(floor).map_err(|error| {
            Hinted::error(
                format!("{group}: {:#}", anyhow::Error::from(error)),
                "what was decided before it stands; run adopt again",
            )
        })?;
        println!("decided  {group}");
    }
    println!("The agent takes it over at its next look; outstation-agent status shows it.");
    Ok(if undecided.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNDECIDED) })
}

/// A person's yes, on a terminal.
fn confirmed(groups: usize) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Hinted::error(
            "there is nobody to ask: this is no terminal",
            "add --yes, or --dry-run to look only",
        ));
    }
    let plural = if groups == 1 { "" } else { "s" };
    print!("Decide so for {groups} group{plural}? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[derive(Debug, PartialEq, Eq)]
struct Decided {
    decisions: Vec<Decision>,
    /// With what has to happen first.
    undecided: Vec<(Contradiction, String)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Decision {
    contradiction: Contradiction,
    floor: Floor,
    /// What follows from it, for people.
    follows: String,
}

/// What to remember of each contradiction. Pure.
fn decide(
    found: &[Contradiction],
    floors: &Floors,
    from_ledger: &[GroupName],
    now_unix_secs: u64,
) -> Result<Decided> {
    if let Some(stranger) = from_ledger.iter().find(|name| found.iter().all(|c| c.group != **name))
    {
        return Err(Hinted::error(
            format!("group {stranger} contradicts nothing, so there is nothing to decide"),
            "name groups that outstation-agent adopt --dry-run shows",
        ));
    }
    let mut decided = Decided { decisions: Vec::new(), undecided: Vec::new() };
    for contradiction in found {
        let Contradiction { group, ledger, tag } = contradiction;
        let before = floors.get(group);
        let of_ledger = from_ledger.contains(group);
        let floor = |generation, wrong_tag| Floor {
            group: group.clone(),
            generation,
            wrong_tag,
            decided_at_unix_secs: now_unix_secs,
        };
        let has_order = *ledger > before.and_then(|floor| floor.generation);
        let outcome = match (tag, ledger) {
            (Tag::Generation(tagged), Some(known)) if of_ledger && has_order => {
                let wrong = floor(before.and_then(|f| f.generation), Some(tagged.to_string()));
                Ok((wrong, format!("generation {known} goes on; the tag {tagged} is overwritten")))
            }
            (Tag::NoGeneration(text), Some(known)) if of_ledger && has_order => {
                let wrong = floor(before.and_then(|f| f.generation), Some(text.clone()));
                Ok((wrong, format!("generation {known} goes on; the tag {text:?} is overwritten")))
            }
            _ if of_ledger => Err("the ledger holds no order of it that could be right".to_owned()),
            (Tag::Generation(tagged), _) => Ok((
                floor(Some(*tagged), None),
                format!(
                    "nothing up to generation {tagged} is accepted any more; the group is left \
                     as it is until the next order"
                ),
            )),
            (Tag::NoGeneration(_), Some(_)) if has_order => {
                Err(format!("if the ledger is right, add --from-ledger {group}"))
            }
            (Tag::NoGeneration(_) | Tag::Missing, _) => Err(format!(
                "write the generation that was last applied into its tag \
                 outstation:generation (outstation describe {group} shows it)"
            )),
        };
        match outcome {
            Ok((floor, follows)) => {
                let contradiction = contradiction.clone();
                decided.decisions.push(Decision { contradiction, floor, follows });
            }
            Err(first) => decided.undecided.push((contradiction.clone(), first)),
        }
    }
    Ok(decided)
}

fn show(decisions: &[Decision], undecided: &[(Contradiction, String)]) -> String {
    let mut out = String::new();
    for Decision { contradiction, follows, .. } in decisions {
        out.push_str(&format!("{}\n  then     {follows}\n", contradiction.message()));
    }
    for (contradiction, first) in undecided {
        out.push_str(&format!("{}\n  first    {first}\n", contradiction.message()));
    }
    out
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
