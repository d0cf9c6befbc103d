//! A fleet that boots at once, and every node of it asks who it is: counted in calls and in virtual time.

use std::future::Future;
use std::pin::Pin;

use outstation_agent::account::aws::CallError;
use outstation_agent::account::whereabouts::{INSTANCES_A_CALL_MAX, Whereabouts};
use outstation_protocol::InstanceId;

use crate::agent::poll_once;
use crate::oracle::{PREFIX, Rules};
use crate::people::spec;
use crate::weather::Weather;
use crate::world::{Setup, World, group};

/// As many nodes as the policy lets a group have.
const NODES_A_GROUP: u32 = 6;
const GROUPS: usize = 20;
const NODES: usize = 120;
const ASKED: &str = "DescribeAutoScalingInstances";

type Question<'a> = Pin<Box<dyn Future<Output = Result<Option<String>, CallError>> + 'a>>;

fn fleet() -> World {
    let mut world = World::new(120, Weather::default(), Setup::default());
    world.calm_down();
    world.set_rules(Rules { nodes_total_max: 120, ..world.rules });
    for index in 0..GROUPS {
        world.apply(&group(index), Some(spec(NODES_A_GROUP, 0, false)));
    }
    world.settle();
    // Whatever the bucket was asked for before.
    world.pass(10_000);
    world
}

impl World {
    fn whereabouts(&self) -> Whereabouts {
        Whereabouts::new(self.agents.values().next().expect("one agent").aws.clone())
    }

    fn asked(&self) -> usize {
        self.calls.iter().filter(|(_, action, _)| action == ASKED).count()
    }

    /// Until every question has its answer.
    fn answers(&mut self, mut questions: Vec<Question<'_>>) -> Vec<Option<String>> {
        let until = self.now_millis + 60_000;
        let mut answers = vec![None; questions.len()];
        while answers.contains(&None) {
            assert!(self.now_millis < until, "not everybody has an answer: {answers:?}");
            for (answer, question) in answers.iter_mut().zip(&mut questions) {
                if answer.is_none() {
                    *answer = poll_once(question.as_mut());
                }
            }
            self.pass(5);
        }
        answers.into_iter().flatten().map(|answer| answer.expect("AWS answers")).collect()
    }
}

#[test]
fn a_fleet_that_joins_at_once_is_asked_for_by_the_fifty() {
    let mut world = fleet();
    let whereabouts = world.whereabouts();
    let nodes: Vec<InstanceId> = world.nodes.keys().cloned().collect();
    assert_eq!(nodes.len(), NODES);
    let begun = world.now_millis;
    let of = |node: &InstanceId| Some(format!("{PREFIX}{}", world.nodes[node].group));
    let ours: Vec<Option<String>> = nodes.iter().map(of).collect();
    let questions: Vec<Question<'_>> =
        nodes.iter().map(|node| Box::pin(whereabouts.group_of(node)) as Question<'_>).collect();
    let answers = world.answers(questions);
    println!("{NODES} nodes: {} calls in {} ms", world.asked(), world.now_millis - begun);
    assert_eq!(answers, ours);
    assert_eq!(world.asked(), NODES.div_ceil(INSTANCES_A_CALL_MAX));
    assert!(world.now_millis - begun < 2000, "nobody waits long for it");

    // One by one it is a call each, and strangers are nowhere.
    let stranger = InstanceId::try_from("i-00000000000000bad").expect("valid");
    let before = world.asked();
    let answers = world.answers(vec![Box::pin(whereabouts.group_of(&nodes[0]))]);
    let nowhere = world.answers(vec![Box::pin(whereabouts.group_of(&stranger))]);
    assert_eq!((answers, nowhere, world.asked() - before), (vec![ours[0].clone()], vec![None], 2));
}

/// Nodes that time out and come again: nobody else loses an answer by it, and nobody is asked for in vain.
#[test]
fn who_gives_up_asking_takes_nobody_along() {
    let mut world = fleet();
    let whereabouts = world.whereabouts();
    let nodes: Vec<InstanceId> = world.nodes.keys().cloned().collect();
    let ask = |node| Box::pin(whereabouts.group_of(node)) as Question<'_>;
    let (mut impatient, mut patient): (Vec<_>, Vec<_>) =
        nodes.iter().enumerate().map(|(n, node)| (n, ask(node))).partition(|(n, _)| n % 2 == 0);
    for (_, question) in impatient.iter_mut().chain(&mut patient) {
        assert!(poll_once(question.as_mut()).is_none());
    }
    // While the first of them gathers for all of them.
    world.pass(50);
    drop(impatient.split_off(30));
    world.pass(100);
    for (_, question) in &mut impatient {
        assert!(poll_once(question.as_mut()).is_none(), "its call is on its way");
    }
    drop(impatient);
    let answers = world.answers(patient.into_iter().map(|(_, question)| question).collect());
    assert_eq!(answers.len(), NODES / 2);
    assert!(answers.iter().all(Option::is_some));
    assert!((2..=4).contains(&world.asked()), "{} calls", world.asked());
}
