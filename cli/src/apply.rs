//! `apply` and `destroy`: show the plan, get consent, write artifacts, put orders, follow them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::GroupName;
use outstation_protocol::order::Order;

use crate::admin::Admin;
use crate::artifacts::Repo;
use crate::clock;
use crate::context::Context;
use crate::follow::{self, Fate, Followed};
use crate::manifest::Manifest;
use crate::message::Failure;
use crate::orders;
use crate::plan::{self, Plan, counted, render};
use crate::progress;
use crate::signing::Signing;
use crate::view::{GroupView, OrderId};

#[derive(Debug, Clone)]
pub struct ApplyOptions {
    /// Destroys single groups without asking; not enough to destroy everything.
    pub yes: bool,
    /// How many groups may be destroyed without asking, exactly.
    pub confirm_destroy: Option<usize>,
    /// How long to follow the orders; `None`: not at all.
    pub follow: Option<Duration>,
    /// Whether a person can be asked.
    pub interactive: bool,
    /// Write the signed orders there instead of putting them: others have to sign too.
    pub out: Option<PathBuf>,
}

impl ApplyOptions {
    pub fn is_interactive() -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }
}

/// How it ended; the caller turns it into an exit code.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    NothingToDo,
    /// The person said no.
    Declined,
    /// Orders are in a file, for the next signer.
    Written(PathBuf),
    /// Orders are put and nobody waits for them.
    Put(BTreeMap<GroupName, OrderId>),
    Followed(Followed),
}

/// What must be asked before a plan is carried out. Pure.
#[derive(Debug, Clone, PartialEq)]
pub enum Consent {
    Given,
    AskYes(String),
    /// The person must type this number.
    AskNumber(usize, String),
    Refused(Failure),
}

pub fn consent(plan: &Plan, everything: bool, options: &ApplyOptions) -> Consent {
    let forbidden = plan.forbidden();
    if let Some(first) = forbidden.first() {
        return Consent::Refused(Failure::new(
            format!("{} would be destroyed, but prevent_destroy protects it", names(&forbidden)),
            format!("declare {first} with prevent_destroy=False, apply that, then remove it"),
        ));
    }
    let count = plan.counts().destroy;
    if count == 0 {
        return Consent::Given;
    }
    let groups = counted(count as u64, "group");
    match options.confirm_destroy {
        Some(confirmed) if confirmed == count => return Consent::Given,
        Some(confirmed) => {
            return Consent::Refused(Failure::new(
                format!("{groups} would be destroyed, not {confirmed}"),
                "read the plan again, then confirm the right number",
            ));
        }
        None => {}
    }
    if everything {
        let what = format!("this destroys EVERY server group of the account: {groups}");
        return if options.interactive {
            Consent::AskNumber(count, format!("{what}. Type {count} to go on: "))
        } else {
            let hint = format!("if that is meant, add --confirm-destroy {count}");
            Consent::Refused(Failure::new(what, hint))
        };
    }
    if options.yes {
        Consent::Given
    } else if options.interactive {
        Consent::AskYes(format!("{groups} will be destroyed. Go on? [y/N] "))
    } else {
        Consent::Refused(Failure::new(
            format!("{groups} would be destroyed and nobody can be asked"),
            "add --yes if that is meant",
        ))
    }
}

