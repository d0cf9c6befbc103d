//! Both ends of the control link against each other over a link that loses, repeats and reorders,
//! with crashes of either side in between. Virtual time; no sockets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outstation_protocol::ids::*;
use outstation_protocol::model::DataPlane;
use outstation_protocol::order::{Intent, Order};
use outstation_protocol::session::*;
use outstation_protocol::v1::{Hello, Refusal, RefusalRule, SetEntry, ToAgent, ToBroker, Welcome};
use outstation_protocol::{Envelope, v1};
use proptest::prelude::*;

fn data_plane() -> DataPlane {
    DataPlane {
        account: AccountId::try_from("123456789012").expect("valid"),
        region: Region::try_from("eu-central-1").expect("valid"),
    }
}

fn agent_id() -> AgentId {
    AgentId::try_from("a1").expect("valid")
}

fn group(index: u8) -> GroupName {
    GroupName::try_from(format!("g{index}")).expect("valid")
}

fn hello() -> Hello {
    Hello {
        versions: vec![v1::VERSION],
        features: vec![v1::FEATURE_HAND_BACK.to_owned()],
        agent: agent_id(),
        data_plane: data_plane(),
        release: "test".into(),
    }
}

fn welcome(heartbeat_secs: u32, set: &DesiredSet) -> ToAgent {
    let set_hash = set_hash(set);
    ToAgent::Welcome(Welcome { version: v1::VERSION, features: vec![], heartbeat_secs, set_hash })
}

/// For the sessions the intent does not matter, only that bytes differ: every order here is a
/// tombstone, made distinct by `salt`.
fn order(group: &GroupName, head: Option<(Generation, Digest)>, salt: u64) -> (SetEntry, Envelope) {
    let generation = head.map_or(Generation::FIRST, |(generation, _)| generation.next());
    let envelope = Order {
        tenant: TenantId::try_from("dev").expect("valid"),
        data_plane: data_plane(),
        group: group.clone(),
        generation,
        parent: head.map(|(_, digest)| digest),
        accept_before_unix_secs: salt,
        intent: Intent::Destroy,
    }
    .into_envelope();
    (SetEntry { group: group.clone(), generation, digest: envelope.digest() }, envelope)
}

/// What a broker's database keeps across crashes.
#[derive(Default)]
struct Store {
    set: DesiredSet,
    envelopes: BTreeMap<SetEntry, Envelope>,
    recorded: Reports,
}

/// What an agent's disk keeps.
#[derive(Default)]
struct Disk {
    ledger: BTreeMap<GroupName, (Generation, Digest)>,
    envelopes: BTreeMap<SetEntry, Envelope>,
    reports: Reports,
}

fn broker(store: &Store, now: Instant) -> BrokerSession {
    let (set, recorded) = (store.set.clone(), store.recorded.clone());
    BrokerSession::new(agent_id(), data_plane(), set, recorded, BrokerConfig::default(), now)
}

fn agent(disk: &Disk, now: Instant) -> AgentSession {
    let (ledger, reports) = (disk.ledger.clone(), disk.reports.clone());
    AgentSession::new(hello(), ledger, reports, AgentConfig::default(), now)
}

struct World {
    now: Instant,
    store: Store,
    disk: Disk,
    broker: BrokerSession,
    agent: AgentSession,
    to_broker: Vec<ToBroker>,
    to_agent: Vec<ToAgent>,
    /// The group whose orders the account refuses.
    refuses: Option<u8>,
    /// The broker's disk is full.
    store_fails: bool,
    /// By which rule.
    rule: RefusalRule,
}

impl World {
    fn new(refuses: Option<u8>) -> World {
        let now = Instant::now();
        let (store, disk) = (Store::default(), Disk::default());
        let (broker, agent) = (broker(&store, now), agent(&disk, now));
        World {
            now,
            broker,
            agent,
            store,
            disk,
            to_broker: vec![],
            to_agent: vec![],
            refuses,
            store_fails: false,
            rule: RefusalRule::Guardrail,
        }
    }

    /// A crash of either side, or of the link: whatever was on its way is gone.
    fn reconnect(&mut self) {
        self.to_broker.clear();
        self.to_agent.clear();
        self.broker = broker(&self.store, self.now);
        self.agent = agent(&self.disk, self.now);
    }

    fn put(&mut self, index: u8, salt: u64) {
        let name = group(index);
        let (entry, envelope) = order(&name, self.store.set.get(&name).copied(), salt);
        self.store.set.insert(name, (entry.generation, entry.digest));
        self.store.envelopes.insert(entry, envelope);
        self.broker.handle_set(self.store.set.clone());
    }

