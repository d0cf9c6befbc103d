//! The account agent.

use std::process::Command;

use anyhow::Result;
use outstation_cli::dev::layout::{ACCOUNT, REGION, TENANT, agent_credentials};
use outstation_integration::bad::run_until_told;
use outstation_integration::clock_shift;
use outstation_protocol::ids::{AccountId, Generation, GroupName, Region, TenantId};
use outstation_protocol::model::DataPlane;
use outstation_protocol::order::{Intent, Order};

use crate::Wrong::{Config, Do, File, Filled, Full, Kind, Missing, Nobody, ReadOnly};
use crate::{Place, Table, judge, others};

const NODES: &str = "listen = \"127.0.0.1:0\" # nodes";
const CALLERS: &str = "listen = \"127.0.0.1:0\" # callers";
/// Nobody is there, which is no reason not to run.
const AWS: &str = "endpoint = \"http://127.0.0.1:1\"";
const CONFIG: &str = r#"tenant = "dev"
account = "123456789012"
region = "eu-central-1"
profile = "manage"
store = "store"
state = "state"

[aws]
endpoint = "http://127.0.0.1:1"

[broker]
address = "127.0.0.1:1"
server_name = "broker.outstation"
root = "broker-root.pem"

[nodes]
listen = "127.0.0.1:0" # nodes

[callers]
listen = "127.0.0.1:0" # callers
token_file = "callers.token"
"#;
const GUARDRAILS: &str = r#"name_prefix = "outstation-"
nodes_per_group_max = 40
nodes_total_max = 100
availability_zones = ["eu-central-1a"]
[launch_template]
name = "outstation-node"
version = 1
"#;
const RULES: &str = "store/guardrails/guardrails.toml";

