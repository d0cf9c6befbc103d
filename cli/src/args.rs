//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, Parser, Subcommand};

use outstation_protocol::ids::{
    AccountId, AgentId, DataPlaneName, Digest, GroupName, Region, RoleId, RoleName,
};

/// A day: who waits for longer does not wait. Also far from where adding it to the time overflows.
const SECS_MAX: u64 = 24 * 3600;
/// Their rows are all in memory at once: a million take about a gigabyte.
const CALLS_MAX: u64 = 1_000_000;

#[derive(Debug, Parser)]
#[command(
    name = "outstation",
    version,
    about = "Server groups in your own cloud account, declared in Python"
)]
pub struct Args {
    /// The context file [default: .outstation/context.toml here or above, then ~/.config/outstation/]
    #[arg(long, global = true, env = "OUTSTATION_CONTEXT", value_name = "FILE")]
    pub context: Option<PathBuf>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the whole system on this machine, apply an example, drive calls through it
    Dev(Dev),
    /// Show what `apply` would change: exit code 0 nothing, 2 something, 1 an error
    Plan(Plan),
    /// Make the account as declared, and follow it until it is
    Apply(Apply),
    /// Destroy one server group, or all of them
    Destroy(Destroy),
    /// Show one server group: desired, answered, observed, and why they differ
    Describe(Describe),
    /// List the server groups
    Get(Get),
    /// List the account agents
    Agents(Get),
    /// Shut an account agent out
    Agent(AgentVerbs),
    /// Register the accounts whose agents enroll with an IAM role
    Dataplane(DataPlaneVerbs),
    /// Build, show and remove environments in the account store
    Environment(EnvironmentVerbs),
    /// Show what happened, one line an event, oldest first
    Events(Events),
    /// Evaluate a feature view or service for some rows
    Call(Call),
    /// Sign orders that somebody else has made, or hand them to the broker
    Order(OrderVerbs),
    /// Make or show the key that signs orders
    Key(Key),
    /// Run a command that dies with the process that started it
    #[command(hide = true)]
    Supervise(Supervise),
}

#[derive(Debug, Clone, ClapArgs)]
pub struct Sign {
    /// The private key to sign with, or `ssh-agent` [default: OUTSTATION_SIGNING_KEY, then signing_key of the context]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Go on from this order of the broker's although no signer whom the context trusts has signed it
    #[arg(long, value_name = "DIGEST")]
    pub trust_order: Vec<Digest>,
}

#[derive(Debug, ClapArgs)]
pub struct OrderVerbs {
    #[command(subcommand)]
    pub verb: OrderVerb,
}

#[derive(Debug, Subcommand)]
pub enum OrderVerb {
    /// Show what the orders in a file change, and add your signature to them
    Sign(OrderSign),
    /// Hand orders that enough signers have signed to the broker, and follow them
    Put(OrderPut),
}

#[derive(Debug, ClapArgs)]
pub struct OrderSign {
    /// A file that `outstation apply --out` has written
    pub file: PathBuf,
    /// Sign without asking
    #[arg(long, short)]
    pub yes: bool,
    #[command(flatten)]
    pub sign: Sign,
}

#[derive(Debug, ClapArgs)]
pub struct OrderPut {
    /// A file that `outstation apply --out` has written
    pub file: PathBuf,
    /// Put the orders and do not wait for the account
    #[arg(long)]
    pub no_wait: bool,
    /// How many seconds to wait for the account
    #[arg(long, default_value_t = 600, value_name = "SECS",
        value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub timeout: u64,
}

#[derive(Debug, ClapArgs)]
pub struct AgentVerbs {
    #[command(subcommand)]
    pub verb: AgentVerb,
}

#[derive(Debug, Subcommand)]
pub enum AgentVerb {
    /// End an agent's session at once, and give it neither another nor a certificate
    Revoke(AgentRevoke),
}

#[derive(Debug, ClapArgs)]
pub struct AgentRevoke {
    /// As `outstation agents` names it
    pub id: AgentId,
}

#[derive(Debug, ClapArgs)]
pub struct DataPlaneVerbs {
    #[command(subcommand)]
    pub verb: DataPlaneVerb,
}

#[derive(Debug, Subcommand)]
pub enum DataPlaneVerb {
    /// Register an account and region with the role of its agents; join tokens are refused from then on
    Add(DataPlaneAdd),
    /// List the data planes, and how their agents enroll
    List(Get),
    /// Let no agent of a data plane enroll or connect any more; what it accepted goes on there
    Remove(DataPlaneRemove),
}

#[derive(Debug, ClapArgs)]
pub struct DataPlaneAdd {
    /// What you call it
    pub name: DataPlaneName,
    /// The AWS account, 12 digits
    #[arg(long, value_name = "ID")]
    pub account: AccountId,
    #[arg(long)]
    pub region: Region,
    /// The IAM role of the account agent, without its path
    #[arg(long, value_name = "NAME")]
    pub role: RoleName,
    /// The role's unique id: `aws iam get-role --role-name NAME --query Role.RoleId`
    #[arg(long, value_name = "AROA…")]
    pub role_id: RoleId,
}

#[derive(Debug, ClapArgs)]
pub struct DataPlaneRemove {
    pub name: DataPlaneName,
}

#[derive(Debug, ClapArgs)]
pub struct EnvironmentVerbs {
    #[command(subcommand)]
    pub verb: EnvironmentVerb,
}

#[derive(Debug, Subcommand)]
pub enum EnvironmentVerb {
    /// Build what the groups of some declarations use, and write it to the account store; `apply` does so too
    Create(EnvironmentCreate),
    /// List the environments of the account store, and which groups use them
    List(Get),
    /// Show one: its packages with their licences, its size, and which groups use it
    Describe(EnvironmentDescribe),
    /// Remove one that no group uses
    Delete(EnvironmentDelete),
}