    fn judge(&mut self, entry: &SetEntry, envelope: &Envelope) -> Verdict {
        let order = Order::from_envelope(envelope).expect("made by put");
        assert_eq!((&order.group, order.generation), (&entry.group, entry.generation));
        if self.refuses.is_some_and(|index| entry.group == group(index)) {
            let rule = self.rule;
            return Verdict::Refused(Refusal { rule, message: "no".into(), hint: "ask".into() });
        }
        let before = self.disk.ledger.insert(entry.group.clone(), (entry.generation, entry.digest));
        let rises = before.is_none_or(|(generation, _)| generation < entry.generation);
        assert!(rises, "{} went from {before:?} to {}", entry.group, entry.generation);
        self.disk.envelopes.insert(entry.clone(), envelope.clone());
        Verdict::Accepted
    }

    /// Lets both ends say what they have to say. False if there was nothing.
    fn drain(&mut self) -> bool {
        let (mut busy, mut closed) = (false, false);
        while let Some(output) = self.agent.poll_output(self.now) {
            busy = true;
            match output {
                AgentOutput::Send(message) => self.to_broker.push(message),
                AgentOutput::Judge { entry, envelope } => {
                    let verdict = self.judge(&entry, &envelope);
                    self.agent.handle_verdict(entry, verdict);
                    self.disk.reports = self.agent.reports().clone();
                }
                AgentOutput::HandBack(entry) => {
                    let kept = self.disk.envelopes.get(&entry).cloned();
                    self.agent.handle_kept(kept);
                }
                AgentOutput::Live => {}
                AgentOutput::Close { .. } => closed = true,
            }
        }
        while let Some(output) = self.broker.poll_output() {
            busy = true;
            match output {
                BrokerOutput::Send(message) => self.to_agent.push(message),
                BrokerOutput::Load(entry) => {
                    let envelope = self.store.envelopes.get(&entry).cloned();
                    self.broker.handle_loaded(&entry, envelope);
                }
                BrokerOutput::Record(report) if self.store_fails => {
                    self.broker.handle_not_recorded(report);
                }
                BrokerOutput::Record(report) => {
                    report.record(&mut self.store.recorded);
                }
                BrokerOutput::TakeOver { entry, .. } if self.store_fails => {
                    self.broker.handle_not_taken_over(entry);
                }
                BrokerOutput::TakeOver { entry, envelope } => {
                    let newest = self.store.set.get(&entry.group).map(|(newest, _)| *newest);
                    if newest < Some(entry.generation) {
                        let head = (entry.generation, entry.digest);
                        self.store.set.insert(entry.group.clone(), head);
                        self.store.envelopes.insert(entry, envelope);
                        self.broker.handle_set(self.store.set.clone());
                    }
                }
                BrokerOutput::Settle(_) if self.store_fails => self.broker.handle_not_settled(),
                BrokerOutput::Settle(reports) => self.store.recorded = reports,
                BrokerOutput::Live { .. } => {}
                BrokerOutput::Close { .. } => closed = true,
            }
        }
        if closed {
            self.reconnect();
        }
        busy
    }

    fn deliver_to_agent(&mut self, index: usize, repeat: bool) {
        if let Some(message) = take(&mut self.to_agent, index, repeat) {
            self.agent.handle_message(message, self.now);
            self.disk.reports = self.agent.reports().clone();
        }
    }

    fn deliver_to_broker(&mut self, index: usize, repeat: bool) {
        if let Some(message) = take(&mut self.to_broker, index, repeat) {
            self.broker.handle_message(message, self.now);
        }
    }

    fn elapse(&mut self, secs: u64) {
        self.now += Duration::from_secs(secs);
        self.agent.handle_timeout(self.now);
        self.broker.handle_timeout(self.now);
    }

    /// No more faults: delivery in order until both are quiet, over a few heartbeats.
    fn settle(&mut self) {
        self.store_fails = false;
        self.broker.retry_after_store_failure();
        for _ in 0..8 {
            for _ in 0..500 {
                let busy = self.drain();
                if !busy && self.to_agent.is_empty() && self.to_broker.is_empty() {
                    break;
                }
                for _ in 0..self.to_broker.len() {
                    self.deliver_to_broker(0, false);
                }
                for _ in 0..self.to_agent.len() {
                    self.deliver_to_agent(0, false);
                }
            }
            self.elapse(15);
        }
    }
}

