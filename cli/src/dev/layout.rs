//! Where one dev system keeps what, and the configuration files of its processes.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use outstation_api::admin::{DataPlane, RegisteredDataPlane};
use outstation_protocol::ids::{AccountId, Region, TenantId};
use outstation_protocol::signing::{SignerName, Signers};

use super::DevOptions;
use super::slot::Slot;
use crate::context::{Context, Endpoint, UnsignedOrders, write_atomically};
use crate::key;
use crate::signing::TrustedOrders;

pub const TENANT: &str = "dev";
pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "eu-central-1";
const SIGNER: &str = "dev";
const BROKER_NAME: &str = "broker.outstation";
const ACCOUNT_AGENT_NAME: &str = "account-agent.outstation";
const AGENT_ROLE: &str = "outstation-agent";
const AGENT_ROLE_ID: &str = "AROADEVAGENTROLE00000";
const AGENT_KEY: &str = "ASIADEVACCOUNTAGENT0";
/// Opens nothing but the simulated AWS of this very system.
const AGENT_SECRET: &str = "dev-only-secret-of-the-account-agent-0000";
const NODE_ROLE_ID: &str = "AROADEVNODEROLE000000";
/// Somebody of the account itself, whom no policy of ours binds.
const PEOPLE_KEY: &str = "ASIADEVPEOPLE0000000";
const PEOPLE_SECRET: &str = "dev-only-secret-of-the-accounts-people-00";
/// What the agent's IAM policy names.
pub const NODE_TEMPLATE_ID: &str = "lt-0123456789abcdef0";
pub const AGENT_TEMPLATE_ID: &str = "lt-0fedcba9876543210";
pub const IMAGE_ID: &str = "ami-0123456789abcdef0";
pub const INSTANCE_TYPE: &str = "c7i.large";
/// With their zones.
pub const SUBNETS: [(&str, &str); 3] = [
    ("subnet-0000000000000000a", "eu-central-1a"),
    ("subnet-0000000000000000b", "eu-central-1b"),
    ("subnet-0000000000000000c", "eu-central-1c"),
];

/// All paths of a dev system, absolute.
#[derive(Debug, Clone)]
pub struct Layout {
    pub state: PathBuf,
}

impl Layout {
    pub fn new(state: &Path) -> anyhow::Result<Layout> {
        fs::create_dir_all(state).with_context(|| format!("create {}", state.display()))?;
        let state = state.canonicalize().with_context(|| format!("find {}", state.display()))?;
        Ok(Layout { state })
    }

    pub fn store(&self) -> PathBuf {
        self.state.join("account-store")
    }

    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    pub fn context(&self) -> PathBuf {
        self.state.join("context.toml")
    }

    pub fn join_token(&self) -> PathBuf {
        self.state.join("join.token")
    }

    /// Of the one who works with this system.
    pub fn signing_key(&self) -> PathBuf {
        self.state.join("signing-key.pem")
    }

    pub fn broker_root(&self) -> PathBuf {
        self.state.join("broker/root.pem")
    }

    pub fn broker_token(&self) -> PathBuf {
        self.state.join("broker/admin.token")
    }

    pub fn callers_root(&self) -> PathBuf {
        self.store().join("trust/root.pem")
    }

    pub fn callers_token(&self) -> PathBuf {
        self.agent_state().join("callers.token")
    }

    /// The account agent's own disk.
    pub fn agent_state(&self) -> PathBuf {
        self.state.join("agent")
    }

    pub fn config(&self, service: &str) -> PathBuf {
        self.state.join("config").join(format!("{service}.toml"))
    }

    /// What the account agent's role may do at the simulated AWS.
    pub fn agent_policy(&self) -> PathBuf {
        self.state.join("config/agent-policy.json")
    }

    pub fn guardrails(&self) -> PathBuf {
        self.store().join("guardrails/guardrails.toml")
    }

    /// Addressed by content, so that they outlive a run.
    pub fn environments(&self) -> PathBuf {
        self.state.join("cache/environments")
    }

    pub fn instances(&self) -> PathBuf {
        self.state.join("instances")
    }

