//! `outstation call`: rows in, features out, with who answered and how fast.

use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value as Json, json};

use outstation_api::transform::row_error::Kind as ErrorKind;
use outstation_api::transform::row_result::Outcome;
use outstation_api::transform::{CallRequest, CallResponse, Row, RowError};
use outstation_protocol::ids::GroupName;

use crate::args;
use crate::caller::Caller;
use crate::clock;
use crate::context::Context;
use crate::declarations;
use crate::manifest::Manifest;
use crate::message::{Failure, Hint as _};
use crate::show::table;
use crate::values::{self, ValueError, row_from_json};
use crate::verbs::declarations_dir;

/// More belongs in several calls.
const ROWS_MAX: usize = 100_000;

pub async fn run(context: &Context, verb: &args::Call) -> anyhow::Result<ExitCode> {
    let rows = read_rows(verb)?;
    let manifest = match declarations_dir(verb.declarations.as_ref()) {
        Some(dir) => Some(declarations::load(&context.python, &dir).await?),
        None => None,
    };
    let group = group_of(verb, manifest.as_ref())?;
    let rows = encode(&rows, &verb.target, manifest.as_ref())?;
    let caller = Caller::connect(context, &group).await?;
    let timeout = Duration::from_millis(verb.timeout_ms);
    caller.wait_for_endpoints(1, timeout).await?;

    let started = clock::now();
    let answered = caller.call(CallRequest { target: verb.target.clone(), rows }, timeout).await;
    let latency = started.elapsed();
    let node = answered.node.unwrap_or_else(|| "unknown".into());
    let response = match answered.outcome {
        Ok(response) => response,
        Err(status) => return Err(crate::caller::call_failure(&group, &status)),
    };
    if verb.json {
        let results: Vec<Json> = response.results.iter().map(result_json).collect();
        let answer = json!({
            "target": verb.target,
            "group": group,
            "node": node,
            "latency_ms": latency.as_secs_f64() * 1000.0,
            "results": results,
        });
        crate::message::print(format_args!("{}\n", serde_json::to_string_pretty(&answer)?));
    } else {
        crate::message::print(format_args!("{}", text(&response, &node, latency)));
    }
    match rows_failed(&response) {
        None => Ok(ExitCode::SUCCESS),
        Some(failure) => Err(failure.into()),
    }
}

/// How many rows have no features, and what to do about the first of them.
fn rows_failed(response: &CallResponse) -> Option<Failure> {
    let all = response.results.len();
    let failed = response.results.iter().enumerate().filter_map(|(index, result)| {
        if let Some(Outcome::Error(error)) = &result.outcome {
            Some((index + 1, error))
        } else {
            None
        }
    });
    let failed: Vec<(usize, &RowError)> = failed.collect();
    let (row, first) = failed.first()?;
    let hint = match first.kind() {
        ErrorKind::Input => "correct the row: its fields are those of the RequestSource",
        ErrorKind::Function => "correct the function where the traceback above ends, then apply",
        ErrorKind::Output => {
            "let the function return exactly its features, of their types; then apply"
        }
        ErrorKind::Unspecified => "are this command and the servers of the same release?",
    };
    Some(Failure::new(
        format!(
            "{} of {all} rows failed, the first row {row}: {} in {}: {}",
            failed.len(),
            kind_text(first),
            first.function,
            first.message
        ),
        hint,
    ))
}

fn group_of(verb: &args::Call, manifest: Option<&Manifest>) -> anyhow::Result<GroupName> {
    let declared = || manifest.and_then(|manifest| manifest.group_of(&verb.target)).cloned();
    verb.group.clone().or_else(declared).ok_or_else(|| {
        let hint = match manifest {
            Some(_) => "name the group with --group",
            None => "name it with --group, or the declarations with --declarations",
        };
        Failure::new(format!("which server group serves {:?}?", verb.target), hint).into()
    })
}

fn read_rows(verb: &args::Call) -> anyhow::Result<Vec<Json>> {
    let rows = match (&verb.row, &verb.rows) {
        (Some(row), _) => {
            let row: Json = serde_json::from_str(row)
                .context("--row is not JSON")
                .hint("write it as --row '{\"distance\": 1400.0}'")?;
            match row {
                Json::Array(rows) => rows,
                row => vec![row],
            }
        }
        (None, Some(path)) => read_lines(path)?,
        (None, None) => Vec::new(),
    };
    if rows.is_empty() || rows.len() > ROWS_MAX {
        let what = format!("{} rows in one call, not 1 to {ROWS_MAX}", rows.len());
        return Err(Failure::new(what, "give at least one; split many over several calls").into());
    }
    Ok(rows)
}

fn read_lines(path: &Path) -> anyhow::Result<Vec<Json>> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        text
    } else {
        std::fs::read_to_string(path)
            .with_context(|| format!("read {}", path.display()))
            .hint("--rows names a file with one JSON object a line")?
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("line {} of {}", number + 1, path.display()))
                .hint("--rows names a file with one JSON object a line")
        })
        .collect()
}