/// A message somewhere in the queue; a repeated one stays there as well.
fn take<M: Clone>(queue: &mut Vec<M>, index: usize, repeat: bool) -> Option<M> {
    let index = index.checked_rem(queue.len())?;
    Some(if repeat { queue[index].clone() } else { queue.remove(index) })
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u64),
    ToAgent { index: usize, repeat: bool },
    ToBroker { index: usize, repeat: bool },
    LoseToAgent,
    LoseToBroker,
    Reconnect,
    Elapse(u64),
    StoreRecovered,
    BrokerStoreFails(bool),
    BrokerStoreRetried,
}

fn step() -> impl Strategy<Value = Step> {
    let repeat = || prop::bool::weighted(0.2);
    prop_oneof![
        2 => (0u8..4, 0u64..100).prop_map(|(index, salt)| Step::Put(index, salt)),
        6 => (0usize..8, repeat()).prop_map(|(index, repeat)| Step::ToAgent { index, repeat }),
        6 => (0usize..8, repeat()).prop_map(|(index, repeat)| Step::ToBroker { index, repeat }),
        1 => Just(Step::LoseToAgent),
        1 => Just(Step::LoseToBroker),
        1 => Just(Step::Reconnect),
        1 => (1u64..40).prop_map(Step::Elapse),
        1 => Just(Step::StoreRecovered),
        1 => any::<bool>().prop_map(Step::BrokerStoreFails),
        1 => Just(Step::BrokerStoreRetried),
    ]
}

/// `PROPTEST_CASES=200000` looks for what is new.
fn config() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(4000),
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_the_link_does_both_ends_agree_once_it_stops(
        steps in prop::collection::vec(step(), 0..120),
        refuses in prop::option::of(0u8..4),
    ) {
        let mut world = World::new(refuses);
        for step in steps {
            world.drain();
            let groups_before = world.disk.ledger.len();
            match step {
                Step::Put(index, salt) => world.put(index, salt),
                Step::ToAgent { index, repeat } => world.deliver_to_agent(index, repeat),
                Step::ToBroker { index, repeat } => world.deliver_to_broker(index, repeat),
                Step::LoseToAgent => drop(world.to_agent.pop()),
                Step::LoseToBroker => drop(world.to_broker.pop()),
                Step::Reconnect => world.reconnect(),
                Step::Elapse(secs) => world.elapse(secs),
                Step::StoreRecovered => world.agent.ask_again(),
                Step::BrokerStoreFails(fails) => world.store_fails = fails,
                Step::BrokerStoreRetried => world.broker.retry_after_store_failure(),
            }
            // Absence never deletes.
            prop_assert!(world.disk.ledger.len() >= groups_before);
        }
        world.settle();

        for (name, head) in &world.store.set {
            if refuses.is_some_and(|index| *name == group(index)) {
                let refused = world.store.recorded[name].refused.as_ref().expect("was judged");
                prop_assert_eq!((refused.0, refused.1), *head);
                prop_assert!(!world.disk.ledger.contains_key(name));
            } else {
                prop_assert_eq!(world.disk.ledger.get(name), Some(head));
                prop_assert_eq!(world.store.recorded[name].accepted, Some(*head));
            }
        }
        prop_assert_eq!(&world.store.recorded, world.agent.reports());
    }
}

#[test]
fn a_broker_with_an_older_database_moves_nobody_backwards_and_asks_for_what_it_lacks() {
    let mut world = World::new(None);
    world.put(0, 1);
    let old_set = world.store.set.clone();
    world.put(0, 2);
    world.put(1, 1);
    world.settle();
    let ledger = world.disk.ledger.clone();

    world.store.set = old_set;
    world.store.recorded.clear();
    world.reconnect();
    world.settle();

    assert_eq!(world.disk.ledger, ledger, "the agent stays where it is");
    let answers = &world.store.recorded[&group(0)];
    assert_eq!(answers.accepted, Some(ledger[&group(0)]), "the broker learns of the newer one");
    let (generation, _, reason) = answers.refused.as_ref().expect("the older one is refused");
    assert_eq!((*generation, reason.rule), (Generation(1), RefusalRule::OlderGeneration));
    assert_eq!(world.store.set, ledger, "and takes over what it has lost, a whole group included");

    world.put(0, 3);
    world.settle();
    assert_eq!(world.disk.ledger[&group(0)].0, Generation(3), "the next order follows it");
}

#[test]
fn an_order_is_handed_back_only_if_asked_for_and_accepted() {
    let mut world = World::new(None);
    world.put(0, 1);
    world.settle();
    // The broker makes up an order that the account never saw.
    let (entry, envelope) = order(&group(3), None, 9);
    world.agent.handle_message(ToAgent::HandBack(entry), world.now);
    let hands_back = |output: &AgentOutput| matches!(output, AgentOutput::HandBack(_));
    assert!(!std::iter::from_fn(|| world.agent.poll_output(world.now)).any(|o| hands_back(&o)));
    // The agent offers one that nobody asked for.
    world.broker.handle_message(ToBroker::Order { envelope }, world.now);
    world.settle();
    assert!(!world.store.set.contains_key(&group(3)));
}

