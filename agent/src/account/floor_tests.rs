use super::*;
use crate::account::plan::Action;
use crate::account::testing::{group, ledger_of, order, spec};
use outstation_protocol::Digest;
use outstation_protocol::order::Intent;

/// `a=2 b=x`; `-` is a group without the tag.
fn observed(text: &str) -> Observed {
    text.split_whitespace()
        .map(|part| {
            let (name, tag) = part.split_once('=').expect("name=tag");
            let tags = (tag != "-").then(|| (TAG_GENERATION.to_owned(), tag.to_owned()));
            let is = ObservedGroup {
                min: 3,
                max: 3,
                desired: 3,
                tags: tags.into_iter().collect(),
                ..ObservedGroup::default()
            };
            (group(name), is)
        })
        .collect()
}

/// `a=2`; a tombstone is `a=2!`.
fn ledger(text: &str) -> BTreeMap<GroupName, Accepted> {
    let orders = text.split_whitespace().map(|part| {
        let (name, rest) = part.split_once('=').expect("name=generation");
        let intent = if rest.ends_with('!') { Intent::Destroy } else { Intent::Apply(spec(3)) };
        let generation: u64 = rest.trim_end_matches('!').parse().expect("a generation");
        order(name, generation, (generation > 1).then(|| Digest::of(b"parent")), intent)
    });
    ledger_of(&orders.collect::<Vec<_>>())
}

/// `a=5` is a floor; `a~7` says that the tag 7 is wrong.
fn floors(text: &str) -> Floors {
    text.split_whitespace()
        .map(|part| {
            let (name, value) = part.split_once(['=', '~']).expect("name=… or name~…");
            let is_floor = part.contains('=');
            let floor = Floor {
                group: group(name),
                generation: is_floor.then(|| Generation(value.parse().expect("a generation"))),
                wrong_tag: (!is_floor).then(|| value.to_owned()),
                decided_at_unix_secs: 0,
            };
            (group(name), floor)
        })
        .collect()
}

