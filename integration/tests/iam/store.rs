//! The policies of the account store: what is allowed in the bucket and what is not, case by case, and each word of them needed.

use std::collections::BTreeSet;

use outstation_agent::iam::parameters::example;
use outstation_agent::iam::policy::Policy;
use outstation_agent::iam::store::{Role, STORE_CALLS, example_bucket, store_policy};
use outstation_aws_sim::policy::checks::Check;
use outstation_aws_sim::policy::{Policies, Value};
use serde_json::Value as Json;

use crate::account::ACCOUNT;
use crate::cases::ADMINISTRATOR;
use crate::mutants::{Mutant, mutants};

pub fn agent() -> Policy {
    store_policy(&example().0, &example_bucket(), Role::Agent).expect("short")
}

pub fn node() -> Policy {
    store_policy(&example().0, &example_bucket(), Role::Node).expect("short")
}

struct Case {
    name: String,
    role: Role,
    /// Somebody has attached administrator rights as well.
    beside_all: bool,
    check: Check,
    allowed: bool,
}

struct Cases(Vec<Case>);

impl Cases {
    fn add(
        &mut self,
        name: &str,
        (role, beside_all): (Role, bool),
        action: &str,
        resource: &str,
        context: &[(&str, &str)],
        allowed: bool,
    ) {
        let account = if context.iter().any(|(key, _)| *key == "aws:ResourceAccount") {
            None
        } else {
            Some(("aws:ResourceAccount", ACCOUNT))
        };
        let context = context.iter().copied().chain(account);
        let check = Check {
            action: format!("s3:{action}"),
            resource: format!("arn:aws:s3:::{resource}"),
            context: context
                .map(|(key, text)| (key.to_owned(), Value::Text(text.to_owned())))
                .collect(),
            template: None,
        };
        let name = format!("{role:?} {name}");
        self.0.push(Case { name, role, beside_all, check, allowed });
    }
}

const HERE: &str = "example-outstation/prod";
const CREATE: &[(&str, &str)] = &[("s3:if-none-match", "*")];
const SWAP: &[(&str, &str)] = &[("s3:if-match", "\"0123\"")];
const STRANGER: &[(&str, &str)] = &[("aws:ResourceAccount", "210987654321")];

fn cases() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    let (agent, agent_beside_all) = ((Role::Agent, false), (Role::Agent, true));
    let (node, node_beside_all) = ((Role::Node, false), (Role::Node, true));
    let mut add = |name: &str, who, action, resource: &str, context: &[(&str, &str)], allowed| {
        cases.add(name, who, action, resource, context, allowed);
    };
    let object = |prefix: &str| format!("{HERE}/{prefix}/x");
    for prefix in ["guardrails", "state", "keys", "trust", "journal", "artifacts", "other"] {
        let reads = !["artifacts", "other"].contains(&prefix);
        add(&format!("reads {prefix}"), agent, "GetObject", &object(prefix), &[], reads);
        let listed = [("s3:prefix", format!("prod/{prefix}/x"))];
        let listed: Vec<_> = listed.iter().map(|(key, text)| (*key, text.as_str())).collect();
        add(&format!("lists {prefix}"), agent, "ListBucket", "example-outstation", &listed, reads);
        let writes = reads && prefix != "guardrails";
        let swaps = prefix == "state";
        add(&format!("creates in {prefix}"), agent, "PutObject", &object(prefix), CREATE, writes);
        add(&format!("swaps in {prefix}"), agent, "PutObject", &object(prefix), SWAP, swaps);
        add(&format!("overwrites in {prefix}"), agent, "PutObject", &object(prefix), &[], false);
        add(
            &format!("reads {prefix}, with rights"),
            agent_beside_all,
            "GetObject",
            &object(prefix),
            &[],
            true,
        );
        let may = !["guardrails", "artifacts"].contains(&prefix);
        add(
            &format!("creates in {prefix}, with rights"),
            agent_beside_all,
            "PutObject",
            &object(prefix),
            CREATE,
            may,
        );
        let over = ["other"].contains(&prefix);
        add(
            &format!("overwrites in {prefix}, with rights"),
            agent_beside_all,
            "PutObject",
            &object(prefix),
            &[],
            over,
        );
        let swaps = ["state", "other"].contains(&prefix);
        add(
            &format!("swaps in {prefix}, with rights"),
            agent_beside_all,
            "PutObject",
            &object(prefix),
            SWAP,
            swaps,
        );

        let reads = ["artifacts", "trust"].contains(&prefix);
        add(&format!("reads {prefix}"), node, "GetObject", &object(prefix), &[], reads);
        add(&format!("lists {prefix}"), node, "ListBucket", "example-outstation", &listed, reads);
        let never = ["keys", "state", "journal"].contains(&prefix);
        add(
            &format!("reads {prefix}, with rights"),
            node_beside_all,
            "GetObject",
            &object(prefix),
            &[],
            !never,
        );
        add(
            &format!("creates in {prefix}, with rights"),
            node_beside_all,
            "PutObject",
            &object(prefix),
            CREATE,
            false,
        );
    }
    for (role, with_rights) in [(agent, agent_beside_all), (node, node_beside_all)] {
        let list_all = [("s3:prefix", "")];
        add("lists everything", role, "ListBucket", "example-outstation", &list_all, false);
        add("lists without a prefix", role, "ListBucket", "example-outstation", &[], false);
        let trust = [("s3:prefix", "prod/trust/")];
        add("lists another bucket", role, "ListBucket", "other", &trust, false);
        add("lists old versions", role, "ListBucketVersions", "example-outstation", &trust, false);
        let strange = [trust[0], STRANGER[0]];
        add(
            "lists a bucket of the same name",
            role,
            "ListBucket",
            "example-outstation",
            &strange,
            false,
        );
        add("reads another bucket", role, "GetObject", "other/prod/trust/x", &[], false);
        add(
            "reads another prefix",
            role,
            "GetObject",
            "example-outstation/test/trust/x",
            &[],
            false,
        );
        add(
            "reads a bucket of the same name",
            role,
            "GetObject",
            &object("trust"),
            STRANGER,
            false,
        );
        add("reads tags", role, "GetObjectTagging", &object("trust"), &[], false);
        add("deletes", role, "DeleteObject", &object("trust"), &[], false);
        for action in ["DeleteObject", "DeleteObjectVersion"] {
            add(
                &format!("{action}, with rights"),
                with_rights,
                action,
                &object("trust"),
                &[],
                false,
            );
            add(
                &format!("{action} elsewhere, with rights"),
                with_rights,
                action,
                "other/x",
                &[],
                true,
            );
        }
        add("creates elsewhere, with rights", with_rights, "PutObject", "other/x", CREATE, true);
        add("overwrites elsewhere, with rights", with_rights, "PutObject", "other/x", &[], true);
        add("reads elsewhere, with rights", with_rights, "GetObject", "other/x", &[], true);
    }
    let strange = [CREATE[0], STRANGER[0]];
    add(
        "creates in a bucket of the same name",
        agent,
        "PutObject",
        &object("state"),
        &strange,
        false,
    );
    add("creates in another bucket", agent, "PutObject", "other/prod/state/x", CREATE, false);
    add("changes who may read", agent, "PutObjectAcl", &object("state"), CREATE, false);
    let bypass = "BypassGovernanceRetention";
    add("unlocks, with rights", agent_beside_all, bypass, &object("journal"), &[], false);
    add("unlocks elsewhere, with rights", agent_beside_all, bypass, "other/x", &[], true);
    add(
        "changes who may read, with rights",
        agent_beside_all,
        "PutObjectAcl",
        &object("guardrails"),
        &[],
        true,
    );
    cases.0
}

