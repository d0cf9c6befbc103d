//! Plans from tables, and what they look like.

use super::*;
use outstation_protocol::ids::{AccountId, Region, TenantId};
use outstation_protocol::model::{EnvironmentRef, GroupKind, Target};

fn name(raw: &str) -> GroupName {
    GroupName::try_from(raw).expect("a valid name")
}

fn spec(nodes: u32) -> GroupSpec {
    GroupSpec {
        kind: GroupKind::Transform,
        scaling: Scaling::Provisioned { desired_nodes: nodes },
        environment: EnvironmentRef {
            name: EnvironmentName::try_from("flights").expect("a valid name"),
            digest: Digest::of(b"environment"),
        },
        bundle: Digest::of(b"bundle"),
        owner: Some("ops".into()),
        description: None,
        tags: BTreeMap::new(),
        prevent_destroy: false,
        options: BTreeMap::new(),
    }
}

fn declared(groups: &[(&str, GroupSpec)]) -> Declared {
    let environment = DeclaredEnvironment {
        digest: Digest::of(b"environment"),
        python: "3.11".into(),
        outstation: "0.1.0".into(),
        packages: 2,
    };
    Declared {
        environments: groups
            .iter()
            .map(|(_, spec)| (spec.environment.name.clone(), environment.clone()))
            .collect(),
        groups: groups.iter().map(|(group, spec)| (name(group), spec.clone())).collect(),
    }
}

fn newest(groups: &[(&str, u64, Intent)]) -> BTreeMap<GroupName, Newest> {
    groups
        .iter()
        .map(|(group, generation, intent)| {
            let newest = Newest {
                generation: Generation(*generation),
                digest: Digest::of(group.as_bytes()),
                intent: intent.clone(),
                refused: None,
                present: None,
                signed: Signed::Unsigned,
            };
            (name(group), newest)
        })
        .collect()
}

fn check(declared: &Declared, newest: &BTreeMap<GroupName, Newest>, wanted: &str) {
    assert_eq!(render::text(&plan(declared, newest)), wanted);
}

#[test]
fn groups_are_created_updated_destroyed_and_left_alone() {
    let protected = GroupSpec { prevent_destroy: true, ..spec(1) };
    let mut tagged = spec(5);
    tagged.tags.insert("team".into(), "ml".into());
    tagged.bundle = Digest::of(b"other");
    tagged.owner = None;

    check(&declared(&[]), &newest(&[]), "Nothing is declared and nothing is there.\n");
    check(
        &declared(&[("delay", spec(3))]),
        &newest(&[]),
        "+ environment  flights        sha256:ba5285161ba6…  python 3.11, outstation 0.1.0, 2 packages\n\
         + transform    delay          3 nodes, environment flights\n\
         1 environment, 1 group to create.\n",
    );
    check(
        &declared(&[("delay", spec(3))]),
        &newest(&[("delay", 4, Intent::Apply(spec(3))), ("gone", 2, Intent::Destroy)]),
        "Nothing to do: 1 group as declared.\n",
    );
    check(
        &declared(&[("delay", tagged), ("new", spec(1)), ("same", spec(2))]),
        &newest(&[
            ("delay", 4, Intent::Apply(spec(3))),
            ("same", 1, Intent::Apply(spec(2))),
            ("new", 7, Intent::Destroy),
            ("old", 1, Intent::Apply(spec(2))),
            ("kept", 1, Intent::Apply(protected)),
        ]),
        "~ transform    delay          nodes 3 -> 5, functions sha256:1e6ed65d77d6… -> sha256:d9298a10d1b0…, owner ops -> none, tag team none -> ml\n\
         ! transform    kept           no longer declared, but protected by prevent_destroy\n\
         + transform    new            1 node, environment flights\n\
         - transform    old            2 nodes, environment flights, no longer declared\n\
         1 group to create; 1 group to update; 1 group to destroy; 1 group protected; 1 group unchanged.\n",
    );
}

#[test]
fn bounds_and_target_are_what_changes_of_an_autoscaled_group() {
    let between = |max_nodes: u32, percent: f64| {
        let target = Target::Cpu { percent: percent.try_into().expect("valid") };
        let scaling = Scaling::Autoscaling { min_nodes: 2, max_nodes, target };
        GroupSpec { scaling, ..spec(0) }
    };
    let newest = newest(&[
        ("delay", 4, Intent::Apply(spec(3))),
        ("same", 1, Intent::Apply(between(10, 60.0))),
        ("slower", 1, Intent::Apply(between(10, 60.0))),
    ]);
    check(
        &declared(&[
            ("delay", between(10, 60.0)),
            ("new", between(10, 62.5)),
            ("same", between(10, 60.0)),
            ("slower", between(8, 70.0)),
        ]),
        &newest,
        "~ transform    delay          nodes 3 -> 2..10, target none -> CPU 60 %\n\
         + transform    new            2..10 nodes at CPU 62.5 %, environment flights\n\
         ~ transform    slower         nodes 2..10 -> 2..8, target CPU 60 % -> CPU 70 %\n\
         1 group to create; 2 groups to update; 1 group unchanged.\n",
    );
}

