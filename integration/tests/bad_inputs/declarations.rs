//! Declarations: in the wrong place, of the wrong shape, and Python that does what it should not.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use outstation_cli::declarations;
use outstation_cli::message::two_lines;
use outstation_integration::bad::Said;
use outstation_integration::{binaries, processes, python};

use crate::Act::{Declared, Do};
use crate::{Doing, Ground, PATIENCE, Table};

const NODES: &str = "desired_nodes=2";
const GROUP: &str = "name=\"delay_tsg\"";
/// Stands first in the file's code.
const FIRST: &str = "import os\n";

#[rustfmt::skip]
pub const TABLE: Table = &[
    ("a negative count", Declared(NODES, "desired_nodes=-1"), "exit 1",
        "features.py:*desired_nodes must not be negative*but is -1", "number of nodes"),
    ("half a node", Declared(NODES, "desired_nodes=2.5"), "exit 1",
        "desired_nodes*whole number*2.5", "whole number"),
    ("not a number of nodes", Declared(NODES, "desired_nodes=float('nan')"), "exit 1",
        "desired_nodes*whole number*nan", "whole number"),
    ("as many nodes as True", Declared(NODES, "desired_nodes=True"), "exit 1",
        "desired_nodes*whole number*True", "whole number"),
    ("as many nodes as \"2\"", Declared(NODES, "desired_nodes=\"2\""), "exit 1",
        "desired_nodes*whole number*'2'", "whole number"),
    ("more nodes than the wire can carry", Declared(NODES, "desired_nodes=2**40"), "exit 1",
        "desired_nodes*above 4294967295*1099511627776", "number of nodes"),
    ("no count", Declared(NODES, ""), "exit 1",
        "ProvisionedScalingConfig*desired_nodes", "add desired_nodes="),
    ("an argument that there is not", Declared(NODES, "desired_nodes=2, warm=1"), "exit 1",
        "ProvisionedScalingConfig*warm", "desired_nodes"),
    ("a huge name", Declared("name=\"delay_tsg\"", "name=\"a\" * 5000"), "exit 1",
        "TransformServerGroup*name*aaa", "1-63 letters"),
    ("a name in Greek", Declared(GROUP, "name=\"ομάδα\""), "exit 1",
        "TransformServerGroup*'ομάδα'", "1-63 letters"),
    ("an empty name", Declared(GROUP, "name=\"\""), "exit 1",
        "TransformServerGroup*''", "1-63 letters"),
    ("a name with a line break", Declared(GROUP, "name=\"delay\\ntsg\""), "exit 1",
        "TransformServerGroup*'delay\\ntsg'", "1-63 letters"),
    ("two groups of one name",
        Declared("departure = ", "TransformServerGroup(name=\"delay_tsg\", environment=\"plain\", scaling_config=ProvisionedScalingConfig(desired_nodes=1))\ndeparture = "), "exit 1",
        "transform server group 'delay_tsg' has the name of one at features.py:", "unique"),
    ("an environment that there is not", Declared("environment=\"plain\"", "environment=\"plane\""), "exit 1",
        "wants environment 'plane', which is not declared", "Environment(name=\"plane\"*there is plain"),
    ("a group that there is not",
        Declared("transform_server_group=\"delay_tsg\"", "transform_server_group=\"dly\""), "exit 1",
        "wants transform server group 'dly'", "there is delay_tsg"),
    ("a field of no type", Declared("Field(\"distance\", Float64)", "Field(\"distance\", float)"), "exit 1",
        "distance*float", "Float64"),
    ("requirements outside of the folder", Declared("\"requirements.txt\"", "\"../requirements.txt\""), "exit 1",
        "outside of the folder", "keep the file with the declarations"),
    ("no requirements", Declared("\"requirements.txt\"", "\"require.txt\""), "exit 1",
        "'require.txt', which does not exist", "create require.txt"),
    ("a module that there is not", Declared(FIRST, "import pandsa\n"), "exit 1",
        "No module named 'pandsa'", "inside of the function"),
    ("syntax that is none", Declared(FIRST, "import os)\n"), "exit 1",
        "features.py:*SyntaxError", "correct the syntax"),
    ("a file with zero bytes in it", Declared(FIRST, "import os\0\n"), "exit 1",
        "features.py:*null byte", "correct the syntax"),
    ("an exception", Declared(FIRST, "1 / 0\n"), "exit 1",
        "features.py:*ZeroDivisionError: division by zero", "when they are imported"),
    ("an exit", Declared(FIRST, "raise SystemExit(0)\n"), "exit 1",
        "SystemExit", "must not exit"),
    ("a hard exit", Declared(FIRST, "import os; os._exit(0)\n"), "exit 1",
        "ended Python before they were done", "os._exit()"),
    ("a crash", Declared(FIRST, "import ctypes; ctypes.string_at(0)\n"), "exit 1",
        "said nothing (signal: 11", "correct the declarations"),
    ("megabytes of print", Declared(FIRST, "import os; print('x' * (1 << 20))\n"), "exit 1",
        "print has more than 65536 bytes", "print nothing"),
    ("no declarations at all", Declared("", "x = 1\n"), "exit 2", "", ""),
    ("Windows' line ends and a byte order mark", Do(windows), "exit 0", "", ""),
    ("an empty folder", Do(empty), "exit 1",
        "no declarations in", "features.py"),
    ("a link in the folder", Do(link), "exit 1",
        "data.csv is a link", "copy it in"),
    ("requirements that are none", Do(requirements), "exit 1",
        "uv cannot resolve*requirements.txt", "correct the requirements"),
    ("a folder that is not ours to read", Do(unreadable), "exit 1",
        "Permission denied", "user that owns it"),
    ("declarations that loop", Do(looping), "exit 1",
        "ran for over 2 s", "move work"),
    ("declarations that loop, the command killed", Do(killed), "nothing is left", "", ""),
    ("as many workers as \"many\"", Declared(GROUP, "name=\"delay_tsg\", options={\"workers\": \"many\"}"), "exit 1",
        "option 'workers' must be a whole number, not str 'many'", "\"1\" to \"512\""),
    ("no workers", Declared(GROUP, "name=\"delay_tsg\", options={\"workers\": \"0\"}"), "exit 1",
        "option 'workers' must be a whole number, not str '0'", "\"1\" to \"512\""),
    ("an option that no server has", Declared(GROUP, "name=\"delay_tsg\", options={\"colour\": \"red\"}"), "exit 1",
        "there is no option 'colour'", "options are workers"),
    ("more nodes than the account allows", Do(guarded), "exit 1",
        "delay_tsg:*refused by guardrail: 41 nodes are more than nodes_per_group_max 40", "guardrails/"),
];

