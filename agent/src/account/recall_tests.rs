use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::account::config::Config;
use crate::account::desk::Desk;
use crate::account::guardrails;
use crate::account::plan::{Action, plan};
use crate::account::registry::SessionId;
use crate::account::testing::{group, identity, order, spec, temporary_folder};
use crate::clock::Clock;
use crate::store::AccountStore;
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::session::Verdict;
use outstation_protocol::v1::{Artifacts, NodeState, SetEntry};
use outstation_protocol::{Digest, InstanceId};

fn shared(store: &Path, state: &Path) -> Arc<Shared> {
    shared_by(store, state, "scale-only", guardrails::SAMPLE)
}

fn shared_by(store: &Path, state: &Path, profile: &str, rules: &str) -> Arc<Shared> {
    let text = format!(
        "tenant = 'dev'\nprofile = '{profile}'\naccount = '123456789012'\nregion = 'eu-central-1'\n\
         store = '{}'\nstate = '{}'\n\
         [broker]\naddress = '127.0.0.1:1'\nserver_name = 'broker'\nroot = '/none'\n\
         [nodes]\nlisten = '127.0.0.1:0'\n\
         [callers]\nlisten = '127.0.0.1:0'\ntoken_file = '/none'\n",
        store.display(),
        state.display()
    );
    let config: Config = toml::from_str(&text).expect("a configuration");
    std::fs::create_dir_all(store.join("guardrails")).expect("a folder");
    std::fs::write(store.join("guardrails/guardrails.toml"), rules).expect("written");
    let ledger = Ledger::open(&AccountStore::folder(store)).expect("a ledger");
    Arc::new(Shared::new(config, ledger, Clock::System))
}

fn judge(desk: &Desk, order: &Order) -> String {
    let envelope = order.clone().into_envelope();
    let (group, generation) = (order.group.clone(), order.generation);
    let entry = SetEntry { group, generation, digest: envelope.digest() };
    match desk.judge(&entry, &envelope) {
        Verdict::Accepted => "accepted".to_owned(),
        Verdict::Refused(refusal) => format!("{:?}", refusal.rule),
    }
}

/// AWS as the accepted orders want it.
fn as_ordered(shared: &Shared) -> Observed {
    let accepted = shared.view().accepted;
    let guardrails = Ok(guardrails::sample());
    let plans = plan(&accepted, &Observed::new(), &guardrails, &identity().tenant, true);
    let created = plans.into_iter().filter_map(|(group, plan)| match plan.actions.first() {
        Some(Action::Create(shape)) => Some((group, ObservedGroup::created(shape))),
        Some(_) | None => None,
    });
    created.collect()
}

fn look(shared: &Shared, observed: &Observed) -> Known {
    lock(&shared.observed).clone_from(observed);
    shared.recall(observed, None)
}

#[test]
fn a_store_that_is_emptied_under_a_running_agent_is_not_filled_again() {
    let (store, state) = (temporary_folder(), temporary_folder());
    let shared = shared(store.path(), state.path());
    let desk = Desk::new(shared.clone());
    let first = order("a", 1, None, Intent::Apply(spec(3)));
    assert_eq!(judge(&desk, &first), "Contradiction", "the account was not looked at yet");
    look(&shared, &Observed::new());
    assert_eq!(judge(&desk, &first), "accepted");
    let observed = as_ordered(&shared);
    assert!(look(&shared, &observed).is_settled());
    let of_tags = shared.wanted_artifacts(&group("a")).expect("as ordered");

    std::fs::remove_file(store.path().join("state/orders/a.json")).expect("it is there");
    assert_eq!(judge(&desk, &first), "Contradiction", "the store is read before it is judged by");
    assert!(shared.knows_group(&group("a")), "callers are served on");
    assert_eq!(shared.wanted_artifacts(&group("a")), Some(of_tags.clone()), "and so are nodes");
    let instance = InstanceId::try_from("i-00000001").expect("valid");
    let older =
        Artifacts { generation: Generation(0), bundle: Digest::of(b"old"), ..of_tags.clone() };
    shared.update_registry(|registry| {
        registry.hello(instance.clone(), group("a"), SessionId(1), 0);
        let state = NodeState {
            phase: NodePhase::Ready,
            endpoint: None,
            artifacts: Some(older.clone()),
            reason: None,
        };
        let address = std::net::IpAddr::from([127, 0, 0, 1]);
        registry.state(&instance, SessionId(1), address, state, 0).expect("its own session");
    });
    assert_eq!(shared.artifacts_for(&instance, &group("a")), Some(older), "nothing is switched");
    let welcome = shared.artifacts_at_hello(&instance, &group("a"));
    assert_eq!(welcome, Some(of_tags), "but what is remembered of it may be old");
    let known = look(&shared, &observed);
    assert!(known.contradicts(&group("a")) && !known.is_settled());
    assert_eq!(known.left_alone(&observed)[&group("a")][0].rule, "contradiction");
}