#[test]
fn an_agent_that_cannot_hand_back_is_not_asked() {
    let now = Instant::now();
    let mut session = broker(&Store::default(), now);
    session.handle_message(ToBroker::Hello(Hello { features: vec![], ..hello() }), now);
    let accepted = ToBroker::Accepted {
        group: group(0),
        generation: Generation(1),
        digest: Digest::of(b"order"),
    };
    session.handle_message(accepted, now);
    let asks = |output: &BrokerOutput| matches!(output, BrokerOutput::Send(ToAgent::HandBack(_)));
    assert!(!std::iter::from_fn(|| session.poll_output()).any(|output| asks(&output)));
}

#[test]
fn the_same_generation_with_other_bytes_is_a_conflict() {
    let mut world = World::new(None);
    world.put(0, 1);
    world.settle();
    let accepted = world.disk.ledger[&group(0)];

    world.store = Store::default();
    world.put(0, 2);
    world.reconnect();
    world.settle();

    assert_eq!(world.disk.ledger[&group(0)], accepted);
    let (_, _, reason) = world.store.recorded[&group(0)].refused.as_ref().expect("refused");
    assert_eq!(reason.rule, RefusalRule::ConflictingGeneration);
}

#[test]
fn answers_that_the_broker_cannot_store_are_kept_newest_first_and_stored_later() {
    let mut world = World::new(Some(0));
    world.store_fails = true;
    world.put(0, 1);
    world.put(1, 1);
    for _ in 0..20 {
        world.drain();
        world.deliver_to_broker(0, false);
        world.deliver_to_agent(0, false);
    }
    assert!(world.store.recorded.is_empty(), "nothing could be stored");
    // The account changes its mind about generation 2: its acceptance ends the refusal of 1, which
    // must not come back out of what was kept.
    world.refuses = None;
    world.put(0, 2);
    for _ in 0..20 {
        world.drain();
        world.broker.retry_after_store_failure();
        world.deliver_to_broker(0, false);
        world.deliver_to_agent(0, false);
    }
    assert!(world.store.recorded.is_empty(), "still nothing");
    world.store_fails = false;
    world.broker.retry_after_store_failure();
    world.drain();
    let stored = &world.store.recorded;
    assert_eq!(stored, world.agent.reports(), "with the next try, in the same session");
    assert_eq!(stored[&group(0)].refused, None);
    assert_eq!(stored[&group(0)].accepted.map(|(generation, _)| generation), Some(Generation(2)));
}

#[test]
fn an_envelope_that_was_not_asked_for_is_not_judged() {
    let mut world = World::new(None);
    world.settle();
    let (_, envelope) = order(&group(0), None, 7);
    world.agent.handle_message(ToAgent::Order { envelope }, world.now);
    world.settle();
    assert!(world.disk.ledger.is_empty());
}

#[test]
fn only_a_refusal_that_is_no_judgement_is_asked_for_again_by_the_next_session() {
    for (rule, asked_again) in [
        (RefusalRule::Guardrail, false),
        (RefusalRule::AccountStore, true),
        (RefusalRule::Contradiction, true),
        (RefusalRule::ChangeRate, true),
    ] {
        let mut world = World::new(Some(0));
        world.rule = rule;
        world.put(0, 1);
        world.settle();
        assert!(world.store.recorded[&group(0)].refused.is_some(), "{rule:?}");
        world.refuses = None;
        world.reconnect();
        world.settle();
        assert_eq!(world.disk.ledger.contains_key(&group(0)), asked_again, "{rule:?}");
        let answers = &world.store.recorded[&group(0)];
        assert_eq!(answers.refused.is_none(), asked_again, "{rule:?}");
    }
}

#[test]
fn what_another_agent_wrote_to_the_ledger_is_stood_by() {
    let mut world = World::new(None);
    world.put(0, 1);
    world.settle();
    let (entry, _) = order(&group(0), world.disk.ledger.get(&group(0)).copied(), 2);
    world.disk.ledger.insert(group(0), (entry.generation, entry.digest));
    world.agent.handle_ledger(world.disk.ledger.clone());
    world.settle();
    let answers = &world.store.recorded[&group(0)];
    assert_eq!(answers.accepted, Some((entry.generation, entry.digest)));
    let (_, _, reason) = answers.refused.as_ref().expect("the broker's own is older by now");
    assert_eq!(reason.rule, RefusalRule::OlderGeneration);
}

