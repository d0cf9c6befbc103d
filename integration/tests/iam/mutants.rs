//! Is every word of the policies needed? Each statement, action, resource, condition and value is taken out or widened in turn,
//! and a named case must then fail. What survives stands here with its reason.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value as Json, json};

use crate::account::{manage, scale_only};
use crate::cases::Bench;

/// `policy/statement: what was done` and why nothing can notice it. All of one kind: an action is widened in a statement whose
/// condition keys AWS fills for that very action alone, so that the conditions keep every other action out (or, in a deny, let
/// it pass).
#[rustfmt::skip]
const SURVIVORS: &[(&str, &str)] = &[
    ("manage/Create: autoscaling:* for autoscaling:CreateAutoScalingGroup",
        "only a creation has both the tags of a request and MaxSize: an update has no tags, a tagging has no sizes"),
    ("manage/LaunchInstance: ec2:* for ec2:RunInstances",
        "ec2:LaunchTemplate is filled for RunInstances alone"),
    ("manage/LaunchBehind: ec2:* for ec2:RunInstances",
        "ec2:IsLaunchTemplateResource is filled for RunInstances alone"),
    ("manage/TagLaunched: ec2:* for ec2:CreateTags",
        "ec2:CreateAction is filled for CreateTags alone"),
    ("manage/PassNodeRole: iam:* for iam:PassRole",
        "iam:PassedToService is filled for PassRole alone"),
    ("manage/NeverUnnumbered: autoscaling:* for autoscaling:CreateAutoScalingGroup",
        "autoscaling:LaunchTemplateVersionSpecified is filled for Create and Update alone"),
    ("manage/NeverUnnumbered: autoscaling:* for autoscaling:UpdateAutoScalingGroup",
        "autoscaling:LaunchTemplateVersionSpecified is filled for Create and Update alone"),
    ("manage/NeverByConfiguration: autoscaling:* for autoscaling:UpdateAutoScalingGroup",
        "autoscaling:LaunchConfigurationName is filled for Create and Update alone, and a creation is denied without a template"),
    ("manage/NeverForce: autoscaling:* for autoscaling:DeleteAutoScalingGroup",
        "autoscaling:ForceDelete is filled for DeleteAutoScalingGroup alone"),
];

/// A policy with one thing changed.
pub struct Mutant {
    pub name: String,
    pub policy: Json,
}

fn list(value: &Json) -> Vec<Json> {
    match value {
        Json::Array(values) => values.clone(),
        one => vec![one.clone()],
    }
}

pub fn mutants(policy: &Json, of: &str) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    let statements = policy["Statement"].as_array().expect("statements");
    for (index, statement) in statements.iter().enumerate() {
        let sid = statement["Sid"].as_str().expect("each has one");
        let mut add = |what: String, changed: Option<Json>| {
            let mut policy = policy.clone();
            let statements = policy["Statement"].as_array_mut().expect("statements");
            match changed {
                Some(changed) => statements[index] = changed,
                None => drop(statements.remove(index)),
            }
            mutants.push(Mutant { name: format!("{of}/{sid}: {what}"), policy });
        };
        add("without it".to_owned(), None);
        let with = |field: &str, value: Json| {
            let mut statement = statement.clone();
            statement[field] = value;
            statement
        };
        for (field, wider) in [("Action", None), ("Resource", Some("*"))] {
            let values = list(&statement[field]);
            for (at, value) in values.iter().enumerate() {
                let text = value.as_str().expect("text");
                if values.len() > 1 {
                    let mut fewer = values.clone();
                    fewer.remove(at);
                    add(format!("without {text}"), Some(with(field, Json::Array(fewer))));
                }
                let service = text.split(':').next().expect("a service");
                let wider = wider.map_or_else(|| format!("{service}:*"), str::to_owned);
                // What is a service's wildcard has nothing wider that applies to its resources.
                if wider != text {
                    let mut more = values.clone();
                    more[at] = json!(wider);
                    let what = format!("{wider} for {text}");
                    add(what, Some(with(field, Json::Array(more))));
                }
            }
        }
        let Some(conditions) = statement["Condition"].as_object() else { continue };
        for (operator, keys) in conditions {
            for (key, values) in keys.as_object().expect("keys") {
                let mut without = conditions.clone();
                let rest = without[operator].as_object_mut().expect("keys");
                rest.remove(key);
                if rest.is_empty() {
                    without.remove(operator);
                }
                let condition = |conditions: &serde_json::Map<String, Json>| {
                    let mut statement = statement.clone();
                    match conditions.is_empty() {
                        true => drop(statement.as_object_mut().expect("one").remove("Condition")),
                        false => statement["Condition"] = Json::Object(conditions.clone()),
                    }
                    statement
                };
                add(format!("without {operator} {key}"), Some(condition(&without)));
                let mut put = |what: String, operator: &str, value: Json| {
                    let mut changed = without.clone();
                    let keys = changed.entry(operator).or_insert_with(|| json!({}));
                    keys[key] = value;
                    add(what, Some(condition(&changed)));
                };
                for (what, operator, value) in altered(operator, key, values) {
                    put(what, &operator, value);
                }
            }
        }
    }
    mutants
}