    /// Removes everything of an earlier run but what is expensive and addressed by content.
    pub fn reset(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.state).context("list the state directory")? {
            let name = entry.context("list the state directory")?.file_name();
            if name != "account-store" && name != "cache" && name != "dev.lock" {
                remove(&self.state.join(name))?;
            }
        }
        if self.store().is_dir() {
            for entry in fs::read_dir(self.store()).context("list the account store")? {
                let name = entry.context("list the account store")?.file_name();
                if name != "artifacts" {
                    remove(&self.store().join(name))?;
                }
            }
        }
        for dir in [
            self.store().join("guardrails"),
            self.store().join("artifacts"),
            self.logs(),
            self.state.join("config"),
            self.state.join("broker"),
            self.state.join("agent"),
            self.state.join("aws-sim"),
            self.instances(),
        ] {
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(())
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("remove {} of an earlier run", path.display()))
}

/// The environment with which the account agent signs its calls.
pub fn agent_credentials() -> BTreeMap<String, String> {
    credentials(AGENT_KEY, AGENT_SECRET)
}

/// For who does by hand what the agent may not.
pub fn people_credentials() -> BTreeMap<String, String> {
    credentials(PEOPLE_KEY, PEOPLE_SECRET)
}

fn credentials(key: &str, secret: &str) -> BTreeMap<String, String> {
    [
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_SESSION_TOKEN", "dev"),
        ("AWS_REGION", REGION),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Addresses that the parties dial instead of each other's own, where something that a test
/// controls stands in between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Detours {
    /// Account agent → broker.
    pub broker_link: Option<SocketAddr>,
    /// CLI → broker.
    pub broker_admin: Option<SocketAddr>,
    /// Node agent → account agent.
    pub nodes: Option<SocketAddr>,
    /// Caller → account agent.
    pub callers: Option<SocketAddr>,
    /// Everybody → AutoScaling and STS. For all of them the same: a signature covers the host.
    pub aws: Option<SocketAddr>,
}

/// The data plane as it is registered at the broker, by the account agent's role.
pub fn registration() -> RegisteredDataPlane {
    RegisteredDataPlane {
        name: TENANT.into(),
        data_plane: Some(DataPlane { account: ACCOUNT.into(), region: REGION.into() }),
        role: AGENT_ROLE.into(),
        role_id: AGENT_ROLE_ID.into(),
        added_at_unix_secs: 0,
    }
}

/// The dev system's only signer, with a key of its own for each start.
pub fn make_signer(layout: &Layout) -> anyhow::Result<Signers> {
    let key = key::create(&layout.signing_key()).context("make a key that signs orders")?;
    let name = SignerName::try_from(SIGNER.to_owned()).expect("a constant, valid name");
    Ok(Signers::only(name, key.public()))
}

pub fn context(layout: &Layout, slot: &Slot, options: &DevOptions, signers: &Signers) -> Context {
    let detours = &options.detours;
    Context {
        tenant: TenantId::try_from(TENANT).expect("a constant, valid tenant"),
        account: AccountId::try_from(ACCOUNT).expect("a constant, valid account"),
        region: Region::try_from(REGION).expect("a constant, valid region"),
        python: options.python.clone(),
        artifacts: layout.store(),
        signing_key: Some(layout.signing_key()),
        unsigned_orders: UnsignedOrders::Refuse,
        signers: Some(signers.clone()),
        key: None,
        trust_orders: TrustedOrders::new(),
        broker: Endpoint {
            url: format!("https://{}", detours.broker_admin.unwrap_or(slot.broker_admin())),
            ca: layout.broker_root(),
            server_name: BROKER_NAME.into(),
            token_file: layout.broker_token(),
        },
        callers: Some(Endpoint {
            url: format!("https://{}", detours.callers.unwrap_or(slot.callers())),
            ca: layout.callers_root(),
            server_name: ACCOUNT_AGENT_NAME.into(),
            token_file: layout.callers_token(),
        }),
    }
}

pub fn write_configs(
    layout: &Layout,
    slot: &Slot,
    options: &DevOptions,
    signers: &Signers,
) -> anyhow::Result<()> {
    let write = |path: &Path, text: &str| write_atomically(path, text.as_bytes());
    let user_data = layout.state.join("config/user-data.sh");
    write(&user_data, &user_data_script(layout, slot, options))?;
    fs::set_permissions(&user_data, fs::Permissions::from_mode(0o755)).context("make it run")?;
    write(&layout.config("aws-sim"), &aws_sim_toml(layout, slot, options, &user_data))?;
    write(&layout.config("broker"), &broker_toml(layout, slot, options))?;
    write(&layout.config("account-agent"), &agent_toml(layout, slot, options))?;
    write(&layout.guardrails(), &options.guardrails.toml(signers))
}

/// A TOML string that means exactly `path`.
fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

fn aws_sim_toml(layout: &Layout, slot: &Slot, options: &DevOptions, user_data: &Path) -> String {
    format!(
        r#"listen = "{listen}"
account = "{ACCOUNT}"
region = "{REGION}"
instance_net = "{net}"
instance_role = "outstation-node"
instance_role_id = "{NODE_ROLE_ID}"
dir = {dir}
boot_delay_ms = {boot_delay_ms}
# A second for each of AWS's minutes.
scale_out_after_ms = 3000
scale_in_after_ms = 15000

[[principals]]
access_key_id = "{AGENT_KEY}"
secret_access_key = "{AGENT_SECRET}"
session_token = "dev"
arn = "arn:aws:sts::{ACCOUNT}:assumed-role/{AGENT_ROLE}/dev"
user_id = "{AGENT_ROLE_ID}:dev"
policy = {policy}

[[principals]]
access_key_id = "{PEOPLE_KEY}"
secret_access_key = "{PEOPLE_SECRET}"
session_token = "dev"
arn = "arn:aws:sts::{ACCOUNT}:assumed-role/people/dev"
user_id = "AROADEVPEOPLE00000000:dev"

[[launch_templates]]
name = "outstation-node"
id = "{NODE_TEMPLATE_ID}"
version = 1
image_id = "{IMAGE_ID}"
instance_type = "{INSTANCE_TYPE}"
tags_launched = true
user_data = {user_data}

# Another image, to roll out: name version 2 in guardrails/guardrails.toml of the account store.
[[launch_templates]]
name = "outstation-node"
id = "{NODE_TEMPLATE_ID}"
version = 2
image_id = "{IMAGE_ID}"
instance_type = "{INSTANCE_TYPE}"
tags_launched = true
user_data = {user_data}
{subnets}"#,
        subnets = SUBNETS.map(|(id, zone)| subnet_toml(id, zone)).concat(),
        policy = quoted(&layout.agent_policy()),
        listen = slot.aws_sim(),
        net = slot.instance_net(),
        dir = quoted(&layout.state.join("aws-sim")),
        boot_delay_ms = options.boot_delay_ms,
        user_data = quoted(user_data),
    )
}

fn subnet_toml(id: &str, zone: &str) -> String {
    format!("\n[[subnets]]\nid = \"{id}\"\navailability_zone = \"{zone}\"\n")
}

fn broker_toml(layout: &Layout, slot: &Slot, options: &DevOptions) -> String {
    // Where the agent enrolls with its role, the data plane is registered once the broker runs.
    let data_planes = if options.enroll_by_token {
        format!("\n[[data_planes]]\naccount = \"{ACCOUNT}\"\nregion = \"{REGION}\"\n")
    } else {
        String::new()
    };
    format!(
        r#"state = {state}
tenant = "{TENANT}"

[link]
listen = "{link}"

[admin]
listen = "{admin}"
token_file = {token}

[sts]
endpoint = "http://{aws}"
{data_planes}"#,
        aws = options.detours.aws.unwrap_or(slot.aws_sim()),
        state = quoted(&layout.state.join("broker")),
        link = slot.broker_link(),
        admin = slot.broker_admin(),
        token = quoted(&layout.broker_token()),
    )
}

fn agent_toml(layout: &Layout, slot: &Slot, options: &DevOptions) -> String {
    let DevOptions { detours, profile, .. } = options;
    format!(
        r#"tenant = "{TENANT}"
profile = "{profile}"
account = "{ACCOUNT}"
region = "{REGION}"
store = {store}
state = {state}

[aws]
endpoint = "http://{aws}"

[broker]
address = "{link}"
server_name = "{BROKER_NAME}"
root = {root}
{join_token}
[nodes]
listen = "{nodes}"
role = "outstation-node"
role_id = "{NODE_ROLE_ID}"

[callers]
listen = "{callers}"
token_file = {callers_token}
"#,
        store = quoted(&layout.store()),
        state = quoted(&layout.agent_state()),
        aws = detours.aws.unwrap_or(slot.aws_sim()),
        link = detours.broker_link.unwrap_or(slot.broker_link()),
        root = quoted(&layout.broker_root()),
        join_token = if options.enroll_by_token {
            format!("join_token_file = {}\n", quoted(&layout.join_token()))
        } else {
            String::new()
        },
        nodes = slot.nodes(),
        callers = slot.callers(),
        callers_token = quoted(&layout.callers_token()),
    )
}

/// What an instance runs, as its launcher's one service.
fn user_data_script(layout: &Layout, slot: &Slot, options: &DevOptions) -> String {
    let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!(
        "#!/bin/sh\n\
         exec {agent} node \\\n  \
           --account-agent {nodes} \\\n  \
           --store {store} \\\n  \
           --dir {dir} \\\n  \
           --environments {environments} \\\n  \
           --python {python} \\\n  \
           --transform-server {server} \\\n  \
           --account {ACCOUNT} \\\n  \
           --region {REGION} \\\n  \
           --sts-endpoint http://{aws}\n",
        agent = quote(&options.bin_dir.join("outstation-agent")),
        nodes = options.detours.nodes.unwrap_or(slot.nodes()),
        store = quote(&layout.store()),
        dir = quote(&layout.instances()),
        environments = quote(&layout.environments()),
        python = quote(&options.python),
        server = quote(&options.bin_dir.join("outstation-transform-server")),
        aws = options.detours.aws.unwrap_or(slot.aws_sim()),
    )
}

/// The customer's side of a dev system. Tests narrow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevGuardrails {
    pub nodes_per_group_max: u32,
    pub nodes_total_max: u32,
    /// `allow`, `approve` or `never`.
    pub destroy: String,
    /// `repair` or `report`.
    pub drift: String,
}

