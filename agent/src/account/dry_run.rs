//! `outstation-agent plan`: what the agent would do with the ledger, the guardrails and the account as
//! they are. Reads, and changes nothing. What nodes say only the running agent knows: replacements of
//! nodes that do not work are not planned here.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use outstation_protocol::status::Held;

use super::approvals::Approvals;
use super::aws::Aws;
use super::config::{Config, Profile};
use super::floor;
use super::guardrails::Guardrails;
use super::images::Images;
use super::ledger::Ledger;
use super::look::Eyes;
use super::plan::{self, Action, GroupPlan, Plan};
use super::scale_only::{self, Converged};
use crate::clock;
use crate::hint::Hinted;
use crate::store::there;

/// Something would be done.
const EXIT_CHANGES: u8 = 2;

#[derive(Args)]
pub struct PlanArgs {
    /// The account agent's configuration
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// As it would be without the broker: capacity is not lowered, and nothing ends
    #[arg(long)]
    offline: bool,
}

pub async fn run(args: PlanArgs) -> Result<ExitCode> {
    let config = Config::load(&args.config)?;
    let store = config.open_store()?;
    there(&store, "mount it, or correct store in the configuration")?;
    let mut guardrails = Guardrails::read(&store).map_err(|why| {
        Hinted::error(
            format!("the account has no valid guardrails: {why}"),
            "everything is held until they are mended, so nothing would be done",
        )
    })?;
    let ledger = Ledger::open(&store).context("open the ledger")?;
    let aws = Aws::connect(&config, None).await;
    aws.check_account(&config).await.context("ask STS whose account this is")?;
    let mut observed = Eyes::default()
        .look(&aws, &config, &guardrails, ledger.accepted(), clock::now())
        .await
        .context("look at the account")?;
    if config.profile == Profile::Manage {
        Images::default().look(&aws, &mut observed, &guardrails).await;
    }
    let (accepted, live) = (ledger.accepted(), !args.offline);
    let ending = accepted.iter().filter(|(_, accepted)| accepted.order.is_tombstone());
    guardrails.approvals = Approvals::read(&store, ending.map(|(group, _)| group));
    let mut plans = match config.profile {
        Profile::Manage => plan::plan(accepted, &observed, &Ok(guardrails), &config.tenant, live),
        Profile::ScaleOnly => {
            let none = Converged::new();
            scale_only::plan(accepted, &observed, &Ok(guardrails), &config.tenant, live, &none)
        }
    };
    let found = floor::contradictions(accepted, ledger.floors(), &observed);
    let found = config.profile.counts(found);
    floor::hold(&mut plans, accepted, &found);
    print!("{}", show(&plans));
    let changes = plans.values().any(|plan| !plan.actions.is_empty());
    Ok(if changes { ExitCode::from(EXIT_CHANGES) } else { ExitCode::SUCCESS })
}

fn show(plans: &Plan) -> String {
    let mut out = String::new();
    for (group, GroupPlan { actions, held, drift, rolling: _ }) in plans {
        if actions.is_empty() && held.is_empty() && drift.is_empty() {
            out.push_str(&format!("{group}: as ordered\n"));
            continue;
        }
        out.push_str(&format!("{group}:\n"));
        for change in drift {
            out.push_str(&format!("  drift  {change}\n"));
        }
        for action in actions {
            out.push_str(&format!("  would  {}\n", words(action)));
        }
        for Held { rule, message, hint, .. } in held {
            out.push_str(&format!("  held   by {rule}: {message}\n  hint   {hint}\n"));
        }
    }
    let calls: usize = plans.values().map(|plan| plan.actions.len()).sum();
    let plural = if calls == 1 { "" } else { "s" };
    out.push_str(&match calls {
        0 => "Nothing would be done.\n".to_owned(),
        calls => format!("{calls} call{plural} would be made; nothing was done.\n"),
    });
    out
}

/// An action as a person says it.
pub fn words(action: &Action) -> String {
    match action {
        Action::Create(shape) => {
            let nodes = bounds(shape.min, shape.max);
            let template = &shape.launch_template;
            format!(
                "create {}: {nodes} nodes, launch template {} version {}",
                shape.asg_name, template.name, template.version
            )
        }
        Action::Resize { asg_name, min, max, desired: _ } => {
            format!("change {asg_name} to {} nodes", bounds(*min, *max))
        }
        Action::SetDesired { asg_name, nodes } => {
            format!("set the desired capacity of {asg_name} to {nodes}")
        }
        Action::Track { asg_name, target } => format!("let {asg_name} keep {target}"),
        Action::TrackNothing { asg_name } => format!("delete the scaling policy of {asg_name}"),
        Action::UseTemplate { asg_name, launch_template } => format!(
            "change {asg_name} to launch template {} version {}",
            launch_template.name, launch_template.version
        ),
        Action::PutReadyHook { asg_name } => format!("put the ready hook of {asg_name}"),
        Action::StartRefresh { asg_name, launch_template, min_healthy_percent } => format!(
            "refresh the instances of {asg_name} to launch template {} version {}, at least \
             {min_healthy_percent} % healthy",
            launch_template.name, launch_template.version
        ),
        Action::CancelRefresh { asg_name } => format!("cancel the instance refresh of {asg_name}"),
        Action::Replace { instance, why, number: _ } => format!("replace {instance}: {why}"),
        Action::Place { asg_name, subnets, zones } => {
            let places = if subnets.is_empty() { zones } else { subnets };
            format!("place instances of {asg_name} in {}", places.join(", "))
        }
        Action::PutDrainHook { asg_name } => format!("put the drain hook of {asg_name}"),
        Action::Tag { asg_name, tags } => {
            let tags: Vec<String> =
                tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("tag {asg_name}: {}", tags.join(", "))
        }
        Action::DrainToZero { asg_name } => format!("drain {asg_name} to 0 nodes"),
        Action::Delete { asg_name } => format!("delete {asg_name}"),
    }
}

/// `3`, `2..10`.
fn bounds(min: u32, max: u32) -> String {
    if min == max { max.to_string() } else { format!("{min}..{max}") }
}

#[cfg(test)]
mod tests {
    use outstation_protocol::Generation;

    use super::*;
    use crate::account::testing::group;

    #[test]
    fn a_plan_says_what_would_be_done_and_what_is_held() {
        let asg_name = || "outstation-a".to_owned();
        let held = Held {
            generation: Some(Generation(2)),
            rule: "nodes_per_group_max".to_owned(),
            message: "90 nodes: more than 40".to_owned(),
            hint: "ask for more".to_owned(),
        };
        let changed = GroupPlan {
            drift: vec!["max size 10 -> 20".to_owned()],
            actions: vec![
                Action::Resize { asg_name: asg_name(), min: 2, max: 10, desired: None },
                Action::Tag {
                    asg_name: asg_name(),
                    tags: [("outstation:generation".to_owned(), "2".to_owned())].into(),
                },
            ],
            ..GroupPlan::default()
        };
        let plans: Plan = [
            (group("a"), changed),
            (group("b"), GroupPlan { held: vec![held], ..GroupPlan::default() }),
            (group("c"), GroupPlan::default()),
        ]
        .into();
        assert_eq!(
            show(&plans),
            "\
a:
  drift  max size 10 -> 20
  would  change outstation-a to 2..10 nodes
  would  tag outstation-a: outstation:generation=2
b:
  held   by nodes_per_group_max: 90 nodes: more than 40
  hint   ask for more
c: as ordered
2 calls would be made; nothing was done.
"
        );
        assert_eq!(show(&Plan::new()), "Nothing would be done.\n");
    }
}
