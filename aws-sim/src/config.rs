//! `sim.toml`: what exists in the simulated account, and where it listens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde::Deserialize;

use crate::imds;
use crate::model::credentials::{InstanceRole, Principal};
use crate::model::group::LaunchTemplate;
use crate::model::tracking::Patience;
use crate::model::{AccessKeyId, ModelConfig};
use crate::policy::{Guard, Policies, TemplateUse};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The AWS endpoint, and `/_sim/*`.
    pub listen: SocketAddr,
    pub account: String,
    pub region: String,
    /// Default: the region with `a`, `b` and `c`.
    pub availability_zones: Option<Vec<String>>,
    #[serde(default)]
    pub subnets: Vec<SubnetConfig>,
    /// A /16 below 127/8; each instance gets its own address in it.
    pub instance_net: Ipv4Addr,
    pub instance_role: String,
    pub instance_role_id: String,
    #[serde(default = "default_imds_port")]
    pub imds_port: u16,
    /// Logs and homes of instances go to `<dir>/instances/`.
    pub dir: PathBuf,
    #[serde(default)]
    pub boot_delay_ms: u64,
    /// How long a metric must be above, or well below, its target before a scaling policy acts; AWS's own by default.
    pub scale_out_after_ms: Option<u64>,
    pub scale_in_after_ms: Option<u64>,
    /// Whether terminating hooks hold an instance that is already dead until they are completed or time out.
    #[serde(default)]
    pub hooks_hold_dead_instances: bool,
    /// Ids repeat with the seed; random unless given.
    pub seed: Option<u64>,
    pub principals: Vec<PrincipalConfig>,
    pub launch_templates: Vec<TemplateConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubnetConfig {
    pub id: String,
    pub availability_zone: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrincipalConfig {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
    pub arn: String,
    pub user_id: String,
    /// An IAM policy in JSON that it is held to; without one it may do everything.
    pub policy: Option<PathBuf>,
}

impl fmt::Debug for PrincipalConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrincipalConfig({}, ..)", self.arn)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateConfig {
    pub name: String,
    pub id: String,
    pub version: u32,
    /// Read when an instance is launched, run by its launcher as `sh <user data>`.
    pub user_data: PathBuf,
    #[serde(default = "default_image")]
    pub image_id: String,
    #[serde(default = "default_type")]
    pub instance_type: String,
    /// Whether it tags what it launches. The tags themselves are not simulated, the permission that it takes is.
    #[serde(default)]
    pub tags_launched: bool,
}

fn default_imds_port() -> u16 {
    imds::PORT
}

fn default_image() -> String {
    "ami-0123456789abcdef0".to_owned()
}

fn default_type() -> String {
    "c7i.large".to_owned()
}

impl Config {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut config: Config = toml::from_str(&text)
            .map_err(|error| anyhow!("{}: {}", path.display(), in_one_line(&text, &error)))?;
        config.dir = std::path::absolute(&config.dir).context("make `dir` absolute")?;
        for template in &mut config.launch_templates {
            template.user_data =
                std::path::absolute(&template.user_data).context("make `user_data` absolute")?;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.account.len() == 12 && self.account.bytes().all(|byte| byte.is_ascii_digit()),
            "account must be 12 digits"
        );
        ensure!(
            self.instance_net.octets()[0] == 127,
            "instance_net must be below 127.0.0.0/8, which is loopback on this machine"
        );
        let octets = self.instance_net.octets();
        ensure!(
            octets[2] == 0 && octets[3] == 0,
            "instance_net must be a /16: {}.{}.0.0",
            octets[0],
            octets[1]
        );
        let mut versions = BTreeSet::new();
        for template in &self.launch_templates {
            if !versions.insert((&template.name, template.version)) {
                bail!("launch template {} has version {} twice", template.name, template.version);
            }
        }
        let zones = self.zones();
        for subnet in &self.subnets {
            ensure!(
                zones.contains(&subnet.availability_zone),
                "subnet {} is in no availability zone of {}",
                subnet.id,
                self.region
            );
        }
        Ok(())
    }

    /// Who is bound by which policy.
    pub fn guard(&self) -> anyhow::Result<Guard> {
        let mut guard = Guard::default();
        for principal in &self.principals {
            let Some(path) = &principal.policy else { continue };
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read {}", path.display()))?;
            let policies =
                Policies::parse([text.as_str()]).with_context(|| path.display().to_string())?;
            guard.bind(&principal.arn, policies);
        }
        // One version that tags counts for all of its template.
        for template in self.launch_templates.iter().filter(|template| template.tags_launched) {
            guard.template(&template.id, TemplateUse { profile: None, tags: true });
        }
        Ok(guard)
    }

    fn zones(&self) -> Vec<String> {
        let default =
            || ["a", "b", "c"].iter().map(|letter| format!("{}{letter}", self.region)).collect();
        self.availability_zones.clone().unwrap_or_else(default)
    }

    fn patience(&self) -> Patience {
        let Patience { out, back } = Patience::default();
        let given = |millis: Option<u64>, default| millis.map_or(default, Duration::from_millis);
        Patience {
            out: given(self.scale_out_after_ms, out),
            back: given(self.scale_in_after_ms, back),
        }
    }

    pub fn model(&self, random_seed: u64) -> ModelConfig {
        let principal = |config: &PrincipalConfig| {
            let principal = Principal {
                secret_access_key: config.secret_access_key.clone(),
                session_token: config.session_token.clone(),
                arn: config.arn.clone(),
                user_id: config.user_id.clone(),
                expires: None,
            };
            (AccessKeyId::from(config.access_key_id.clone()), principal)
        };
        let template = |config: &TemplateConfig| LaunchTemplate {
            id: config.id.clone(),
            name: config.name.clone(),
            version: config.version,
            image_id: config.image_id.clone(),
            instance_type: config.instance_type.clone(),
            user_data: config.user_data.display().to_string(),
        };
        ModelConfig {
            account: self.account.clone(),
            region: self.region.clone(),
            zones: self.zones(),
            subnets: self
                .subnets
                .iter()
                .map(|subnet| (subnet.id.clone(), subnet.availability_zone.clone()))
                .collect::<BTreeMap<_, _>>(),
            role: InstanceRole {
                account: self.account.clone(),
                name: self.instance_role.clone(),
                id: self.instance_role_id.clone(),
            },
            net: self.instance_net,
            boot_delay: Duration::from_millis(self.boot_delay_ms),
            templates: self.launch_templates.iter().map(template).collect(),
            patience: self.patience(),
            hooks_hold_dead_instances: self.hooks_hold_dead_instances,
            principals: self.principals.iter().map(principal).collect(),
            seed: self.seed.unwrap_or(random_seed),
        }
    }
}

/// `line 2 (colour = 1): unknown field …`, rather than a drawing of several lines.
fn in_one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    let Some(span) = error.span() else { return message };
    if message.starts_with("missing field") && span.start == 0 {
        return message;
    }
    let number = text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1);
    let line: String =
        text.lines().nth(number - 1).unwrap_or_default().trim().chars().take(80).collect();
    format!("line {number} ({line}): {message}")
}