impl Default for DevGuardrails {
    fn default() -> Self {
        DevGuardrails {
            nodes_per_group_max: 40,
            nodes_total_max: 100,
            destroy: "allow".into(),
            drift: "repair".into(),
        }
    }
}

impl DevGuardrails {
    fn toml(&self, signers: &Signers) -> String {
        let keys: String = signers
            .signers()
            .map(|signer| {
                format!("  {{ name = \"{}\", key = \"{}\" }},\n", signer.name, signer.key)
            })
            .collect();
        format!(
            r#"name_prefix = "outstation-"
nodes_per_group_max = {per_group}
nodes_total_max = {total}
destroy = "{destroy}"
drift = "{drift}"
subnets = {subnets:?}

[launch_template]
name = "outstation-node"
version = 1

[signers]
threshold = {threshold}
keys = [
{keys}]
"#,
            subnets = SUBNETS.map(|(id, _)| id),
            threshold = signers.threshold(),
            per_group = self.nodes_per_group_max,
            total = self.nodes_total_max,
            destroy = self.destroy,
            drift = self.drift,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_keeps_artifacts_and_nothing_of_the_ledgers() {
        let dir = tempfile::tempdir().expect("dir");
        let layout = Layout::new(dir.path()).expect("layout");
        for file in
            ["broker/broker.db", "account-store/state/orders/a.json", "account-store/artifacts/x"]
        {
            let path = layout.state.join(file);
            fs::create_dir_all(path.parent().expect("below")).expect("directories");
            fs::write(path, "x").expect("written");
        }
        layout.reset().expect("reset");
        assert!(layout.store().join("artifacts/x").is_file());
        assert!(!layout.store().join("state").exists());
        assert!(!layout.state.join("broker/broker.db").exists());
        assert!(layout.logs().is_dir());
    }

    #[test]
    fn every_configuration_is_valid_toml_also_with_odd_paths() {
        let dir = tempfile::tempdir().expect("dir");
        let layout = Layout::new(&dir.path().join("it's \"odd\"")).expect("layout");
        layout.reset().expect("reset");
        let slot = Slot::claim().expect("free");
        let options = DevOptions::new("/bin dir", layout.state.clone(), "/python");
        let signers = make_signer(&layout).expect("made");
        write_configs(&layout, &slot, &options, &signers).expect("written");
        for path in [
            layout.config("aws-sim"),
            layout.config("broker"),
            layout.config("account-agent"),
            layout.guardrails(),
        ] {
            let text = fs::read_to_string(&path).expect("written above");
            text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{text}\n{error}"));
        }
        context(&layout, &slot, &options, &signers).write(&layout.context()).expect("written");
        Context::read(&layout.context()).expect("reads back");
    }
}
