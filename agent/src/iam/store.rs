//! What the agent and its nodes may do in the bucket that holds the account store: one table of operations, and a policy for
//! each of the two roles. Pure.

use std::collections::BTreeMap;

use super::parameters::Scope;
use super::policy::{Effect, Policy, Statement, TooLong};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Agent,
    Node,
}

/// An operation of the account store, and what S3 asks IAM because of it.
#[derive(Debug, Clone, Copy)]
pub struct StoreCall {
    pub role: Role,
    /// Of [`crate::store::AccountStore`].
    pub operation: &'static str,
    pub action: &'static str,
    pub prefixes: &'static [&'static str],
    /// Completes "so that it …".
    pub why: &'static str,
}

const READ: &str = "s3:GetObject";
const LIST: &str = "s3:ListBucket";
const WRITE: &str = "s3:PutObject";

pub const STORE_CALLS: &[StoreCall] = &[
    StoreCall {
        role: Role::Agent,
        operation: "get",
        action: READ,
        prefixes: &["guardrails", "state", "keys", "trust", "journal"],
        why: "reads the guardrails, its ledger, its CA and its own anchors",
    },
    StoreCall {
        role: Role::Agent,
        operation: "list",
        action: LIST,
        prefixes: &["guardrails", "state", "keys", "trust", "journal"],
        why: "sees what another agent or a person has changed, and tells what is absent from what is denied",
    },
    StoreCall {
        role: Role::Agent,
        operation: "swap",
        action: WRITE,
        prefixes: &["state"],
        why: "puts an accepted order in the place of the one before it, naming that (If-Match)",
    },
    StoreCall {
        role: Role::Agent,
        operation: "create",
        action: WRITE,
        prefixes: &["state", "keys", "trust", "journal"],
        why: "writes once and never over: first orders, counted replacements, CA, root, anchors, segments (If-None-Match)",
    },
    StoreCall {
        role: Role::Node,
        operation: "get, size, read_at",
        action: READ,
        prefixes: &["artifacts", "trust"],
        why: "fetches what it is to serve, and whom it is to trust",
    },
    StoreCall {
        role: Role::Node,
        operation: "list",
        action: LIST,
        prefixes: &["artifacts", "trust"],
        why: "finds all roots, and tells what is absent from what is denied",
    },
];

/// Where the account store is: `s3://bucket/prefix`, checked already.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub name: String,
    /// Empty, or ends with a slash.
    pub prefix: String,
}

pub fn store_policy(scope: &Scope, bucket: &Bucket, role: Role) -> Result<Policy, TooLong> {
    let prefixes = |action: &str| {
        let mut prefixes: Vec<&str> = STORE_CALLS
            .iter()
            .filter(|call| call.role == role && call.action == action)
            .flat_map(|call| call.prefixes.iter().copied())
            .collect();
        let mut seen = Vec::new();
        prefixes.retain(|prefix| {
            !seen.contains(prefix) && {
                seen.push(*prefix);
                true
            }
        });
        prefixes
    };
    let arn = |key: &str| {
        let Bucket { name, prefix } = bucket;
        format!("arn:{}:s3:::{name}/{prefix}{key}", scope.partition.as_str())
    };
    let below = |prefixes: &[&str]| {
        prefixes.iter().map(|prefix| arn(&format!("{prefix}/*"))).collect::<Vec<_>>()
    };
    let own = |statement: Statement| {
        statement.when("StringEquals", "aws:ResourceAccount", [scope.account.as_str()])
    };
    let statement = |sid, effect, actions: &[&str], resource, why| Statement {
        sid,
        effect,
        action: actions.iter().map(|action| (*action).to_owned()).collect(),
        resource,
        condition: BTreeMap::new(),
        why,
    };
    let allow =
        |sid, action, resource, why| own(statement(sid, Effect::Allow, &[action], resource, why));
    let deny =
        |sid, actions: &[&str], resource, why| statement(sid, Effect::Deny, actions, resource, why);
    let bucket_itself = vec![format!("arn:{}:s3:::{}", scope.partition.as_str(), bucket.name)];
    let listed: Vec<String> =
        prefixes(LIST).iter().map(|prefix| format!("{}{prefix}/*", bucket.prefix)).collect();
    let list = allow(
        "ListStore",
        LIST,
        bucket_itself,
        "Only below the prefixes that it reads. Without this S3 says that what is absent is denied.",
    )
    .when("StringLike", "s3:prefix", listed);
    match role {
        Role::Agent => Policy::of(vec![
            allow(
                "ReadStore",
                READ,
                below(&prefixes(READ)),
                "What it decides by, and what it has written itself; in a bucket of this account: a name that is given up \
                 can be taken by others.",
            ),
            list,
            allow(
                "WriteStore",
                WRITE,
                below(&prefixes(WRITE)),
                "What it has accepted, its CA and its journal; how it may write there is in the denials.",
            ),
            deny(
                "NeverOver",
                &[WRITE],
                below(&["keys", "trust", "journal"]),
                "Keys, roots and anchors are created (If-None-Match) and never replaced, whoever else allows it.",
            )
            .when("Null", "s3:if-none-match", ["true"]),
            deny(
                "NeverBlindly",
                &[WRITE],
                below(&["state"]),
                "A write into the ledger names what it replaces (If-Match), or that nothing is there (If-None-Match).",
            )
            .when("Null", "s3:if-match", ["true"])
            .when("Null", "s3:if-none-match", ["true"]),
            deny(
                "NeverItsRules",
                &[WRITE],
                below(&["guardrails", "artifacts"]),
                "What it may do, and the code that runs, are other people's to write.",
            ),
            deny(
                "NeverGone",
                &["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"],
                vec![arn("*")],
                "Nothing of the account store is deleted by the agent, old versions and locked ones included.",
            ),
        ]),
        Role::Node => Policy::of(vec![
            allow(
                "ReadStore",
                READ,
                below(&prefixes(READ)),
                "What it serves, and the roots; in a bucket of this account.",
            ),
            list,
            deny(
                "NeverKeys",
                &["s3:*"],
                below(&["keys", "state", "journal"]),
                "The CA's key, the ledger and the journal are the account agent's alone, whatever else is attached to the role \
                 that user code may become.",
            ),
            deny(
                "NeverWrite",
                &[WRITE, "s3:DeleteObject", "s3:DeleteObjectVersion"],
                vec![arn("*")],
                "A node writes nothing into the account store.",
            ),
        ]),
    }
}

/// The bucket of the shipped examples and of the tests.
#[doc(hidden)]
pub fn example_bucket() -> Bucket {
    Bucket { name: "example-outstation".to_owned(), prefix: "prod/".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::parameters::example;
    use super::*;

    #[test]
    fn a_long_name_fits_and_an_empty_prefix_names_the_whole_bucket() {
        let (scope, _) = example();
        let long =
            |chars| Bucket { name: "b".repeat(63), prefix: format!("{}/", "p".repeat(chars)) };
        for role in [Role::Agent, Role::Node] {
            store_policy(&scope, &long(100), role).expect("as long as any that people give");
        }
        let error = store_policy(&scope, &long(500), Role::Agent).expect_err("told, and not cut");
        assert!(error.to_string().contains("AWS takes 6144"), "{error}");
        let whole = Bucket { name: "store".to_owned(), prefix: String::new() };
        let policy = store_policy(&scope, &whole, Role::Agent).expect("short").to_json();
        assert!(policy.contains("arn:aws:s3:::store/state/*"), "{policy}");
        assert!(policy.contains("\"guardrails/*\""), "{policy}");
    }
}