fn names(groups: &[&GroupName]) -> String {
    groups.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Applies the declarations in `dir`. What a person reads goes to `out`.
pub async fn apply(
    context: &Context,
    dir: &Path,
    options: &ApplyOptions,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let repo = Repo::load(&context.python, dir).await?;
    apply_repo(context, &repo, options, out).await
}

pub async fn apply_repo(
    context: &Context,
    repo: &Repo,
    options: &ApplyOptions,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let declared = repo.declared()?;
    // Only now: the declarations, which are anybody's code, have ended.
    let signing = Signing::of(context)?;
    check_signing(&signing, context, options)?;
    let trust = signing.trust(context);
    let admin = Admin::connect(context).await?;
    let newest = admin.newest(&trust).await?;
    trust.check(&newest)?;
    let plan = plan::plan(&declared, &newest);
    print_plan(&plan, &signing, out)?;
    if plan.is_empty() {
        // The plan says that nothing differs; artifacts may still be missing from a new store.
        repo.write(&context.artifacts).await?;
        let underway = underway(&admin.groups().await?, &repo.manifest);
        return match options.follow {
            Some(timeout) if !underway.is_empty() => {
                writeln!(out, "Ordered before, not there yet.").context("print the plan")?;
                follow_up(&admin, underway, timeout, out).await
            }
            Some(_) | None => Ok(Outcome::NothingToDo),
        };
    }
    if !ask(consent(&plan, plan.empties_the_account(), options))? {
        return Ok(Outcome::Declined);
    }
    repo.write(&context.artifacts).await?;
    let orders = plan::orders(&plan, &newest, context, clock::now_unix_secs());
    carry_out(&admin, orders, &signing, options, out).await
}

fn check_signing(
    signing: &Signing,
    context: &Context,
    options: &ApplyOptions,
) -> Result<(), Failure> {
    signing.check()?;
    match &context.signers {
        Some(signers) if signers.threshold() > 1 && options.out.is_none() => Err(Failure::new(
            format!("{} signers have to sign, and you are one", signers.threshold()),
            "apply with --out FILE; the others run `outstation order sign FILE`, then anyone \
             `outstation order put FILE`",
        )),
        Some(_) | None => Ok(()),
    }
}

/// The plan, and who signs what comes of it.
pub fn print_plan(
    plan: &Plan,
    signing: &Signing,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<()> {
    write!(out, "{}", render::text(plan)).context("print the plan")?;
    if !plan.is_empty() {
        writeln!(out, "{}", signing.sentence()).context("print the plan")?;
    }
    Ok(())
}

/// Destroys one group, or every group there is.
pub async fn destroy(
    context: &Context,
    only: Option<&GroupName>,
    options: &ApplyOptions,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let signing = Signing::of(context)?;
    check_signing(&signing, context, options)?;
    let trust = signing.trust(context);
    let admin = Admin::connect(context).await?;
    let newest = admin.newest(&trust).await?;
    if let Some(name) = only
        && !newest.contains_key(name)
    {
        let what = format!("there is no server group {name}");
        return Err(Failure::new(what, "`outstation get` lists those that there are").into());
    }
    trust.check(newest.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)))?;
    let plan = plan::plan_destroy(&newest, only);
    print_plan(&plan, &signing, out)?;
    if plan.is_empty() {
        return Ok(Outcome::NothingToDo);
    }
    if !ask(consent(&plan, only.is_none(), options))? {
        return Ok(Outcome::Declined);
    }
    let orders = plan::orders(&plan, &newest, context, clock::now_unix_secs());
    carry_out(&admin, orders, &signing, options, out).await
}

pub fn ask(consent: Consent) -> anyhow::Result<bool> {
    let read = |question: &str| {
        eprint!("{question}");
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).context("read the answer")?;
        anyhow::Ok(line.trim().to_owned())
    };
    match consent {
        Consent::Given => Ok(true),
        Consent::AskYes(question) => {
            Ok(["y", "yes"].contains(&read(&question)?.to_ascii_lowercase().as_str()))
        }
        Consent::AskNumber(count, question) => Ok(read(&question)? == count.to_string()),
        Consent::Refused(failure) => Err(failure.into()),
    }
}

async fn carry_out(
    admin: &Admin,
    orders: Vec<Order>,
    signing: &Signing,
    options: &ApplyOptions,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let mut signed = Vec::new();
    for order in orders {
        let mut envelope = order.clone().into_envelope();
        signing.sign(&mut envelope)?;
        signed.push((order, envelope));
    }
    let Some(path) = &options.out else { return put_all(admin, &signed, options, out).await };
    let envelopes: Vec<Envelope> = signed.into_iter().map(|(_, envelope)| envelope).collect();
    orders::write_new(path, &envelopes)?;
    writeln!(out, "{} written to {}", counted(envelopes.len() as u64, "order"), path.display())
        .context("print the orders")?;
    Ok(Outcome::Written(path.clone()))
}

pub async fn put_all(
    admin: &Admin,
    orders: &[(Order, Envelope)],
    options: &ApplyOptions,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let mut put = BTreeMap::new();
    for (order, envelope) in orders {
        let group = order.group.clone();
        let order = admin.put(order, envelope).await?;
        writeln!(out, "{group}: {order} put").context("print the orders")?;
        put.insert(group, order);
    }
    let Some(timeout) = options.follow else {
        return Ok(Outcome::Put(put));
    };
    follow_up(admin, put, timeout, out).await
}

/// Declared groups whose newest order the account has not brought about yet.
fn underway(groups: &[GroupView], manifest: &Manifest) -> BTreeMap<GroupName, OrderId> {
    groups
        .iter()
        .filter(|group| manifest.groups.iter().any(|declared| declared.name == group.name))
        .filter(|group| !group.has_converged(group.generation))
        .map(|group| (group.name.clone(), group.newest_order()))
        .collect()
}

async fn follow_up(
    admin: &Admin,
    put: BTreeMap<GroupName, OrderId>,
    timeout: Duration,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let spinner = progress::spinner("waiting for the account agent");
    let mut last: BTreeMap<GroupName, String> = BTreeMap::new();
    let followed = follow::follow(admin, put, timeout, |group| {
        let line = progress_line(group);
        if last.get(&group.name) != Some(&line) {
            spinner.set(line.clone());
            if !std::io::stderr().is_terminal() {
                eprintln!("{line}");
            }
            last.insert(group.name.clone(), line);
        }
    })
    .await?;
    drop(spinner);
    write!(out, "{}", outcome_text(&followed)).context("print the outcome")?;
    Ok(Outcome::Followed(followed))
}