fn failures(cases: &[Case], agent: &str, node: &str) -> Vec<String> {
    let parse = |documents: &[&str]| Policies::parse(documents.iter().copied()).expect("valid");
    let of = |document: &str| [parse(&[document]), parse(&[document, ADMINISTRATOR])];
    let (agent, node) = (of(agent), of(node));
    let fails = |case: &&Case| {
        let policies = match case.role {
            Role::Agent => &agent[usize::from(case.beside_all)],
            Role::Node => &node[usize::from(case.beside_all)],
        };
        policies.judge(&case.check).allowed != case.allowed
    };
    cases.iter().filter(fails).map(|case| case.name.clone()).collect()
}

#[test]
fn every_case_of_the_account_store_ends_as_it_must() {
    let cases = cases();
    let failures = failures(&cases, &agent().to_json(), &node().to_json());
    assert!(failures.is_empty(), "{failures:#?}");
    let names: BTreeSet<(&str, bool)> =
        cases.iter().map(|case| (case.name.as_str(), case.beside_all)).collect();
    assert_eq!(names.len(), cases.len(), "each has a name of its own");
    assert!(cases.len() >= 100, "{}", cases.len());
}

/// What survives, with why nothing can notice it.
#[rustfmt::skip]
const SURVIVORS: &[(&str, &str)] = &[];

#[test]
fn every_word_of_the_account_stores_policies_is_needed() {
    let parse = |text: String| serde_json::from_str::<Json>(&text).expect("JSON");
    let (agent, node) = (parse(agent().to_json()), parse(node().to_json()));
    let cases = cases();
    let (mut caught, mut survivors) = (0, BTreeSet::new());
    let of_agent = mutants(&agent, "store")
        .into_iter()
        .map(|Mutant { name, policy }| (policy.to_string(), node.to_string(), name));
    let of_node = mutants(&node, "node-store")
        .into_iter()
        .map(|Mutant { name, policy }| (agent.to_string(), policy.to_string(), name));
    for (agent, node, name) in of_agent.chain(of_node) {
        match failures(&cases, &agent, &node).is_empty() {
            true => drop(survivors.insert(name)),
            false => caught += 1,
        }
    }
    println!("{caught} mutants caught, {} survive", survivors.len());
    assert!(caught >= 60, "{caught}");
    let known: BTreeSet<String> = SURVIVORS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(survivors, known, "what survives must stand in SURVIVORS with a reason");
}

#[test]
fn each_operation_of_the_table_is_allowed_where_it_says() {
    for call in STORE_CALLS {
        let policy = match call.role {
            Role::Agent => agent(),
            Role::Node => node(),
        };
        let document = policy.to_json();
        for prefix in call.prefixes {
            let below = format!("prod/{prefix}/*");
            assert!(document.contains(&below), "{} {prefix}", call.operation);
        }
        assert!(document.contains(call.action) && !call.why.is_empty(), "{call:?}");
    }
}
