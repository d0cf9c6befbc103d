//! Orders in a file, on their way from one signer to the next: one envelope a line. `apply --out`
//! writes one, `order sign` adds a signature, `order put` hands it to the broker.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write};
use std::path::Path;

use anyhow::Context as _;

use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::GroupName;
use outstation_protocol::order::Order;
use outstation_protocol::signing::Signers;

use crate::admin::Admin;
use crate::apply::{self, ApplyOptions, Consent, Outcome};
use crate::context::{Context, write_atomically};
use crate::message::Failure;
use crate::plan::{self, Newest, counted};
use crate::signing::{Signing, Trust};

/// 500 groups at their usual 2 KiB are 1 MiB.
const ORDER_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

pub fn write_new(path: &Path, envelopes: &[Envelope]) -> anyhow::Result<()> {
    let shown = path.display();
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let what = format!("{shown} is there already, and is not overwritten");
            return Err(Failure::new(what, "name another file for the orders").into());
        }
        other => other.with_context(|| format!("create {shown}"))?,
    };
    file.write_all(&lines(envelopes)).with_context(|| format!("write {shown}"))
}

fn lines(envelopes: &[Envelope]) -> Vec<u8> {
    let mut text = Vec::new();
    for envelope in envelopes {
        text.extend(envelope.to_json());
        text.push(b'\n');
    }
    text
}

/// What is in the file, if all of it is orders of this context's account.
pub fn read(path: &Path, context: &Context) -> anyhow::Result<Vec<(Order, Envelope)>> {
    let shown = path.display();
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(ORDER_FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .with_context(|| format!("read the orders {shown}"))?;
    let hint = "it must be a file that `outstation apply --out FILE` has written";
    if text.len() as u64 > ORDER_FILE_BYTES_MAX {
        let what = format!("{shown} has more than {ORDER_FILE_BYTES_MAX} bytes");
        return Err(Failure::new(what, hint).into());
    }
    let mut orders: Vec<(Order, Envelope)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let wrong =
            |what: String| Failure::new(format!("line {} of {shown}: {what}", index + 1), hint);
        let envelope =
            Envelope::from_json(line.as_bytes()).map_err(|error| wrong(error.to_string()))?;
        let order = Order::from_envelope(&envelope).map_err(|error| wrong(error.to_string()))?;
        if order.tenant != context.tenant || order.data_plane != context.data_plane() {
            return Err(Failure::new(
                format!("{shown} is for {} of tenant {}", order.data_plane, order.tenant),
                "take the context of that account",
            )
            .into());
        }
        if orders.iter().any(|(other, _)| other.group == order.group) {
            return Err(wrong(format!("a second order for {}", order.group)).into());
        }
        orders.push((order, envelope));
    }
    if orders.is_empty() {
        return Err(Failure::new(format!("{shown} holds no order"), hint).into());
    }
    Ok(orders)
}

fn signers(context: &Context) -> Result<&Signers, Failure> {
    context.signers.as_ref().ok_or_else(|| {
        Failure::new(
            "the context does not say who the signers are",
            "copy [signers] of the account's guardrails into it",
        )
    })
}

/// Shows what the orders would change, and adds a signature to each.
pub async fn sign(
    context: &Context,
    path: &Path,
    yes: bool,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let signers = signers(context)?;
    let mut orders = read(path, context)?;
    let signing = Signing::of(context)?;
    signing.check()?;
    let trust = signing.trust(context);
    let newest = Admin::connect(context).await?.newest(&trust).await?;
    look(&orders, &newest, &trust, out)?;
    let question = match (yes, ApplyOptions::is_interactive()) {
        (true, _) => Consent::Given,
        (false, true) => {
            let count = counted(orders.len() as u64, "order");
            Consent::AskYes(format!("Sign {count}? [y/N] "))
        }
        (false, false) => Consent::Refused(Failure::new(
            "nobody can be asked whether this is to be signed",
            "read the plan above, then add --yes if that is meant",
        )),
    };
    if !apply::ask(question)? {
        return Ok(Outcome::Declined);
    }
    for (order, envelope) in &mut orders {
        signing.sign(envelope)?;
        // Also those of the others: whoever signs beneath a wrong signature is told now.
        let have = signers.valid(envelope).map_err(|error| {
            let what = format!("the order for {}: {error}", order.group);
            Failure::new(what, "have it made anew: `outstation apply --out FILE`")
        })?;
        let names: Vec<String> = have.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "{}: generation {} signed by {}; {} of {}",
            order.group,
            order.generation,
            names.join(", "),
            have.len(),
            signers.threshold()
        )
        .context("print the orders")?;
    }
    let envelopes: Vec<Envelope> = orders.into_iter().map(|(_, envelope)| envelope).collect();
    write_atomically(path, &lines(&envelopes))?;
    Ok(Outcome::Written(path.to_owned()))
}

/// Nobody signs what follows from something that they have not seen.
fn look(
    orders: &[(Order, Envelope)],
    newest: &BTreeMap<GroupName, Newest>,
    trust: &Trust,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<()> {
    for (Order { group, generation, parent, .. }, _) in orders {
        let present = newest.get(group);
        let follows = present.map(|newest| (newest.generation.next(), Some(newest.digest)));
        if follows.unwrap_or((outstation_protocol::Generation::FIRST, None))
            != (*generation, *parent)
        {
            return Err(Failure::new(
                format!("generation {generation} of {group} does not follow what is there now"),
                "somebody applied meanwhile: have it made anew, `outstation apply --out FILE`",
            )
            .into());
        }
    }
    let concerns = |group: &GroupName| orders.iter().any(|(order, _)| order.group == *group);
    trust.check(newest.iter().filter(|(group, _)| concerns(group)))?;
    let plan = plan::plan_orders(orders.iter().map(|(order, _)| order), newest);
    write!(out, "{}", plan::render::text(&plan)).context("print the plan")
}

/// Hands orders that enough signers have signed to the broker, and follows them.
pub async fn put(
    context: &Context,
    path: &Path,
    options: &ApplyOptions,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Outcome> {
    let signers = signers(context)?;
    let orders = read(path, context)?;
    for (order, envelope) in &orders {
        signers.verify(envelope).map_err(|error| {
            let what = format!("the order for {} cannot be put yet: {error}", order.group);
            Failure::new(
                what,
                format!("`outstation order sign {}` adds a signature", path.display()),
            )
        })?;
    }
    let admin = Admin::connect(context).await?;
    apply::put_all(&admin, &orders, options, out).await
}
