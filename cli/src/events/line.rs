//! An event as one line, for people and for programs. Pure.

use outstation_api::admin::{Cursor, Event};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::reader::{Item, gap_name, gap_text};

/// A line of the text or of the JSON, without its end.
pub fn line(item: &Item, as_json: bool) -> String {
    match (item, as_json) {
        (Item::Event(event), false) => text(event),
        (Item::Event(event), true) => json_line(event),
        (Item::Gap(gap), false) => format!("-- {}", gap_text(gap)),
        (Item::Gap(gap), true) => json!({
            "gap": gap_name(gap),
            "after": gap.after,
            "resumes_after": gap.resumes_after,
            "message": gap_text(gap),
        })
        .to_string(),
    }
}

/// Number, time, kind and group in columns; then the order, what happened, what to do, and who
/// said it.
fn text(event: &Event) -> String {
    let Cursor { sequence, .. } = event.cursor.clone().unwrap_or_default();
    let group = if event.group.is_empty() { "-" } else { &event.group };
    let mut line = format!(
        "{sequence:>6}  {:<20}  {:<18}  {group:<14}",
        time_text(event.at_unix_secs),
        event.kind
    );
    if let Some(generation) = event.generation {
        line.push_str(&format!("  generation {generation}"));
        if !event.digest.is_empty() {
            line.push_str(&format!(" {}", event.digest));
        }
    }
    let rule = if event.rule.is_empty() { "" } else { &format!("{}: ", event.rule) };
    line.push_str(&format!("  {rule}{}", event.message));
    if !event.hint.is_empty() {
        line.push_str(&format!("; hint: {}", event.hint));
    }
    if !event.agent.is_empty() {
        line.push_str(&format!("  [{}]", event.agent));
    }
    // The texts are an account agent's, and this is a terminal.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn json_line(event: &Event) -> String {
    let Cursor { log, sequence, .. } = event.cursor.clone().unwrap_or_default();
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    json!({
        "sequence": sequence,
        "log": log,
        "at": time_text(event.at_unix_secs),
        "at_unix_secs": event.at_unix_secs,
        "kind": event.kind,
        "group": some(&event.group),
        "generation": event.generation,
        "digest": some(&event.digest),
        "agent": some(&event.agent),
        "rule": some(&event.rule),
        "message": event.message,
        "hint": some(&event.hint),
    })
    .to_string()
}

fn time_text(unix_secs: u64) -> String {
    i64::try_from(unix_secs)
        .ok()
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| unix_secs.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use outstation_api::admin::Gap;
    use outstation_api::admin::gap::Reason;

    fn refused() -> Event {
        Event {
            cursor: Some(Cursor { log: "log".into(), run: "run".into(), sequence: 7 }),
            at_unix_secs: 1_800_000_000,
            group: "delay_tsg".into(),
            generation: Some(5),
            digest: "sha256:0123456789ab…".into(),
            agent: "a-1".into(),
            kind: "refused".into(),
            rule: "guardrail".into(),
            message: "90 nodes are more than 40".into(),
            hint: "ask".into(),
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let connected = Event {
            cursor: Some(Cursor { sequence: 12_345, ..Cursor::default() }),
            at_unix_secs: 1_800_000_001,
            agent: "a-1".into(),
            kind: "agent_connected".into(),
            message: "release\n0.1\u{1b}[2J".into(),
            ..Event::default()
        };
        let gap = Gap { reason: Reason::Pruned.into(), after: 3, resumes_after: 8 };
        for (item, wanted) in [
            (
                Item::Event(Box::new(refused())),
                "     7  2027-01-15T08:00:00Z  refused             delay_tsg       generation 5 \
                 sha256:0123456789ab…  guardrail: 90 nodes are more than 40; hint: ask  [a-1]",
            ),
            (
                Item::Event(Box::new(connected)),
                " 12345  2027-01-15T08:00:01Z  agent_connected     -               release 0.1 \
                 [2J  [a-1]",
            ),
            (Item::Gap(gap), "-- events 4 to 8 are gone: the log keeps a bounded number of them"),
        ] {
            assert_eq!(line(&item, false), wanted);
            assert!(!line(&item, true).contains('\n'));
        }
    }

    #[test]
    fn the_json_is_for_programs() {
        let text = line(&Item::Event(Box::new(refused())), true);
        let json: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
        assert_eq!(
            json,
            serde_json::json!({
                "sequence": 7,
                "log": "log",
                "at": "2027-01-15T08:00:00Z",
                "at_unix_secs": 1_800_000_000,
                "kind": "refused",
                "group": "delay_tsg",
                "generation": 5,
                "digest": "sha256:0123456789ab…",
                "agent": "a-1",
                "rule": "guardrail",
                "message": "90 nodes are more than 40",
                "hint": "ask",
            })
        );
        let text = line(&Item::Event(Box::default()), true);
        let json: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
        assert!(json["group"].is_null() && json["generation"].is_null());
    }
}
