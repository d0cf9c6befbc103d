use super::*;
use crate::account::testing::group;
use outstation_protocol::Generation;

fn contradiction(ledger: Option<u64>, tag: Tag) -> Contradiction {
    Contradiction { group: group("a"), ledger: ledger.map(Generation), tag }
}

/// `5` is a floor, `~9` a tag that is called wrong, anything else is what has to happen first.
fn decided(
    ledger: Option<u64>,
    floor_before: Option<u64>,
    tag: Tag,
    from_ledger: bool,
) -> (String, String) {
    let before = floor_before.map(|generation| Floor {
        group: group("a"),
        generation: Some(Generation(generation)),
        wrong_tag: None,
        decided_at_unix_secs: 0,
    });
    let floors = before.into_iter().map(|floor| (floor.group.clone(), floor)).collect();
    let from_ledger = if from_ledger { vec![group("a")] } else { vec![] };
    let found = [contradiction(ledger, tag)];
    let decided = decide(&found, &floors, &from_ledger, 7).expect("a group that is there");
    let text = show(&decided.decisions, &decided.undecided);
    match decided.decisions.as_slice() {
        [Decision { floor, .. }] => {
            assert_eq!(floor.decided_at_unix_secs, 7);
            let generation = floor.generation.map_or("-".to_owned(), |g| g.to_string());
            let wrong = floor.wrong_tag.as_ref().map_or(String::new(), |tag| format!(" ~{tag}"));
            (format!("{generation}{wrong}"), text)
        }
        _ => ("undecided".to_owned(), text),
    }
}

#[test]
fn a_decision_is_a_floor_or_a_wrong_tag() {
    let tagged = |generation| Tag::Generation(Generation(generation));
    let nonsense = || Tag::NoGeneration("x".to_owned());
    for (ledger, floor, tag, from_ledger, wanted, words) in [
        (Some(2), None, tagged(5), false, "5", "nothing up to generation 5 is accepted"),
        (None, None, tagged(5), false, "5", "nothing up to generation 5 is accepted"),
        (Some(5), Some(5), tagged(8), false, "8", "nothing up to generation 8 is accepted"),
        (Some(2), None, tagged(5), true, "- ~5", "generation 2 goes on; the tag 5"),
        (Some(6), Some(5), tagged(8), true, "5 ~8", "generation 6 goes on; the tag 8"),
        (Some(2), None, nonsense(), true, "- ~x", "generation 2 goes on; the tag \"x\""),
        (Some(2), None, nonsense(), false, "undecided", "add --from-ledger a"),
        (None, None, tagged(5), true, "undecided", "holds no order of it that could be right"),
        (Some(5), Some(5), tagged(8), true, "undecided", "holds no order of it"),
        (None, None, nonsense(), false, "undecided", "outstation describe a shows it"),
        (Some(5), Some(5), nonsense(), false, "undecided", "outstation describe a shows it"),
        (None, None, Tag::Missing, false, "undecided", "outstation describe a shows it"),
    ] {
        let (found, text) = decided(ledger, floor, tag.clone(), from_ledger);
        assert_eq!(found, wanted, "{ledger:?} {floor:?} {tag:?} {from_ledger}");
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
}

#[test]
fn a_group_that_contradicts_nothing_cannot_be_named() {
    let found = [contradiction(Some(2), Tag::Generation(Generation(5)))];
    let error = decide(&found, &Floors::new(), &[group("b")], 7).expect_err("another group");
    assert!(error.to_string().contains("group b contradicts nothing"), "{error}");
}