fn found(ledger_text: &str, floors_text: &str, observed_text: &str) -> String {
    let (ledger, floors) = (ledger(ledger_text), floors(floors_text));
    contradictions(&ledger, &floors, &observed(observed_text))
        .iter()
        .map(|c| {
            let ledger = c.ledger.map_or("none".to_owned(), |generation| generation.to_string());
            let tag = match &c.tag {
                Tag::Generation(generation) => generation.to_string(),
                Tag::NoGeneration(text) => format!("{text:?}"),
                Tag::Missing => "missing".to_owned(),
            };
            format!("{} {ledger} {tag}", c.group)
        })
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn what_the_ledger_cannot_explain_is_a_contradiction() {
    for (ledger, floors, observed, wanted) in [
        // As it should be, and what is merely behind.
        ("a=2", "", "a=2", ""),
        ("a=2", "", "a=1", ""),
        ("a=2", "", "", ""),
        ("a=2", "", "a=-", ""),
        ("a=2!", "", "a=1", ""),
        ("", "", "", ""),
        // The store was restored from an old backup, or emptied.
        ("a=2", "", "a=3", "a 2 3"),
        ("a=2!", "", "a=3", "a 2 3"),
        ("", "", "a=1", "a none 1"),
        ("a=2", "", "a=2 b=7", "b none 7"),
        ("", "", "a=-", "a none missing"),
        ("a=1 b=1", "", "a=2 b=3", "a 1 2, b 1 3"),
        // No generation at all.
        ("a=2", "", "a=two", "a 2 \"two\""),
        ("a=2", "", "a=", "a 2 \"\""),
        ("a=2", "", "a=-1", "a 2 \"-1\""),
        ("a=2", "", "a=0", "a 2 \"0\""),
        ("a=2", "", "a=18446744073709551616", "a 2 \"18446744073709551616\""),
        ("", "", "a=x", "a none \"x\""),
        // A person has adopted what is there.
        ("", "a=5", "a=5", ""),
        ("", "a=5", "a=4", ""),
        ("", "a=5", "a=-", ""),
        ("", "a=5", "a=6", "a 5 6"),
        ("a=6", "a=5", "a=6", ""),
        ("a=6", "a=5", "a=7", "a 6 7"),
        ("", "a=5", "a=x", "a 5 \"x\""),
        // A person has said that the tag is wrong.
        ("a=2", "a~9", "a=9", ""),
        ("a=2", "a~x", "a=x", ""),
        ("a=2", "a~", "a=", ""),
        ("a=2", "a~9", "a=8", "a 2 8"),
        ("a=2", "a~9", "a=2", ""),
        // Then the ledger was lost: nothing is left that could be right.
        ("", "a~9", "a=9", "a none 9"),
    ] {
        assert_eq!(found(ledger, floors, observed), wanted, "{ledger:?} {floors:?} {observed:?}");
    }
}

#[test]
fn a_contradiction_names_both_generations() {
    for (ledger_text, observed_text, wanted) in [
        (
            "a=2",
            "a=5",
            "group a: its AutoScaling group is tagged generation 5, the account store holds \
             generation 2",
        ),
        (
            "",
            "a=5",
            "group a: its AutoScaling group is tagged generation 5, the account store holds \
             no order of it",
        ),
        (
            "a=2",
            "a=x",
            "group a: its AutoScaling group is tagged generation \"x\", which is none, \
             the account store holds generation 2",
        ),
        (
            "",
            "a=-",
            "group a: its AutoScaling group carries no generation, the account store holds \
             no order of it",
        ),
    ] {
        let found = contradictions(&ledger(ledger_text), &Floors::new(), &observed(observed_text));
        assert_eq!(found[0].message(), wanted);
    }
}

#[test]
fn one_contradiction_holds_every_group() {
    let ledger = ledger("a=2 b=1");
    let resize =
        Action::Resize { asg_name: "outstation-a".to_owned(), min: 3, max: 3, desired: Some(3) };
    let plan = || GroupPlan { actions: vec![resize.clone()], ..GroupPlan::default() };
    let mut plans: Plan = [(group("a"), plan()), (group("b"), plan())].into();
    let before = plans.clone();
    hold(&mut plans, &ledger, &[]);
    assert_eq!(plans, before);

    let found = contradictions(&ledger, &Floors::new(), &observed("a=5 c=1"));
    hold(&mut plans, &ledger, &found);
    for (name, wanted) in [("a", [Some(Generation(2)), None]), ("b", [None, None])] {
        let plan = &plans[&group(name)];
        assert!(plan.actions.is_empty(), "{plan:?}");
        let generations: Vec<_> = plan.held.iter().map(|held| held.generation).collect();
        assert_eq!(generations, wanted, "{plan:?}");
        assert!(plan.held.iter().all(|held| held.rule == "contradiction"));
        assert!(plan.held.iter().all(|held| held.hint.contains("outstation-agent adopt")));
    }
    let alone = left_alone(&ledger, &Floors::new(), &observed("a=5 c=1"), &found);
    assert_eq!(alone.keys().collect::<Vec<_>>(), [&group("c")]);
    assert!(alone[&group("c")][0].message.starts_with("group c: "), "its own first: {alone:?}");
}

#[test]
fn many_contradictions_are_counted() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let text: Vec<String> = names.iter().map(|name| format!("{name}=1")).collect();
    let found = contradictions(&BTreeMap::new(), &Floors::new(), &observed(&text.join(" ")));
    let told = told(&found, &group("f"), None);
    assert_eq!(told.len(), TOLD_MAX);
    assert!(told[0].message.starts_with("group f: "), "{told:?}");
    assert!(told[TOLD_MAX - 1].message.ends_with(", and 2 groups more"), "{told:?}");
}

#[test]
fn what_was_adopted_is_left_alone_until_an_order_comes() {
    let (floors, observed) = (floors("a=5 b=3 c~9"), observed("a=5 c=1"));
    let ledger = ledger("c=1");
    let alone = left_alone(&ledger, &floors, &observed, &[]);
    assert_eq!(alone.keys().collect::<Vec<_>>(), [&group("a"), &group("b")]);
    assert_eq!(alone[&group("a")][0].rule, "adopted");
    let standing = Standing::of(&ledger, &observed, vec![]);
    let unordered_nodes = [(group("a"), 3)].into();
    assert_eq!(standing, Standing::Clear { unordered_nodes });
    assert_eq!(standing.refusal(), None);
}

#[test]
fn nothing_is_refused_for_good_because_of_the_account() {
    let found = contradictions(&BTreeMap::new(), &Floors::new(), &observed("a=1 b=2"));
    for (standing, words) in [
        (Standing::NotLooked, "not been looked at"),
        (Standing::Blind("no route to host".to_owned()), "no route to host"),
        (Standing::Contradicted(found), "group a: its AutoScaling group is tagged generation 1"),
    ] {
        let refusal = standing.refusal().expect(words);
        assert!(refusal.message.contains(words), "{refusal:?}");
        assert!(!refusal.rule.is_final());
    }
}