#[rustfmt::skip]
const TABLE: Table = &[
    ("no configuration", Missing("agent.toml"), "exit 1",
        "read the configuration *agent.toml: No such file", "--config"),
    ("a configuration that is none", File("agent.toml", b"tenant = dev\n"), "exit 1",
        "the configuration *agent.toml: line 1 (tenant = dev)", "compare the file"),
    ("an entry too many", Config("tenant =", "colour = \"red\"\ntenant ="), "exit 1",
        "line 1 (colour = \"red\"): unknown field `colour`", "compare the file"),
    ("a region that is none", Config("eu-central-1", "Frankfurt"), "exit 1",
        "line 3*region \"Frankfurt\" is not valid", "compare the file"),
    ("no callers", Config("[callers]\nlisten = \"127.0.0.1:0\" # callers\ntoken_file = \"callers.token\"\n", ""), "exit 1",
        "missing field `callers`", "compare the file"),
    ("a store of a kind that is not known", Config("store = \"store\"", "store = \"gs://acme/prod\""), "exit 1",
        "\"gs://acme/prod\" is no account store*s3://bucket/prefix", "compare the file"),
    ("a URL of AWS that is none", Config(AWS, "endpoint = \"aws\""), "exit 1",
        "\"aws\" is not an STS endpoint of the form http://host:port", "correct aws.endpoint"),
    ("the nodes' port in use", Do(|p, _| p.taken("UDP", NODES, |a| format!("listen = \"{a}\""))), "exit 1",
        "listen for nodes on 127.0.0.1:* (UDP): Address already in use", "another process listens there"),
    ("the callers' port in use", Do(|p, _| p.taken("TCP", CALLERS, |a| format!("listen = \"{a}\""))), "exit 1",
        "listen for callers on 127.0.0.1:*: Address already in use", "another process listens there"),
    ("an address of another machine", Config(NODES, "listen = \"192.0.2.1:4433\""), "exit 1",
        "listen for nodes on 192.0.2.1:4433", "not one of this machine"),
    ("a damaged order in the ledger", File("store/state/orders/delay_tsg.json", b"{\"payl"), "exit 1",
        "open the ledger: *delay_tsg.json of the ledger is damaged*not an envelope", "nothing was changed; restore"),
    ("an empty order in the ledger", File("store/state/orders/delay_tsg.json", b""), "exit 1",
        "delay_tsg.json of the ledger is damaged", "nothing was changed; restore"),
    ("an order under another name", Do(renamed_order), "exit 1",
        "other.json of the ledger is damaged*holds an order of group delay_tsg", "nothing was changed; restore"),
    ("a file of no group in the ledger", File("store/state/orders/1 (copy).json", b"{}"), "exit 1",
        "1 (copy).json of the ledger is damaged*not a group's file", "nothing was changed; restore"),
    ("a file for the ledger", Kind("store/state/orders"), "exit 1",
        "open the ledger: store/state/orders of the ledger cannot be used", "a file stands where there must be a folder"),
    ("the root's key lost", Missing("store/keys/root.key"), "exit 1",
        "open the account's CA: store/trust/root.pem has no key beside it", "nothing was changed; restore"),
    ("the root's key damaged", File("store/keys/root.key", b"garbage"), "exit 1",
        "open the account's CA: store/keys/root.key is not a private key", "nothing was changed; restore"),
    ("the root damaged", File("store/trust/root.pem", b"garbage"), "exit 1",
        "open the account's CA: store/trust/root.pem is not a root certificate", "nothing was changed; restore"),
    ("the key of another root", Do(key_of_another_root), "exit 1",
        "store/trust/root.pem was not made for the key in store/keys/root.key", "nothing was changed; restore"),
    ("a short callers' token", File("callers.token", b"secret"), "exit 1",
        "callers.token holds no token of at least 32 characters", "remove the file"),
    ("a folder for the callers' token", Kind("callers.token"), "exit 1",
        "read callers.token: Is a directory", "a folder where there must be a file"),
    ("a file for the state", Kind("state"), "exit 1",
        "create the state folder state: File exists", "a file stands where there must be a folder"),
    ("a store that cannot be written", ReadOnly("store"), "exit 1",
        "open the ledger: *Read-only file system", "mount the disk that holds it writable"),
    ("a store whose disk has filled up", Filled("store"), "goes on",
        "the account store cannot be written*No space left on device", ""),
    ("a state that cannot be written", ReadOnly("state"), "exit 1",
        "state*Read-only file system", "mount the disk that holds it writable"),
    ("a state on a full disk", Full("state"), "goes on",
        "the nodes were not written down*No space left on device", ""),
    ("a store on a full disk", Full("store"), "exit 1",
        "No space left on device", "make room on the disk"),
    ("somebody else's store", Nobody, "exit 1",
        "Permission denied", "as the user that owns its folders"),
    ("no guardrails", Missing(RULES), "goes on",
        "no valid guardrails: everything is held*cannot read*guardrails.toml: it is not there", ""),
    ("guardrails that are none", File(RULES, b"allow everything\n"), "goes on",
        "no valid guardrails: everything is held*line 1 (allow everything)", ""),
    ("an empty file of guardrails", File(RULES, b""), "goes on",
        "no valid guardrails: everything is held*missing field `name_prefix`", ""),
    ("a rule too many", Do(|p, _| rules(p, "name_prefix =", "colour = \"red\"\nname_prefix =")), "goes on",
        "no valid guardrails: everything is held*line 1 (colour = *unknown field `colour`", ""),
    ("the newest template, whichever that is", Do(|p, _| rules(p, "version = 1", "version = \"$Latest\"")), "goes on",
        "no valid guardrails: everything is held*version", ""),
    ("a negative ceiling", Do(|p, _| rules(p, "nodes_total_max = 100", "nodes_total_max = -1")), "goes on",
        "no valid guardrails: everything is held*nodes_total_max = -1", ""),
    ("signers of whom there is none", Do(|p, _| rules(p, "version = 1", "version = 1\n[signers]\nkeys = []")), "goes on",
        "no valid guardrails: everything is held*signers without any key", ""),
    ("a threshold that cannot be met", Do(|p, _| rules(p, "version = 1", &one_signer("ed25519:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=", 2))), "goes on",
        "no valid guardrails: everything is held*threshold 2 of 1 signers cannot be", ""),
    ("a signer's key of small order", Do(|p, _| rules(p, "version = 1", &one_signer("ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1))), "goes on",
        "no valid guardrails: everything is held*small order", ""),
    ("signers, and unsigned orders besides", Do(|p, _| {
        rules(p, "[launch_template]", "unsigned_orders = \"dev\"\n[launch_template]")?;
        add_signer(p)
    }), "goes on",
        "no valid guardrails: everything is held*let unsigned orders pass", ""),
    ("nowhere to place instances", Do(|p, _| rules(p, "[\"eu-central-1a\"]", "[]")), "goes on",
        "no valid guardrails: everything is held*either subnets or availability_zones", ""),
    ("damaged memory of nodes", File("state/nodes.json", b"{\"nodes\":"), "goes on",
        "what was known of the nodes cannot be read*nodes.json", ""),
    ("damaged memory of refusals", File("state/refused.json", b"{\"a\":"), "goes on",
        "what was refused before cannot be read*refused.json", ""),
    ("a damaged certificate", File("state/control.pem", b"-----BEGIN CERTIFICATE-----\ngarbage"), "goes on",
        "no control link*read the certificate state/control.pem*remove it: the agent enrolls again", ""),
    ("no AWS", Config(AWS, AWS), "goes on",
        "STS does not say whose account this is*GetCallerIdentity: *", ""),
    ("credentials that AWS does not know", Do(strange_credentials), "goes on",
        "STS does not say whose account this is*InvalidClientTokenId", ""),
    ("credentials of another account", Do(another_account), "exit 1",
        "these AWS credentials belong to account 123456789012, this agent is configured for 210987654321", "use credentials of"),
    ("a clock that is a day ahead of AWS", Do(|p, c| clock(p, c, 86_400)), "goes on",
        "account checked", ""),
    ("a clock that is a day behind AWS", Do(|p, c| clock(p, c, -86_400)), "goes on",
        "account checked", ""),
];

fn one_signer(key: &str, threshold: u32) -> String {
    format!(
        "version = 1\n[signers]\nthreshold = {threshold}\n\
         keys = [{{ name = \"ann\", key = \"{key}\" }}]"
    )
}

fn add_signer(place: &Place) -> Result<()> {
    let text = std::fs::read_to_string(place.path(RULES))?;
    let key = "ed25519:6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=";
    Ok(std::fs::write(place.path(RULES), text.replace("version = 1", &one_signer(key, 1)))?)
}

fn good() -> Result<Place> {
    let place = Place::new("outstation-agent", &["account"])?.with_config("agent.toml", CONFIG)?;
    std::fs::create_dir_all(place.path("store/guardrails"))?;
    std::fs::write(place.path(RULES), GUARDRAILS)?;
    std::fs::create_dir_all(place.path("store/state/orders"))?;
    let order = Order {
        tenant: TenantId::try_from(TENANT)?,
        data_plane: DataPlane {
            account: AccountId::try_from(ACCOUNT)?,
            region: Region::try_from(REGION)?,
        },
        group: GroupName::try_from("delay_tsg")?,
        generation: Generation(1),
        parent: None,
        accept_before_unix_secs: 2_000_000_000,
        intent: Intent::Destroy,
    };
    let path = place.path("store/state/orders/delay_tsg.json");
    std::fs::write(path, order.into_envelope().to_json())?;
    run_until_told(&mut place.command(), "no control link")?;
    Ok(place)
}

#[test]
fn an_account_agent_that_cannot_work_says_why() -> Result<()> {
    judge(&good()?, &[TABLE])?.finish()
}

fn rules(place: &Place, from: &str, to: &str) -> Result<()> {
    anyhow::ensure!(GUARDRAILS.contains(from), "{from:?} is not a rule");
    Ok(std::fs::write(place.path(RULES), GUARDRAILS.replace(from, to))?)
}

fn renamed_order(place: &Place, _: &mut Command) -> Result<()> {
    let path = |name| place.path("store/state/orders").join(name);
    std::fs::copy(path("delay_tsg.json"), path("other.json"))?;
    Ok(())
}

fn key_of_another_root(place: &Place, _: &mut Command) -> Result<()> {
    let other = good()?;
    std::fs::copy(other.path("store/keys/root.key"), place.path("store/keys/root.key"))?;
    Ok(())
}

/// A simulated AWS for this agent alone.
fn aws(place: &Place, command: &mut Command) -> Result<()> {
    let endpoint = others::aws_beside(place)?;
    place.change_config(AWS, &format!("endpoint = \"{endpoint}\""))?;
    command.envs(agent_credentials());
    Ok(())
}

fn strange_credentials(place: &Place, command: &mut Command) -> Result<()> {
    aws(place, command)?;
    command.env("AWS_ACCESS_KEY_ID", "ASIASTRANGER00000000");
    Ok(())
}

fn another_account(place: &Place, command: &mut Command) -> Result<()> {
    aws(place, command)?;
    std::fs::remove_dir_all(place.path("store/state/orders"))?;
    place.change_config("123456789012", "210987654321")
}

/// The SDK learns how far off it is from the first answer.
fn clock(place: &Place, command: &mut Command, secs: i64) -> Result<()> {
    aws(place, command)?;
    clock_shift::shift(command, secs)
}