/// Where a group stands, in one line.
pub fn progress_line(group: &GroupView) -> String {
    let order = group.shown().order;
    match &group.status {
        Some(status) => format!(
            "{}  {order}  {}  ready {} of {}  {}",
            group.name, status.phase, status.ready_nodes, status.desired_nodes, status.reason
        ),
        None => format!("{}  {order}  waiting for the account agent", group.name),
    }
}

/// One line for each group: how its order ended. [`not_converged`] says why and what to do.
pub fn outcome_text(followed: &Followed) -> String {
    let mut text = String::new();
    for (group, fate) in &followed.fates {
        let order = followed.orders.get(group).map_or(String::new(), |order| format!(" {order}"));
        text.push_str(&match fate {
            Fate::Converged => format!("{group}:{order} converged\n"),
            Fate::Refused(_) => format!("{group}:{order} refused\n"),
            Fate::Superseded(generation) => {
                format!("{group}:{order} superseded by generation {generation}\n")
            }
        });
    }
    for (group, order) in &followed.pending {
        text.push_str(&format!("{group}: {order} is pending\n"));
    }
    text
}

/// Why not all is as ordered, if so.
pub fn not_converged(followed: &Followed) -> Option<Failure> {
    let (mut what, mut hints) = (Vec::new(), Vec::new());
    for (group, fate) in &followed.fates {
        let order = followed.orders.get(group).map_or(String::new(), |order| format!(" {order}"));
        match fate {
            Fate::Converged => continue,
            Fate::Refused(refused) => {
                what.push(format!(
                    "{group}:{order} refused by {}: {}",
                    refused.rule, refused.message
                ));
                hints.push(refused.hint.clone());
            }
            Fate::Superseded(generation) => {
                what.push(format!("{group}:{order} superseded by generation {generation}"));
                hints.push("somebody else applied meanwhile: plan again, and look".to_owned());
            }
        }
    }
    for (group, order) in &followed.pending {
        what.push(format!("{group}: {order} has neither converged nor been refused in time"));
        hints.push(format!("`outstation describe {group}` says where it stands"));
    }
    hints.dedup();
    (!what.is_empty()).then(|| Failure::new(what.join("; "), hints.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Change;
    use outstation_protocol::ids::{Digest, EnvironmentName};
    use outstation_protocol::model::{EnvironmentRef, GroupKind, GroupSpec, Scaling};

    fn plan(changes: &[(&str, &str)]) -> Plan {
        let spec = GroupSpec {
            kind: GroupKind::Transform,
            scaling: Scaling::Provisioned { desired_nodes: 1 },
            environment: EnvironmentRef {
                name: EnvironmentName::try_from("e").expect("valid"),
                digest: Digest::of(b"e"),
            },
            bundle: Digest::of(b"b"),
            owner: None,
            description: None,
            tags: BTreeMap::new(),
            prevent_destroy: false,
            options: BTreeMap::new(),
        };
        let change = |kind: &str| match kind {
            "create" => Change::Create { spec: spec.clone() },
            "destroy" => Change::Destroy { spec: spec.clone() },
            "forbidden" => Change::Forbidden { spec: spec.clone() },
            other => unreachable!("{other}"),
        };
        let changes = changes
            .iter()
            .map(|(name, kind)| (GroupName::try_from(*name).expect("valid"), change(kind)))
            .collect();
        Plan { new_environments: BTreeMap::new(), changes, refused: BTreeMap::new() }
    }

    #[test]
    fn nothing_is_destroyed_unasked() {
        let create: &[(&str, &str)] = &[("a", "create")];
        let some: &[(&str, &str)] = &[("a", "create"), ("b", "destroy")];
        let all: &[(&str, &str)] = &[("a", "destroy"), ("b", "destroy")];
        let guarded: &[(&str, &str)] = &[("a", "create"), ("b", "forbidden")];
        for (changes, yes, confirm_destroy, interactive, wanted) in [
            (create, false, None, false, "given"),
            (some, false, None, false, "refused: add --yes if that is meant"),
            (some, true, None, false, "given"),
            (some, false, Some(1), false, "given"),
            (
                some,
                true,
                Some(2),
                true,
                "refused: read the plan again, then confirm the right number",
            ),
            (some, false, None, true, "ask yes"),
            (all, true, None, false, "refused: if that is meant, add --confirm-destroy 2"),
            (all, true, None, true, "ask 2"),
            (all, false, Some(2), false, "given"),
            (
                guarded,
                true,
                Some(1),
                true,
                "refused: declare b with prevent_destroy=False, apply that, then remove it",
            ),
        ] {
            let plan = plan(changes);
            let options =
                ApplyOptions { yes, confirm_destroy, follow: None, interactive, out: None };
            let seen = match consent(&plan, plan.empties_the_account(), &options) {
                Consent::Given => "given".to_owned(),
                Consent::AskYes(_) => "ask yes".to_owned(),
                Consent::AskNumber(count, _) => format!("ask {count}"),
                Consent::Refused(failure) => format!("refused: {}", failure.hint),
            };
            assert_eq!(seen, wanted, "{changes:?} {options:?}");
        }
    }
}