fn encode(rows: &[Json], target: &str, manifest: Option<&Manifest>) -> anyhow::Result<Vec<Row>> {
    let schema = match manifest {
        Some(manifest) => Some(
            manifest
                .input_schema(target)
                .with_context(|| {
                    format!("the declarations have no feature view or service {target:?}")
                })
                .hint("correct the name, or leave --declarations away to let the server decide")?,
        ),
        None => None,
    };
    rows.iter()
        .enumerate()
        .map(|(index, row)| {
            row_from_json(row, schema.as_ref()).map_err(|error| {
                let hint = match &error {
                    ValueError::NotAnObject { .. } => {
                        "a row is written as '{\"distance\": 1400.0}'; several as a list of them"
                            .to_owned()
                    }
                    ValueError::Missing { field, .. } => {
                        format!("add it; if its value is not known: {field:?}: null")
                    }
                    ValueError::Mismatch { .. }
                    | ValueError::Unknown { .. }
                    | ValueError::Number { .. } => {
                        "the declarations' RequestSource says which fields there are".to_owned()
                    }
                };
                Failure::new(format!("row {}: {error}", index + 1), hint).into()
            })
        })
        .collect()
}

fn result_json(result: &outstation_api::transform::RowResult) -> Json {
    match &result.outcome {
        Some(Outcome::Row(row)) => json!({"row": values::row_to_json(row)}),
        Some(Outcome::Error(error)) => json!({"error": {
            "kind": kind_text(error),
            "function": error.function,
            "message": error.message,
            "traceback": error.traceback,
        }}),
        None => json!({"error": {"kind": "NONE", "message": "the server answered nothing"}}),
    }
}

fn kind_text(error: &RowError) -> &'static str {
    match error.kind() {
        ErrorKind::Unspecified => "UNSPECIFIED",
        ErrorKind::Input => "INPUT",
        ErrorKind::Function => "FUNCTION",
        ErrorKind::Output => "OUTPUT",
    }
}

/// One line for each row, one column for each feature.
fn text(response: &CallResponse, node: &str, latency: Duration) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for result in &response.results {
        if let Some(Outcome::Row(row)) = &result.outcome {
            for field in &row.fields {
                if !columns.contains(&field.name.as_str()) {
                    columns.push(&field.name);
                }
            }
        }
    }
    let mut failures = String::new();
    let mut rows = Vec::new();
    for (index, result) in response.results.iter().enumerate() {
        match &result.outcome {
            Some(Outcome::Row(row)) => {
                let row = values::row_to_json(row);
                let cell = |column: &&str| match row.get(*column) {
                    Some(Json::String(text)) => text.clone(),
                    Some(value) => value.to_string(),
                    None => "-".into(),
                };
                let number = (index + 1).to_string();
                rows.push(std::iter::once(number).chain(columns.iter().map(cell)).collect());
            }
            Some(Outcome::Error(error)) => failures.push_str(&format!(
                "row {}: {} in {}: {}\n{}",
                index + 1,
                kind_text(error),
                error.function,
                error.message,
                error.traceback.lines().map(|line| format!("    {line}\n")).collect::<String>(),
            )),
            None => failures.push_str(&format!("row {}: the server answered nothing\n", index + 1)),
        }
    }
    let header: Vec<&str> = std::iter::once("ROW").chain(columns).collect();
    let table = if rows.is_empty() { String::new() } else { table::render(&header, &rows) };
    let millis = latency.as_secs_f64() * 1000.0;
    format!("{table}{failures}answered by {node} in {millis:.1} ms\n")
}

/// For the tests and `dev`: what is wrong with an answer, if anything.
pub fn first_error(response: &CallResponse, rows: usize) -> Option<String> {
    if response.results.len() != rows {
        return Some(format!("{} results for {rows} rows", response.results.len()));
    }
    response.results.iter().find_map(|result| match &result.outcome {
        Some(Outcome::Row(_)) => None,
        Some(Outcome::Error(error)) => {
            Some(format!("{} in {}: {}", kind_text(error), error.function, error.message))
        }
        None => Some("the server answered nothing".into()),
    })
}

/// Not used for decisions, only for what is printed.
pub fn since(started: Instant) -> String {
    format!("{:.1} s", started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use outstation_api::transform::RowResult;

    #[test]
    fn rows_and_errors_are_told_apart() {
        let schema: Json = json!({"speed.mph": 420.5, "speed.carrier": "AA"});
        let row = row_from_json(&schema, None).expect("infers");
        let error = RowError {
            kind: ErrorKind::Function.into(),
            function: "speed".into(),
            message: "ZeroDivisionError: division by zero".into(),
            traceback: "Traceback\n  features.py:3".into(),
        };
        let response = CallResponse {
            results: vec![
                RowResult { outcome: Some(Outcome::Row(row)) },
                RowResult { outcome: Some(Outcome::Error(error)) },
            ],
        };
        assert_eq!(
            text(&response, "i-a", Duration::from_micros(1250)),
            "\
ROW  speed.carrier  speed.mph
  1  AA                 420.5
row 2: FUNCTION in speed: ZeroDivisionError: division by zero
    Traceback
      features.py:3
answered by i-a in 1.2 ms
"
        );
        let first = first_error(&response, 2).expect("an error");
        assert!(first.contains("division by zero"));
        assert!(first_error(&response, 3).expect("too few").contains("2 results for 3 rows"));
    }
}
