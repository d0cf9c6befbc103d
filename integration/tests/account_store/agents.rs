//! Two account agents on one bucket, and one that comes back without its disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outstation_agent::account::floor::Floor;
use outstation_agent::account::guardrails::{self, Guardrails};
use outstation_agent::account::journal::Journal;
use outstation_agent::account::journal::record::Event;
use outstation_agent::account::ledger::{Ledger, LedgerError};
use outstation_agent::account::replacements::{self, History, Replaced};
use outstation_agent::clock::{Clock, ManualClock};
use outstation_agent::iam::parameters::example;
use outstation_agent::iam::store::{Bucket, Role, store_policy};
use outstation_agent::trust::{DataPlaneCa, tls};
use outstation_aws_sim::policy::checks::Check;
use outstation_aws_sim::policy::{Policies, Value};
use outstation_integration::s3::{REGION, S3};
use outstation_protocol::model::{EnvironmentRef, GroupKind, GroupSpec, Scaling};
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::{DataPlane, Digest, Generation};

use super::rig::{Fault, Reach as _};

fn data_plane() -> DataPlane {
    DataPlane {
        account: "123456789012".try_into().expect("valid"),
        region: REGION.try_into().expect("valid"),
    }
}

pub fn order(group: &str, desired_nodes: u32) -> Order {
    let spec = GroupSpec {
        kind: GroupKind::Transform,
        scaling: Scaling::Provisioned { desired_nodes },
        environment: EnvironmentRef {
            name: "env".try_into().expect("valid"),
            digest: Digest::of(b"environment"),
        },
        bundle: Digest::of(b"bundle"),
        owner: None,
        description: None,
        tags: BTreeMap::new(),
        prevent_destroy: false,
        options: BTreeMap::new(),
    };
    Order {
        tenant: "dev".try_into().expect("valid"),
        data_plane: data_plane(),
        group: group.try_into().expect("valid"),
        generation: Generation(1),
        parent: None,
        accept_before_unix_secs: u64::MAX,
        intent: Intent::Apply(spec),
    }
}

#[test]
fn of_two_agents_one_accepts_and_both_know_what() {
    let s3 = S3::start().expect("moto starts");
    for round in 0..8 {
        let group = format!("g{round}");
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let agents: Vec<_> = [3, 4]
                .map(|nodes| {
                    let (s3, group) = (&s3, &group);
                    scope.spawn(move || {
                        let mut ledger = Ledger::open(&s3.store()).expect("readable");
                        let order = order(group, nodes);
                        let accepted = ledger.accept(order.clone(), &order.clone().into_envelope());
                        (order, accepted, ledger)
                    })
                })
                .into();
            agents.into_iter().map(|agent| agent.join().expect("no panic")).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|(_, accepted, _)| accepted.is_ok());
        let ([(order, ..)], [(_, error, loser)]) = (&won[..], &lost[..]) else {
            panic!("round {round}: {} have won", won.len());
        };
        assert!(matches!(error, Err(LedgerError::Swapped { .. })), "{error:?}");
        assert_eq!(loser.accepted()[&order.group].order, *order, "it has learnt what is there");
    }
}

#[test]
fn an_order_whose_reply_was_lost_is_accepted() {
    let s3 = S3::start().expect("moto starts");
    let proxy = s3.behind([]);
    let mut ledger = Ledger::open(&proxy.store()).expect("an empty store");
    let order = order("a", 3);
    // The order is looked for, its floor is, and then it is written.
    proxy.lose_the_reply_of_the_next("PUT");
    ledger.accept(order.clone(), &order.clone().into_envelope()).expect("it is there");
    let other = Ledger::open(&s3.store()).expect("readable");
    assert_eq!(other.accepted()[&order.group].order, order);
    assert!(!ledger.refresh(), "its own is not new");
}

#[test]
fn two_agents_have_one_ca_and_nodes_trust_it() {
    let s3 = S3::start().expect("moto starts");
    let tenant = "dev".try_into().expect("valid");
    let cas: Vec<DataPlaneCa> = std::thread::scope(|scope| {
        let agents: Vec<_> = (0..3)
            .map(|_| {
                let (s3, tenant) = (&s3, &tenant);
                scope.spawn(move || DataPlaneCa::open_or_create(&s3.store(), tenant, 1_800_000_000))
            })
            .collect();
        agents.into_iter().map(|agent| agent.join().expect("no panic").expect("a CA")).collect()
    });
    assert!(cas.iter().all(|ca| ca.root() == cas[0].root()));
    assert_eq!(tls::load_roots(&s3.store()).expect("its root"), [cas[0].root().clone()]);
}

