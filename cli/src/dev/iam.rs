//! The policy that the account agent of a dev system is held to: the one that it would have at AWS, made by the agent itself.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tokio::process::Command;

use super::layout::{
    ACCOUNT, AGENT_TEMPLATE_ID, IMAGE_ID, INSTANCE_TYPE, Layout, NODE_TEMPLATE_ID, REGION, SUBNETS,
    TENANT,
};
use super::system::DevOptions;
use crate::clean_env;
use crate::context::write_atomically;
use crate::message::Failure;

/// It prints and ends; a debug build on a loaded machine starts within a second.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How a call of the account agent was judged by its policy, as `/_sim/judged` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct Judged {
    pub principal: String,
    pub call: String,
    pub action: String,
    pub resource: String,
    pub allowed: bool,
    pub statements: Vec<String>,
}

pub async fn write_policy(layout: &Layout, options: &DevOptions) -> anyhow::Result<()> {
    let agent = options.bin_dir.join("outstation-agent");
    let policy = agent_policy(&agent, options).await?;
    write_atomically(&layout.agent_policy(), &policy)
}

async fn agent_policy(agent: &Path, options: &DevOptions) -> anyhow::Result<Vec<u8>> {
    let subnets: Vec<&str> = SUBNETS.iter().map(|(id, _)| *id).collect();
    let mut command = Command::new(agent);
    command
        .args(["iam-policy", "--profile", options.profile, "--account", ACCOUNT])
        .args(["--region", REGION, "--tenant", TENANT]);
    if options.profile == "manage" {
        command
            .args(["--launch-template", NODE_TEMPLATE_ID])
            .args(["--agent-launch-template", AGENT_TEMPLATE_ID, "--image", IMAGE_ID])
            .args(["--instance-type", INSTANCE_TYPE, "--subnet", &subnets.join(",")])
            .arg("--nodes-per-group-max")
            .arg(options.guardrails.nodes_per_group_max.to_string());
    }
    command.env_clear().envs(clean_env::for_services()).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output())
        .await
        .context("outstation-agent iam-policy does not end")?
        .with_context(|| format!("start {}", agent.display()))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().next().unwrap_or("it says nothing");
    let what = format!("outstation-agent iam-policy makes no policy: {last}");
    Err(Failure::new(what, "cargo build --workspace --bins: it may be of another version").into())
}