#[test]
fn what_is_read_between_two_looks_counts_at_once() {
    let (store, state) = (temporary_folder(), temporary_folder());
    let shared = shared(store.path(), state.path());
    let desk = Desk::new(shared.clone());
    look(&shared, &Observed::new());
    let first = order("a", 1, None, Intent::Apply(spec(3)));
    assert_eq!(judge(&desk, &first), "accepted");
    let observed = as_ordered(&shared);
    look(&shared, &observed);

    std::fs::remove_file(store.path().join("state/orders/a.json")).expect("it is there");
    assert!(shared.refresh_ledger());
    assert_eq!(judge(&desk, &first), "Contradiction");
    // A person decides, in another process.
    let mut elsewhere = Ledger::open(&AccountStore::folder(store.path())).expect("a ledger");
    let decided = floor::Floor {
        group: group("a"),
        generation: Some(Generation(1)),
        wrong_tag: None,
        decided_at_unix_secs: 0,
    };
    elsewhere.decide(decided).expect("nothing there before");
    assert!(shared.refresh_ledger());
    assert_eq!(judge(&desk, &first), "OlderGeneration");
    let parent = Some(Digest::of(b"unknown by now"));
    let second = order("a", 2, parent, Intent::Apply(spec(3)));
    assert_eq!(judge(&desk, &second), "accepted");
    assert_eq!(desk.heads()[&group("a")].0, Generation(2));
}

#[test]
fn a_file_that_cannot_be_read_holds_its_group() {
    let (store, state) = (temporary_folder(), temporary_folder());
    let shared = shared(store.path(), state.path());
    let desk = Desk::new(shared.clone());
    look(&shared, &Observed::new());
    for name in ["a", "b"] {
        assert_eq!(judge(&desk, &order(name, 1, None, Intent::Apply(spec(3)))), "accepted");
    }
    std::fs::write(store.path().join("state/orders/a.json"), b"{").expect("writable");
    let known = look(&shared, &Observed::new());
    let guardrails = Ok(guardrails::sample());
    let tenant = identity().tenant;
    let mut plans = plan(&known.accepted, &Observed::new(), &guardrails, &tenant, true);
    known.hold(&mut plans);
    let acts = |name: &str| !plans[&group(name)].actions.is_empty();
    assert_eq!([acts("a"), acts("b")], [false, true]);
    assert_eq!(plans[&group("a")].held[0].rule, "account_store");
}

#[test]
fn a_group_whose_end_waits_for_approval_serves_on() {
    let (store, state) = (temporary_folder(), temporary_folder());
    let rules = guardrails::SAMPLE.replace("\"allow\"", "\"approve\"");
    let shared = shared_by(store.path(), state.path(), "manage", &rules);
    let desk = Desk::new(shared.clone());
    look(&shared, &Observed::new());
    let first = order("a", 1, None, Intent::Apply(spec(3)));
    assert_eq!(judge(&desk, &first), "accepted");
    let mut observed = as_ordered(&shared);
    let serving = shared.wanted_artifacts(&group("a"));
    let parent = Some(first.into_envelope().digest());
    let end = order("a", 2, parent, Intent::Destroy);
    assert_eq!(judge(&desk, &end), "accepted");

    let planned = |observed: &Observed| {
        let known = look(&shared, observed);
        let rules = shared.refresh_guardrails();
        let mut plans = plan(&known.accepted, observed, &rules, &identity().tenant, true);
        plans.remove(&group("a")).expect("it has an order")
    };
    let waiting = planned(&observed);
    assert!(waiting.actions.is_empty() && waiting.held[0].rule == "destroy", "{waiting:?}");
    assert!(shared.knows_group(&group("a")), "callers are served on");
    assert_eq!(shared.wanted_artifacts(&group("a")), serving, "and so are nodes, new ones too");

    let folder = store.path().join("guardrails/approvals");
    std::fs::create_dir(&folder).expect("nobody has made it");
    let (file, digest) = (folder.join("a.json"), end.into_envelope().digest());
    let approval = format!(r#"{{"group":"a","generation":2,"digest":"{digest}","who":"ann"}}"#);
    std::fs::write(&file, approval.replace("ann", "")).expect("written");
    let waiting = planned(&observed);
    assert!(waiting.held[0].message.contains("the approval is none: who"), "{waiting:?}");
    std::fs::write(&file, approval).expect("written");
    let asg_name = "outstation-a".to_owned();
    assert_eq!(planned(&observed).actions, [Action::DrainToZero { asg_name }]);
    observed.get_mut(&group("a")).expect("there").max = 0;
    look(&shared, &observed);
    assert!(!shared.knows_group(&group("a")), "what drains takes no new callers");
    assert_eq!(shared.wanted_artifacts(&group("a")), None);
}