#[test]
fn guardrails_are_read_from_the_bucket() {
    let s3 = S3::start().expect("moto starts");
    let store = s3.store();
    let why = Guardrails::read(&store).expect_err("not there yet").to_string();
    assert!(why.contains("s3://store/prod/guardrails/guardrails.toml: it is not there"), "{why}");
    let text = "name_prefix = 'outstation-'\nnodes_per_group_max = 40\nnodes_total_max = 60\n\
        availability_zones = ['eu-central-1a']\n[launch_template]\nname = 'node'\nversion = 1\n";
    store.create(guardrails::KEY, text.as_bytes()).expect("a person writes them");
    assert_eq!(Guardrails::read(&store).expect("valid").nodes_total_max, 60);
    let proxy = s3.behind([]);
    proxy.then_always(Fault::RequestLost);
    let why = Guardrails::read(&proxy.store()).expect_err("everything is held").to_string();
    assert!(why.contains("S3 cannot be reached"), "{why}");
}

#[test]
fn replacements_are_counted_once_among_two_agents() {
    let s3 = S3::start().expect("moto starts");
    let instance = "i-00000001".try_into().expect("valid");
    let replaced = Replaced { instance, at_unix_secs: 7 };
    replacements::note(&s3.store(), 0, &replaced).expect("the first");
    assert!(replacements::note(&s3.store(), 0, &replaced).is_err(), "the number is taken");
    replacements::note(&s3.store(), 1, &replaced).expect("the second");
    let history = History::read(&s3.store(), 5).expect("readable");
    assert_eq!(history.newest, [replaced.clone(), replaced]);
}

#[test]
fn a_journal_is_anchored_in_the_bucket_and_outlives_the_disk() {
    let s3 = S3::start().expect("moto starts");
    let disk = tempfile::tempdir().expect("a folder");
    let call = |number: u32| Event::Call {
        service: "Auto Scaling".into(),
        call: "UpdateAutoScalingGroup".into(),
        request: format!("MaxSize={number}"),
    };
    let open = |state: &str| {
        let clock = Clock::Manual(ManualClock::new(1_000_000));
        Journal::new(&disk.path().join(state), s3.store(), data_plane(), clock)
    };
    let journal = open("one");
    for number in 0..3 {
        journal.before_call(call(number)).expect("anchored");
    }
    drop(journal);
    open("one").before_call(call(3)).expect("it goes on in the same chain");
    open("two").before_call(call(4)).expect("the disk is another, and the chain follows");
    let verified = s3.agent(["journal", "verify", "--store", "s3://store/prod"]).expect("it runs");
    let told = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success(), "{told}{}", String::from_utf8_lossy(&verified.stderr));
    let chains: Vec<&str> =
        told.lines().map(|line| line.split_once("  ").expect("a chain").1).collect();
    let elsewhere =
        |count| format!("0 records, {count} anchored, {count} of them on another agent's disk");
    assert_eq!(chains, [elsewhere(4), elsewhere(1)]);

    let proxy = s3.behind([]);
    let clock = Clock::Manual(ManualClock::new(1_000_000));
    let journal = Journal::new(&disk.path().join("one"), proxy.store(), data_plane(), clock);
    let journal = Arc::new(journal);
    journal.before_call(call(5)).expect("anchored");
    proxy.then_always(Fault::Says { status: 403, code: "AccessDenied" });
    let error = journal.before_call(call(6)).expect_err("no anchor, no call");
    assert!(error.to_string().contains("cannot be anchored"), "{error}");
    let trouble = journal.state().trouble.expect("told to people");
    assert!(
        trouble.contains("NOTHING IS CHANGED") && trouble.contains("s3:PutObject"),
        "{trouble}"
    );
}

