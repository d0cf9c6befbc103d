//! Arguments: words that are not verbs, names that are not names, numbers that are not numbers.

use std::sync::Arc;

use outstation_integration::python;

use crate::Act::{Cli, Do};
use crate::{Doing, Ground, Table};

const ROW: &str = r#"{"distance": 1400, "air_time": 227}"#;

#[rustfmt::skip]
pub const TABLE: Table = &[
    ("a verb that there is not", Cli(&["aply"]), "exit 1",
        "unrecognized subcommand 'aply'", "'apply'*usage:*--help"),
    ("no verb", Cli(&[]), "exit 1",
        "requires a subcommand but one was not provided", "usage: outstation*--help"),
    ("an option that there is not", Cli(&["get", "--yaml"]), "exit 1",
        "unexpected argument '--yaml'", "usage: outstation get"),
    ("a group's name with a digit first", Cli(&["describe", "1st"]), "exit 1",
        "invalid value '1st'*starting with a letter", "--help"),
    ("a group's name of 64 letters",
        Cli(&["describe", "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbccccccccccccccccdddddddddddddddd"]), "exit 1",
        "invalid value*1-63 letters", "--help"),
    ("a group's name in Greek", Cli(&["describe", "ομάδα"]), "exit 1",
        "'ομάδα'*letters", "--help"),
    ("a path as a group's name", Cli(&["describe", "../../etc/passwd"]), "exit 1",
        "invalid value", "--help"),
    ("a group that there is not", Cli(&["describe", "nope"]), "exit 1",
        "there is no server group nope", "`outstation get` lists"),
    ("a group to destroy that there is not", Cli(&["destroy", "nope", "--yes"]), "exit 1",
        "there is no server group nope", "`outstation get` lists"),
    ("destroy everything, with yes alone", Cli(&["destroy", "--yes"]), "exit 1",
        "EVERY server group", "--confirm-destroy 1"),
    ("destroy one, nobody to ask", Cli(&["destroy", "delay_tsg", "--confirm-destroy", "7"]), "exit 1",
        "1 group would be destroyed, not 7", "confirm the right number"),
    ("a negative number of groups to destroy", Cli(&["destroy", "--confirm-destroy=-1"]), "exit 1",
        "invalid value '-1'", "--help"),
    ("a wait longer than time", Cli(&["apply", ".", "--timeout", "18446744073709551615"]), "exit 1",
        "invalid value*18446744073709551615*1..=86400", "--help"),
    ("no time at all", Cli(&["call", "speed", "--row", ROW, "--timeout-ms", "0"]), "exit 1",
        "invalid value '0'*--timeout-ms*1..=", "--help"),
    ("time that is not a number", Cli(&["call", "speed", "--row", ROW, "--timeout-ms", "soon"]), "exit 1",
        "invalid value 'soon'", "--help"),
    ("no rows", Cli(&["call", "speed"]), "exit 1",
        "required*--row", "usage: outstation call"),
    ("a row that is not JSON", Cli(&["call", "speed", "--row", "{distance: 1}"]), "exit 1",
        "--row is not JSON", "write it as"),
    ("a row that is a number", Cli(&["call", "speed", "--row", "7"]), "exit 1",
        "row 1: a row is not a JSON object but 7", "a row is written as"),
    ("no row in the list", Cli(&["call", "speed", "--row", "[]"]), "exit 1",
        "0 rows", "at least one"),
    ("a field that is missing", Cli(&["call", "speed", "--row", r#"{"distance": 1400}"#]), "exit 1",
        "row 1: field \"air_time\" (float64) is missing", "\"air_time\": null"),
    ("a field that there is not",
        Cli(&["call", "speed", "--row", r#"{"distance": 1, "air_time": 2, "airtime": 3}"#]), "exit 1",
        "field \"airtime\" is not one of the target's: air_time, distance", "RequestSource"),
    ("a field of another type", Cli(&["call", "speed", "--row", r#"{"distance": "far", "air_time": 2}"#]), "exit 1",
        "field \"distance\" wants float64, not \"far\"", "RequestSource"),
    ("a target that there is not", Cli(&["call", "sped", "--row", ROW]), "exit 1",
        "no feature view or service \"sped\"", "correct the name"),
    ("a file of rows that there is not", Cli(&["call", "speed", "--rows", "missing.ndjson"]), "exit 1",
        "read missing.ndjson*No such file", "one JSON object a line"),
    ("a file of rows that is none", Cli(&["call", "speed", "--rows", "features.py"]), "exit 1",
        "line 1 of features.py", "one JSON object a line"),
    ("a group to call that there is not", Cli(&["call", "speed", "--group", "nope", "--row", ROW]), "exit 1",
        "nope*NOT_FOUND*no server group nope", "`outstation get` lists"),
    ("a folder of declarations that there is not", Cli(&["plan", "nowhere"]), "exit 1",
        "there is no folder nowhere", "name the folder"),
    ("a file for the folder", Cli(&["plan", "features.py"]), "exit 1",
        "features.py is not a folder", "name the folder"),
    ("no declarations here, so no types and no group", Do(undeclared), "exit 1",
        "which server group serves \"speed\"?", "--group*--declarations"),
    ("a second system in a folder of other things", Do(in_precious_folder), "exit 1",
        "holds files that are not of `outstation dev`", "--state"),
    ("a second system in the place of the first", Do(in_the_same_place), "exit 1",
        "another `outstation dev` (process *) runs in", "--state DIR"),
    ("a system without an interpreter", Do(without_interpreter), "exit 1",
        "there is no interpreter /nowhere/python", "`outstation` and uv"),
    ("more calls than there is room for", Cli(&["dev", "--calls", "99999999999"]), "exit 1",
        "invalid value '99999999999'*--calls*1..=1000000", "--help"),
];

fn undeclared(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        ground.outstation_in(&ground.folder("empty")?, &["call", "speed", "--row", ROW])
    })
}

/// A start clears its folder; not this one.
fn in_precious_folder(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.folder("precious")?;
        std::fs::write(folder.join("thesis.txt"), "years of work")?;
        let python = python().display().to_string();
        let said = ground.outstation_in(&folder, &["dev", "--state", ".", "--python", &python])?;
        let kept = std::fs::read_to_string(folder.join("thesis.txt"));
        Ok(said.and(kept.map(drop).map_err(Into::into)))
    })
}

fn in_the_same_place(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let state = ground.world.system.layout().state.display().to_string();
        let python = python().display().to_string();
        let arguments = ["dev", "--state", &state, "--python", &python];
        ground.outstation_in(ground.world.declarations(), &arguments)
    })
}

fn without_interpreter(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let arguments = ["dev", "--state", "state", "--python", "/nowhere/python"];
        ground.outstation_in(&ground.folder("system")?, &arguments)
    })
}