#[derive(Debug, ClapArgs)]
pub struct EnvironmentCreate {
    /// The declarations' folder
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// A requirements.txt or pyproject.toml instead of declarations
    #[arg(long, value_name = "FILE")]
    pub requirements: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct EnvironmentDescribe {
    /// sha256:…, or enough of its digits
    pub digest: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct EnvironmentDelete {
    /// sha256:…, or enough of its digits
    pub digest: String,
}

#[derive(Debug, ClapArgs)]
pub struct Key {
    #[command(subcommand)]
    pub verb: KeyVerb,
}

#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a new private key in a file that only you can read, and say who has to know it
    Create(KeyCreate),
    /// Show the public key, and where it has to be named
    Show(KeyShow),
}

#[derive(Debug, ClapArgs)]
pub struct KeyCreate {
    /// [default: ~/.config/outstation/signing-key.pem]
    pub file: Option<PathBuf>,
    /// What the signer is called in guardrails and contexts [default: the name of the user]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct KeyShow {
    /// [default: the one that orders would be signed with]
    pub file: Option<PathBuf>,
    /// What the signer is called in guardrails and contexts [default: the name of the user]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Plan {
    /// The folder of the declarations
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub sign: Sign,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Follow {
    /// Put the orders and do not wait for the account
    #[arg(long)]
    pub no_wait: bool,
    /// How many seconds to wait for the account
    #[arg(long, default_value_t = 600, value_name = "SECS",
        value_parser = clap::value_parser!(u64).range(1..=SECS_MAX))]
    pub timeout: u64,
    /// Destroy groups without asking (never all of them)
    #[arg(long, short)]
    pub yes: bool,
    /// Destroy exactly this many groups without asking
    #[arg(long, value_name = "N")]
    pub confirm_destroy: Option<usize>,
    /// Print the outcome as JSON; the plan goes to standard error
    #[arg(long)]
    pub json: bool,
    /// Write the orders, with your signature, to a new file instead: others have to sign them too
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub sign: Sign,
}

#[derive(Debug, ClapArgs)]
pub struct Apply {
    /// The folder of the declarations
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub follow: Follow,
}

#[derive(Debug, ClapArgs)]
pub struct Destroy {
    /// Only this group
    pub group: Option<GroupName>,
    #[command(flatten)]
    pub follow: Follow,
}

#[derive(Debug, ClapArgs)]
pub struct Describe {
    pub group: GroupName,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Get {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Events {
    /// Only events of this group
    pub group: Option<GroupName>,
    /// Go on with each event as it happens, also when the broker restarts
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last so long: `90s`, `15m`, `2h`, `3d`
    #[arg(long, value_name = "AGE")]
    pub since: Option<Age>,
    /// Only events behind this number, the first column
    #[arg(long, value_name = "N")]
    pub after: Option<u64>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// How long ago, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub u64);

impl FromStr for Age {
    type Err = &'static str;

    fn from_str(raw: &str) -> Result<Age, &'static str> {
        let parse = || {
            let (number, unit) = raw.split_at_checked(raw.len().checked_sub(1)?)?;
            let secs = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                "d" => 86_400,
                _ => return None,
            };
            let digits = number.bytes().all(|b| b.is_ascii_digit());
            number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(secs).map(Age)
        };
        parse().ok_or("a number and its unit, such as 90s, 15m, 2h or 3d")
    }
}

#[derive(Debug, ClapArgs)]
pub struct Call {
    /// A feature view or a feature service
    pub target: String,
    /// The group to call [default: that of the service, from the declarations]
    #[arg(long)]
    pub group: Option<GroupName>,
    /// The folder of the declarations, for the fields' types
    #[arg(long, value_name = "DIR")]
    pub declarations: Option<PathBuf>,
    /// One row, or a list of rows
    #[arg(long, value_name = "JSON", required_unless_present = "rows", conflicts_with = "rows")]
    pub row: Option<String>,
    /// A file with one JSON row a line; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub rows: Option<PathBuf>,
    /// How many milliseconds the call may take
    #[arg(long, default_value_t = 10_000, value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..=1000 * SECS_MAX))]
    pub timeout_ms: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Dev {
    /// The folder of the declarations
    #[arg(default_value = "examples/flights")]
    pub dir: PathBuf,
    /// End after the calls; the exit code says whether everything went well
    #[arg(long)]
    pub once: bool,
    /// How many calls to drive
    #[arg(long, default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=CALLS_MAX))]
    pub calls: u64,
    /// Where everything of this system is kept; another one gives a second system beside it
    #[arg(long, default_value = ".outstation/dev", value_name = "DIR")]
    pub state: PathBuf,
    /// An interpreter with `outstation` and uv [default: .venv/bin/python here or above]
    #[arg(long, env = "OUTSTATION_PYTHON", value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// Print the table as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Supervise {
    /// The process to die with
    #[arg(long)]
    pub parent: u32,
    #[arg(last = true, required = true, num_args = 1..)]
    pub command: Vec<std::ffi::OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn an_age_has_a_unit() {
        for (raw, wanted) in [
            ("0s", Some(0)),
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("2h", Some(7200)),
            ("3d", Some(259_200)),
            ("", None),
            ("h", None),
            ("2", None),
            ("2w", None),
            ("+2h", None),
            ("-2h", None),
            ("2 h", None),
            ("1.5h", None),
            ("2é", None),
            ("99999999999999999999d", None),
            ("999999999999999999d", None),
        ] {
            assert_eq!(raw.parse().ok(), wanted.map(Age), "{raw:?}");
        }
    }
}