/// A request as S3 asks IAM about it.
fn check(head: &str) -> Check {
    let header = |wanted: &str| {
        head.lines().skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    let mut words = head.split(' ');
    let (method, target) = (words.next().expect("a method"), words.next().expect("a target"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut context =
        BTreeMap::from([("aws:ResourceAccount".to_owned(), "123456789012".to_owned())]);
    let action = match method {
        "GET" if query.contains("list-type=2") => {
            let prefix = query.split('&').find_map(|pair| pair.strip_prefix("prefix="));
            let prefix = prefix.expect("nothing is listed without one").replace("%2F", "/");
            context.insert("s3:prefix".to_owned(), prefix);
            "s3:ListBucket"
        }
        "GET" | "HEAD" => "s3:GetObject",
        "PUT" => {
            for condition in ["if-match", "if-none-match"] {
                let value = header(condition);
                context.extend(value.map(|value| (format!("s3:{condition}"), value)));
            }
            "s3:PutObject"
        }
        other => panic!("no operation of the account store: {other}"),
    };
    Check {
        action: action.to_owned(),
        resource: format!("arn:aws:s3:::{}", path.trim_start_matches('/').trim_end_matches('/')),
        context: context.into_iter().map(|(key, text)| (key, Value::Text(text))).collect(),
        template: None,
    }
}

#[test]
fn what_an_agent_asks_of_its_bucket_its_policy_allows_and_nothing_more() {
    let s3 = S3::start().expect("moto starts");
    let proxy = s3.behind([]);
    let store = proxy.store();
    let tenant = "dev".try_into().expect("valid");
    // A life of an agent.
    let _ = Guardrails::read(&store);
    store.check().expect("there");
    DataPlaneCa::open_or_create(&store, &tenant, 1_800_000_000).expect("a CA");
    let mut ledger = Ledger::open(&store).expect("readable");
    let first = order("a", 3);
    ledger.accept(first.clone(), &first.clone().into_envelope()).expect("accepted");
    let parent = Some(first.clone().into_envelope().digest());
    let next = Order { generation: Generation(2), parent, ..order("a", 4) };
    ledger.accept(next.clone(), &next.clone().into_envelope()).expect("accepted");
    let floor = |generation| Floor {
        group: next.group.clone(),
        generation: Some(Generation(generation)),
        wrong_tag: None,
        decided_at_unix_secs: 1,
    };
    ledger.decide(floor(1)).expect("decided");
    ledger.decide(floor(2)).expect("decided again");
    ledger.refresh();
    let replaced = Replaced { instance: "i-00000001".try_into().expect("valid"), at_unix_secs: 7 };
    replacements::note(&store, 0, &replaced).expect("counted");
    History::read(&store, 5).expect("readable");
    let disk = tempfile::tempdir().expect("a folder");
    let clock = Clock::Manual(ManualClock::new(1_000_000));
    let journal = Journal::new(disk.path(), store.clone(), data_plane(), clock);
    let request = "MaxSize=3".to_owned();
    let call = Event::Call { service: "Auto Scaling".into(), call: "DeletePolicy".into(), request };
    journal.before_call(call).expect("anchored");
    let of_agent = proxy.seen();

    let nodes = s3.behind([]);
    tls::load_roots(&nodes.store()).expect("a root");
    let _ = nodes.store().read_at("artifacts/bundles/x.tar", 0, 10);
    let _ = nodes.store().size("artifacts/bundles/x.tar");

    let (mut scope, _) = example();
    scope.account = "123456789012".try_into().expect("valid");
    let bucket = Bucket { name: "store".to_owned(), prefix: "prod/".to_owned() };
    for (role, seen) in [(Role::Agent, of_agent), (Role::Node, nodes.seen())] {
        let document = store_policy(&scope, &bucket, role).expect("short").to_json();
        let policies = Policies::parse([document.as_str()]).expect("a policy");
        let mut used = BTreeSet::new();
        for head in &seen {
            let check = check(head);
            let judged = policies.judge(&check);
            assert!(judged.allowed, "{role:?}: {check:?}\n{head}");
            used.extend(judged.statements);
        }
        let wanted: BTreeSet<String> = match role {
            Role::Agent => ["ReadStore", "ListStore", "WriteStore"].map(str::to_owned).into(),
            Role::Node => ["ReadStore", "ListStore"].map(str::to_owned).into(),
        };
        assert_eq!(used, wanted, "{role:?}");
    }
}