#[test]
fn what_the_ledger_has_lost_is_accepted_again() {
    let mut world = World::new(None);
    world.put(0, 1);
    world.settle();
    let before = std::mem::take(&mut world.disk.ledger);
    world.agent.handle_ledger(BTreeMap::new());
    world.settle();
    assert_eq!(world.disk.ledger, before);
}

#[test]
fn control_goes_before_status() {
    let now = Instant::now();
    let mut session = agent(&Disk::default(), now);
    session.poll_output(now);
    let (entry, _) = order(&group(0), None, 7);
    let set: DesiredSet = [(entry.group.clone(), (entry.generation, entry.digest))].into();
    session.handle_message(welcome(15, &set), now);
    for (index, answer) in [
        (1, Answer::Converged { generation: Generation(1), observed: Digest::of(b"o") }),
        (2, Answer::Accepted { generation: Generation(1), digest: Digest::of(b"d") }),
    ] {
        session.handle_report(Report { group: group(index), answer });
    }
    session.handle_message(ToAgent::DesiredSet { entries: vec![entry] }, now);
    let kinds: Vec<&str> = std::iter::from_fn(|| session.poll_output(now))
        .map(|output| match output {
            AgentOutput::Send(ToBroker::Fetch(_)) => "fetch",
            AgentOutput::Send(ToBroker::Accepted { .. }) => "accepted",
            AgentOutput::Send(ToBroker::Converged { .. }) => "converged",
            AgentOutput::Send(ToBroker::Heartbeat { .. }) => "heartbeat",
            AgentOutput::Live => "live",
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["live", "fetch", "accepted", "converged", "heartbeat"]);
}

#[test]
fn a_broker_cannot_push_an_absurd_interval() {
    for (said, kept) in [(0, 1), (15, 15), (u32::MAX, 600)] {
        let now = Instant::now();
        let silence_max = Duration::from_secs(100_000);
        let config = AgentConfig { silence_max, ..Default::default() };
        let mut session = AgentSession::new(hello(), BTreeMap::new(), Reports::new(), config, now);
        session.poll_output(now);
        session.handle_message(welcome(said, &DesiredSet::new()), now);
        assert_eq!(session.next_timeout() - now, Duration::from_secs(kept));
    }
}

#[test]
fn a_hello_that_does_not_fit_its_certificate_is_turned_away() {
    let mut other = hello();
    other.agent = AgentId::try_from("a2").expect("valid");
    let mut newer = hello();
    newer.versions = vec![9];
    for (hello, words) in [(other, "its certificate says"), (newer, "speaks version 1")] {
        let now = Instant::now();
        let mut session = broker(&Store::default(), now);
        session.handle_message(ToBroker::Hello(hello), now);
        let Some(BrokerOutput::Send(ToAgent::Goodbye { reason, .. })) = session.poll_output()
        else {
            panic!("expected a goodbye");
        };
        assert!(reason.contains(words), "{reason}");
        assert!(matches!(session.poll_output(), Some(BrokerOutput::Close { .. })));
        assert_eq!(session.poll_output(), None);
    }
}

/// Two agents serve one data plane for a while; when one has left, the store shall hold what the
/// other stands by.
#[test]
fn what_another_agent_left_behind_is_settled() {
    let mut world = World::new(None);
    world.put(0, 1);
    world.settle();
    let recorded = world.store.recorded.clone();
    assert!(!recorded.is_empty());

    world.store.recorded.clear();
    world.settle();
    assert!(world.store.recorded.is_empty(), "this session does not know of it");
    world.broker.handle_stored(Reports::new());
    world.settle();
    assert_eq!(world.store.recorded, recorded);
}

#[test]
fn ends_that_cannot_agree_do_not_storm() {
    let now = Instant::now();
    let mut session = broker(&Store::default(), now);
    session.handle_message(ToBroker::Hello(hello()), now);
    let mut asked = |at: Instant| {
        let reports_hash = Digest::of(b"something else");
        session.handle_message(ToBroker::Heartbeat { reports_hash }, at);
        std::iter::from_fn(|| session.poll_output())
            .filter(|output| *output == BrokerOutput::Send(ToAgent::SendReports))
            .count()
    };
    let at = |secs| now + Duration::from_secs(secs);
    assert_eq!([0, 0, 1, 4, 5, 6, 10].map(|secs| asked(at(secs))), [1, 0, 0, 0, 1, 0, 1]);
}
