//! The account agent's configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use outstation_protocol::{AccountId, DataPlane, Region, TenantId};
use serde::Deserialize;

use super::floor::{Contradiction, Tag};
use super::guardrails::in_one_line;
use crate::store::{Access, AccountStore, Location, StoreError};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub tenant: TenantId,
    #[serde(default)]
    pub profile: Profile,
    pub account: AccountId,
    pub region: Region,
    /// The account store: a folder, or `s3://bucket/prefix`, of the shape of DESIGN's table of prefixes.
    pub store: Location,
    /// Its own key, certificate and last known nodes.
    pub state: PathBuf,
    #[serde(default)]
    pub aws: AwsConfig,
    pub broker: BrokerConfig,
    pub nodes: NodesConfig,
    pub callers: CallersConfig,
    /// How often a quiet account is looked at.
    #[serde(default = "reconcile_secs")]
    pub reconcile_secs: u64,
}

/// Whose the AutoScaling groups are; as narrow as the role's policy of the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// The customer's: this agent sets their desired capacity, and nothing else.
    #[default]
    ScaleOnly,
    /// This agent's: it makes, changes and deletes them.
    Manage,
}

impl Profile {
    /// Groups of the customer need not carry a generation, so its absence contradicts nothing there.
    pub fn counts(self, mut contradictions: Vec<Contradiction>) -> Vec<Contradiction> {
        match self {
            Profile::Manage => {}
            Profile::ScaleOnly => contradictions.retain(|found| found.tag != Tag::Missing),
        }
        contradictions
    }
}

fn reconcile_secs() -> u64 {
    30
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsConfig {
    /// Instead of AWS's own endpoints, for AutoScaling and STS alike.
    pub endpoint: Option<String>,
    /// The same for an account store in S3; without it `AWS_ENDPOINT_URL_S3` says so, or nobody.
    pub s3_endpoint: Option<String>,
    /// Of all calls of this agent together. AWS has one budget for the account and region, which others need too.
    pub requests_per_second: Option<u32>,
}

/// A fraction of what AWS allows an account.
const REQUESTS_PER_SECOND: u32 = 5;
const REQUESTS_PER_SECOND_MAX: u32 = 100;

impl AwsConfig {
    /// Between one and a hundred, whatever was written.
    pub fn requests_per_second(&self) -> u32 {
        self.requests_per_second.unwrap_or(REQUESTS_PER_SECOND).clamp(1, REQUESTS_PER_SECOND_MAX)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// `host:port`; a name is resolved at every dial.
    pub address: String,
    pub server_name: String,
    /// PEM of the broker's root, pinned at install.
    pub root: PathBuf,
    /// For places without AWS. Elsewhere the agent shows its IAM role, which is registered at the
    /// broker (`outstation dataplane add`).
    pub join_token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodesConfig {
    pub listen: SocketAddr,
    /// The instances' role: evidence of any other is refused.
    #[serde(default = "node_role")]
    pub role: String,
    /// Its unique id (`AROA…`): a role made again under the same name is another one.
    pub role_id: Option<String>,
}

fn node_role() -> String {
    "outstation-node".to_owned()
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallersConfig {
    pub listen: SocketAddr,
    /// Callers present what this file holds; it is created when absent.
    pub token_file: PathBuf,
}

impl Config {
    pub fn load(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("read the configuration {}", path.display()))?;
        toml::from_str(&text).map_err(|error| {
            anyhow!("the configuration {}: {}", path.display(), in_one_line(&text, &error))
        })
    }

    pub fn open_store(&self) -> Result<AccountStore, StoreError> {
        let mut access = Access::of_environment(Some(&self.region));
        access.endpoint = self.aws.s3_endpoint.clone().or(access.endpoint);
        AccountStore::open(&self.store, access)
    }

    pub fn data_plane(&self) -> DataPlane {
        DataPlane { account: self.account.clone(), region: self.region.clone() }
    }

    /// Between once a second and once in ten minutes, whatever was written.
    pub fn reconcile_interval(&self) -> Duration {
        Duration::from_secs(self.reconcile_secs.clamp(1, 600))
    }
}