/// The condition widened, narrowed, or with another operator.
fn altered(operator: &str, key: &str, values: &Json) -> Vec<(String, String, Json)> {
    let mut altered = Vec::new();
    let all = list(values);
    let mut add = |what: String, operator: &str, value: Json| {
        altered.push((format!("{what} in {operator} {key}"), operator.to_owned(), value));
    };
    for (at, value) in all.iter().enumerate() {
        let text = value.as_str().expect("text");
        if all.len() > 1 {
            let mut fewer = all.clone();
            fewer.remove(at);
            add(format!("without {text}"), operator, Json::Array(fewer));
        }
        match (text.parse::<i64>(), text) {
            (Ok(number), _) => {
                for number in [number - 1, number + 1] {
                    add(format!("{number} for {text}"), operator, json!(number.to_string()));
                }
            }
            (Err(_), "true" | "false") => {
                let other = if text == "true" { "false" } else { "true" };
                add(format!("{other} for {text}"), operator, json!(other));
            }
            (Err(_), _) => {
                let like = operator.replace("Equals", "Like").replace("IgnoreCase", "");
                let mut wild = all.clone();
                wild[at] = json!("*");
                add(format!("* for {text}"), &like, Json::Array(wild));
            }
        }
    }
    if operator.ends_with("IgnoreCase") {
        let exact = operator.trim_end_matches("IgnoreCase");
        add("exact spelling".to_owned(), exact, values.clone());
    }
    if operator.ends_with("IfExists") {
        let strict = operator.trim_end_matches("IfExists");
        add("also where it is absent".to_owned(), strict, values.clone());
    } else if operator.starts_with("Numeric") || operator.starts_with("Bool") {
        let lax = format!("{operator}IfExists");
        add("not where it is absent".to_owned(), &lax, values.clone());
    }
    altered
}

#[test]
fn every_word_of_the_policies_is_needed() {
    let parse = |text: String| serde_json::from_str::<Json>(&text).expect("JSON");
    let (narrow, wide) = (parse(scale_only().to_json()), parse(manage().to_json()));
    let bench = Bench::new();
    let mut caught: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut survivors = BTreeSet::new();
    let both = mutants(&narrow, "scale-only")
        .into_iter()
        .map(|mutant| (mutant.policy.to_string(), wide.to_string(), mutant.name))
        .chain(
            mutants(&wide, "manage")
                .into_iter()
                .map(|mutant| (narrow.to_string(), mutant.policy.to_string(), mutant.name)),
        );
    for (narrow, wide, name) in both {
        match bench.failures(&narrow, &wide) {
            failures if failures.is_empty() => drop(survivors.insert(name)),
            failures => drop(caught.insert(name, failures)),
        }
    }
    println!("{} mutants caught, {} survive", caught.len(), survivors.len());
    for (name, by) in &caught {
        println!("{name}: {}", by[0]);
    }
    assert!(caught.len() >= 60, "{}", caught.len());
    let known: BTreeSet<String> = SURVIVORS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(survivors, known, "what survives must stand in SURVIVORS with a reason");
}