fn windows(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.declarations("", "")?;
        let text = format!("\u{feff}{}", crate::DECLARATIONS.replace('\n', "\r\n"));
        std::fs::write(folder.join("features.py"), text)?;
        std::fs::write(folder.join("requirements.txt"), "# nothing\r\n\r\n")?;
        // 2 says that something would change: these are other bytes than those applied.
        let said = ground.outstation_in(&folder, &["plan", "."])?;
        ensure!(said.ends == "exit 2", "{said:?}");
        Ok(Said { ends: "exit 0".into(), ..said })
    })
}

fn empty(ground: Arc<Ground>) -> Doing {
    Box::pin(async move { ground.outstation_in(&ground.folder("empty")?, &["plan", "."]) })
}

fn link(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.declarations("", crate::DECLARATIONS)?;
        symlink("/etc/passwd", folder.join("data.csv"))?;
        ground.outstation_in(&folder, &["plan", "."])
    })
}

fn requirements(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.declarations("", crate::DECLARATIONS)?;
        std::fs::write(folder.join("requirements.txt"), "numpy ==== 1 !!\n")?;
        ground.outstation_in(&folder, &["plan", "."])
    })
}

fn unreadable(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.declarations("", crate::DECLARATIONS)?;
        // Root reads everything, so somebody else runs it.
        crate::context::outstation_as_nobody(&ground, &folder)
    })
}

fn looping(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.declarations(FIRST, "while True: pass\n")?;
        let loaded = declarations::load_within(&python(), &folder, Duration::from_secs(2)).await;
        Ok(match loaded {
            Ok(_) => Said { ends: "exit 0".into(), text: String::new() },
            Err(error) => Said { ends: "exit 1".into(), text: two_lines(&error) },
        })
    })
}

/// Killed from outside, as by Ctrl-C at an unlucky moment: the interpreter must not go on for ever.
fn killed(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        // Never gives way to another thread of the interpreter.
        let folder = ground.declarations(FIRST, "sum(range(10**15))\n")?;
        let mut plan = Command::new(binaries().join("outstation"))
            .arg("plan")
            .arg(&folder)
            .env("OUTSTATION_CONTEXT", ground.context())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let declaring = || {
            processes(&folder).into_values().any(|command| command.contains("outstation.declare"))
        };
        let until = |wanted: bool| -> Result<()> {
            let deadline = Instant::now() + PATIENCE;
            while declaring() != wanted {
                ensure!(Instant::now() < deadline, "waited in vain: {:?}", processes(&folder));
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        };
        let started = until(true);
        plan.kill()?;
        plan.wait()?;
        started?;
        until(false)?;
        Ok(Said { ends: "nothing is left".into(), text: String::new() })
    })
}

/// Refused by the account, not by the command; what was ordered before stays.
fn guarded(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let folder = ground.declarations(NODES, "desired_nodes=41")?;
        let mut said = ground.outstation_in(&folder, &["apply", ".", "--timeout", "60"])?;
        let undone = ground
            .outstation_in(ground.world.declarations(), &["apply", ".", "--timeout", "120"])?;
        ensure!(undone.ends == "exit 0", "{undone:?}");
        said.text.retain(|c| c != '\r');
        Ok(said)
    })
}