#[test]
fn a_refused_order_is_asked_again() {
    let mut newest = newest(&[("delay", 4, Intent::Apply(spec(90)))]);
    newest.get_mut(&name("delay")).expect("there").refused = Some("nodes_per_group_max".into());
    check(
        &declared(&[("delay", spec(90))]),
        &newest,
        "~ transform    delay          as declared, asked again: refused by nodes_per_group_max\n\
         1 group to update.\n",
    );
    check(
        &declared(&[("delay", spec(3))]),
        &newest,
        "~ transform    delay          nodes 90 -> 3\n\
         \u{20}                             the newest order, generation 4, was refused by \
         nodes_per_group_max; the account is still as an older one says\n\
         1 group to update.\n",
    );
    let json = render::json(&plan(&declared(&[("delay", spec(3))]), &newest));
    let json: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
    assert_eq!(json["changes"][0]["refused"], "nodes_per_group_max");
}

/// A tombstone that the account refused leaves the group there.
#[test]
fn an_end_that_was_refused_is_asked_for_again() {
    let refused_end = |present: Option<GroupSpec>| {
        let mut newest = newest(&[("delay", 4, Intent::Destroy)]);
        let delay = newest.get_mut(&name("delay")).expect("there");
        (delay.refused, delay.present) = (Some("guardrail: destroy = never".into()), present);
        newest
    };
    let again = "- transform    delay          3 nodes, environment flights, no longer declared\n\
         \u{20}                             the newest order, generation 4, was refused by \
         guardrail: destroy = never; the account is still as an older one says\n\
         1 group to destroy.\n";
    check(&declared(&[]), &refused_end(Some(spec(3))), again);
    let destroy = plan_destroy(&refused_end(Some(spec(3))), Some(&name("delay")));
    assert_eq!(render::text(&destroy), again);
    let protected = GroupSpec { prevent_destroy: true, ..spec(3) };
    assert_eq!(plan(&declared(&[]), &refused_end(Some(protected))).counts().forbidden, 1);
    // Nothing was ever there.
    check(&declared(&[]), &refused_end(None), "Nothing is declared and nothing is there.\n");
    // Declared again, it is an order like any other.
    check(
        &declared(&[("delay", spec(3))]),
        &refused_end(Some(spec(3))),
        "+ environment  flights        sha256:ba5285161ba6…  python 3.11, outstation 0.1.0, 2 packages\n\
         + transform    delay          3 nodes, environment flights\n\
         \u{20}                             the newest order, generation 4, was refused by \
         guardrail: destroy = never; the account is still as an older one says\n\
         1 environment, 1 group to create.\n",
    );
}

#[test]
fn an_empty_declaration_is_noticed() {
    let present = newest(&[("a", 1, Intent::Apply(spec(1))), ("b", 1, Intent::Apply(spec(1)))]);
    for (groups, empties) in
        [(vec![], true), (vec![("a", spec(1))], false), (vec![("c", spec(1))], false)]
    {
        assert_eq!(plan(&declared(&groups), &present).empties_the_account(), empties, "{groups:?}");
    }
    assert!(!plan(&declared(&[]), &newest(&[])).empties_the_account());
    let only = plan_destroy(&present, Some(&name("a")));
    assert_eq!(only.changes.len(), 1);
}

#[test]
fn an_order_follows_the_newest_by_one() {
    let context = Context {
        tenant: TenantId::try_from("dev").expect("valid"),
        account: AccountId::try_from("123456789012").expect("valid"),
        region: Region::try_from("eu-central-1").expect("valid"),
        python: "/python".into(),
        artifacts: "/store".into(),
        broker: crate::context::Endpoint {
            url: "https://127.0.0.1:1".into(),
            ca: "/root.pem".into(),
            server_name: "broker.outstation".into(),
            token_file: "/token".into(),
        },
        callers: None,
        signing_key: None,
        unsigned_orders: Default::default(),
        signers: None,
        key: None,
        trust_orders: Default::default(),
    };
    let present = newest(&[
        ("gone", 7, Intent::Destroy),
        ("old", 1, Intent::Apply(spec(2))),
        ("same", 3, Intent::Apply(spec(2))),
    ]);
    let declared = declared(&[("fresh", spec(1)), ("gone", spec(1)), ("same", spec(2))]);
    let orders = orders(&plan(&declared, &present), &present, &context, 1000);
    let seen: Vec<(&str, u64, bool, bool)> = orders
        .iter()
        .map(|order| {
            let parent = order.parent == present.get(&order.group).map(|newest| newest.digest);
            (order.group.as_str(), order.generation.0, parent, order.is_tombstone())
        })
        .collect();
    assert_eq!(seen, [("fresh", 1, true, false), ("gone", 8, true, false), ("old", 2, true, true)]);
    assert!(orders.iter().all(|order| order.accept_before_unix_secs == 1000 + ACCEPT_WITHIN_SECS));
    for order in orders {
        let envelope = order.clone().into_envelope();
        assert_eq!(Order::from_envelope(&envelope).expect("a valid order"), order);
    }
}

#[test]
fn the_json_is_for_programs() {
    let plan =
        plan(&declared(&[("delay", spec(5))]), &newest(&[("delay", 1, Intent::Apply(spec(3)))]));
    let json: serde_json::Value = serde_json::from_str(&render::json(&plan)).expect("valid JSON");
    assert_eq!(json["changes"][0]["action"], "update");
    assert_eq!(
        json["changes"][0]["fields"],
        serde_json::json!([{"field": "nodes", "from": "3", "to": "5"}])
    );
    assert_eq!(json["counts"]["update"], 1);
    assert_eq!(json["new_environments"], serde_json::json!([]));
}
