//! The policies as they are shipped, as SECURITY.md explains them, and as the agent's sources call AWS: one and the same.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use outstation_agent::iam::calls::{CALLS, NEEDS_NO_PERMISSION};
use outstation_agent::iam::page::page;
use outstation_integration::{binaries, workspace};

use crate::account::{manage, scale_only};
use crate::store;

const EXAMPLE: &[&str] =
    &["--account", "123456789012", "--region", "eu-central-1", "--tenant", "example"];
const EXAMPLE_MANAGE: &[&str] = &[
    "--nodes-per-group-max",
    "40",
    "--launch-template",
    "lt-0123456789abcdef0",
    "--subnet",
    "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
    "--image",
    "ami-0123456789abcdef0",
    "--instance-type",
    "c7i.large,c7i.xlarge",
    "--agent-launch-template",
    "lt-0fedcba9876543210",
];

const EXAMPLE_STORE: &[&str] = &["--store", "s3://example-outstation/prod"];

fn agent(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(binaries().join("outstation-agent"))
        .arg("iam-policy")
        .args(arguments)
        .output()
        .expect("the agent has been built");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_is_shipped_is_what_the_agent_prints() {
    for (name, policy, more) in [
        ("scale-only", scale_only(), &[][..]),
        ("manage", manage(), EXAMPLE_MANAGE),
        ("store", store::agent(), EXAMPLE_STORE),
        ("node-store", store::node(), EXAMPLE_STORE),
    ] {
        let arguments = [&["--profile", name][..], EXAMPLE, more].concat();
        let (done, printed, said) = agent(&arguments);
        assert!(done, "{said}");
        assert_eq!(printed, policy.to_json(), "{name}");
        let path = workspace().join(format!("ami/iam/{name}.json"));
        let shipped = std::fs::read_to_string(&path).expect("it is shipped");
        let again = format!("outstation-agent iam-policy {} > {path:?}", arguments.join(" "));
        assert_eq!(shipped, printed, "review the difference, then: {again}");
    }
}

#[test]
fn security_md_gives_the_reason_of_every_statement() {
    let text = std::fs::read_to_string(workspace().join("SECURITY.md")).expect("the page");
    let between = text
        .split_once("<!-- iam-policy -->\n")
        .and_then(|(_, rest)| rest.split_once("<!-- /iam-policy -->"))
        .map(|(between, _)| between.trim());
    let arguments =
        [&["--profile", "manage", "--explain"][..], EXAMPLE, EXAMPLE_MANAGE, EXAMPLE_STORE]
            .concat();
    let wanted = page(&scale_only(), &manage(), Some([&store::agent(), &store::node()]));
    let command = format!("outstation-agent iam-policy {}", arguments.join(" "));
    assert!(
        between == Some(wanted.trim()),
        "put between the two iam-policy comments of SECURITY.md what this prints: {command}"
    );
    let (done, printed, said) = agent(&arguments);
    assert!(done && printed == wanted, "{said}");
}

#[test]
fn what_is_missing_or_too_much_is_said() {
    let without = |flag: &str| {
        let index = EXAMPLE_MANAGE.iter().position(|word| *word == flag).expect("it is there");
        let mut rest = EXAMPLE_MANAGE.to_vec();
        rest.drain(index..index + 2);
        [&["--profile", "manage"][..], EXAMPLE, &rest].concat()
    };
    for flag in EXAMPLE_MANAGE.iter().step_by(2) {
        let (done, printed, said) = agent(&without(flag));
        assert!(!done && printed.is_empty(), "{flag}");
        let wanted = format!("error: a manage policy needs {flag}\nhint: ");
        assert!(said.starts_with(&wanted), "{said}");
    }
    let scale_only =
        |more: &[&'static str]| [&["--profile", "scale-only"][..], EXAMPLE, more].concat();
    let store = |more: &[&'static str]| [&["--profile", "store"][..], EXAMPLE, more].concat();
    let whole = |more: &[&'static str]| {
        [&["--profile", "manage"][..], EXAMPLE, EXAMPLE_MANAGE, more].concat()
    };
    let many = vec!["subnet-0123456789abcdef0"; 60].join(",");
    let mut long = whole(&["--subnet"]);
    long.push(&many);
    for (arguments, words) in [
        (scale_only(&["--subnet", "subnet-01234567"]), "--subnet says nothing in a scale-only"),
        (scale_only(&["--explain"]), "both profiles together"),
        (scale_only(EXAMPLE_STORE), "--store says nothing in this policy"),
        (store(&[]), "needs --store"),
        (store(&["--store", "/var/store"]), "is a folder: IAM has no say there"),
        (store(&["--store", "s3://a*/b"]), "a bucket's name has 3-63"),
        (store(&["--store", "s3://abc/${aws:username}"]), "a prefix has parts of letters"),
        (
            store(&["--store", "s3://abc/d", "--image", "ami-01234567"]),
            "says nothing in a store policy",
        ),
        (scale_only(&["--prefix", "a*"]), "name_prefix \"a*\" is not"),
        (whole(&["--node-role", "outstation-agent"]), "the nodes' role is the agent's own"),
        (
            whole(&["--launch-template", "lt-0fedcba9876543210"]),
            "is the agent's own launch template",
        ),
        (whole(&["--instance-type", "c7i.*"]), "an instance type such as"),
        (long, "characters, and AWS takes 6144"),
    ] {
        let (done, printed, said) = agent(&arguments);
        assert!(!done && printed.is_empty() && said.contains(words), "{arguments:?}: {said}");
        assert!(said.contains("error: "), "{said}");
    }
}

/// `self.autoscaling.describe_auto_scaling_groups()` and the like, in all of the agent's sources but tests.
fn called() -> BTreeSet<String> {
    let mut called = BTreeSet::new();
    let mut folders = vec![workspace().join("agent/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of ours").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(".rs")
                && !path.to_string_lossy().ends_with("_tests.rs")
            {
                calls_in(&path, &mut called);
            }
        }
    }
    called
}

fn calls_in(path: &Path, called: &mut BTreeSet<String>) {
    let text: String =
        std::fs::read_to_string(path).expect("a source").split_whitespace().collect();
    let clients =
        [("autoscaling.", "autoscaling"), ("mutations.", "autoscaling"), ("self.sts.", "sts")];
    for (client, service) in clients {
        for (at, _) in text.match_indices(client) {
            let rest = &text[at + client.len()..];
            let Some((name, after)) = rest.split_once('(') else { continue };
            let is_call = after.starts_with(").")
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            // What every client has beside its calls.
            if is_call && !["clone", "config"].contains(&name) {
                let camel: String =
                    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
                called.insert(format!("{service}:{camel}"));
            }
        }
    }
}

#[test]
fn the_table_is_what_the_sources_call() {
    let called = called();
    assert!(called.contains("autoscaling:CompleteLifecycleAction"), "{called:?}");
    assert!(called.contains("sts:GetCallerIdentity"), "{called:?}");
    let table: BTreeSet<String> = CALLS.iter().map(|call| call.action.to_owned()).collect();
    let known: BTreeSet<String> = NEEDS_NO_PERMISSION
        .iter()
        .map(|action| (*action).to_owned())
        .chain(table.clone())
        .collect();
    let unknown: Vec<_> = called.difference(&known).collect();
    assert!(unknown.is_empty(), "called, and not in agent/src/iam/calls.rs: {unknown:?}");
    let needless: Vec<_> =
        table.difference(&called).filter(|action| action.starts_with("autoscaling:")).collect();
    assert!(needless.is_empty(), "in agent/src/iam/calls.rs, and never called: {needless:?}");
}
