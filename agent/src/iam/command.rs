//! `outstation-agent iam-policy`: prints a policy for one account, or the reasons behind it.

use anyhow::Result;
use clap::{Args, ValueEnum};
use outstation_protocol::{AccountId, Region, TenantId};

use super::page::page;
use super::parameters::{
    ImageId, InstanceType, LaunchTemplateId, Manage, Name, Partition, Profile, Scope, SubnetId,
};
use super::policy::{Policy, TooLong, policy};
use super::store::{Bucket, Role, store_policy};
use crate::account::guardrails::NamePrefix;
use crate::hint::Hinted;
use crate::store::Location;

#[derive(Debug, Args)]
pub struct IamPolicyArgs {
    #[arg(long)]
    profile: ProfileName,
    #[arg(long)]
    account: AccountId,
    #[arg(long)]
    region: Region,
    /// Default: the one of the region.
    #[arg(long)]
    partition: Option<Partition>,
    /// As name_prefix in the guardrails.
    #[arg(long, default_value = "outstation-", value_parser = prefix)]
    prefix: NamePrefix,
    /// As tenant in the agent's configuration.
    #[arg(long)]
    tenant: TenantId,
    /// The AutoScaling group that the agent itself runs in.
    #[arg(long, value_name = "NAME", default_value = "outstation-agent")]
    agent_group: Name,
    /// The role that the policy is for.
    #[arg(long, value_name = "NAME", default_value = "outstation-agent")]
    agent_role: Name,
    /// For the policies of the account store, and for the table of all reasons
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    store: Option<Location>,
    #[command(flatten)]
    manage: ManageArgs,
    /// Print a table with the reason of each statement instead of the policy.
    #[arg(long)]
    explain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProfileName {
    ScaleOnly,
    Manage,
    /// The account store in a bucket, beside either of the two
    Store,
    /// The same for the nodes' role
    NodeStore,
}

impl ProfileName {
    fn of_store(self) -> Option<Role> {
        match self {
            ProfileName::Store => Some(Role::Agent),
            ProfileName::NodeStore => Some(Role::Node),
            ProfileName::ScaleOnly | ProfileName::Manage => None,
        }
    }
}

/// For `--profile manage` alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "For manage")]
struct ManageArgs {
    /// As in the guardrails.
    #[arg(long, value_name = "N")]
    nodes_per_group_max: Option<u32>,
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    launch_template: Vec<LaunchTemplateId>,
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    subnet: Vec<SubnetId>,
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    image: Vec<ImageId>,
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    instance_type: Vec<InstanceType>,
    #[arg(long, value_name = "NAME", default_value = "outstation-node")]
    instance_profile: Name,
    #[arg(long, value_name = "NAME", default_value = "outstation-node")]
    node_role: Name,
    /// The launch template that the agent itself is started from.
    #[arg(long, value_name = "ID")]
    agent_launch_template: Option<LaunchTemplateId>,
}

fn prefix(raw: &str) -> Result<NamePrefix, String> {
    NamePrefix::try_from(raw.to_owned())
}

pub fn run(args: IamPolicyArgs) -> Result<()> {
    let scope = Scope {
        partition: args.partition.unwrap_or_else(|| Partition::of(&args.region)),
        region: args.region,
        account: args.account,
        prefix: args.prefix,
        tenant: args.tenant,
        agent_group: args.agent_group,
    };
    let bucket = args.store.map(bucket).transpose()?;
    if let Some(role) = args.profile.of_store() {
        args.manage.refuse_any("a store")?;
        let bucket = bucket.ok_or_else(|| {
            Hinted::error(
                "a policy for the account store needs --store",
                "give it as in the agent's configuration: s3://bucket/prefix",
            )
        })?;
        if args.explain {
            return Err(together());
        }
        print!("{}", fitting(store_policy(&scope, &bucket, role))?.to_json());
        return Ok(());
    }
    if bucket.is_some() && !args.explain {
        return Err(Hinted::error(
            "--store says nothing in this policy",
            "ask for --profile store (the agent's role) and --profile node-store (the nodes')",
        ));
    }
    let scale_only = made(&scope, &Profile::ScaleOnly)?;
    match args.profile {
        ProfileName::ScaleOnly if args.explain => Err(together()),
        ProfileName::ScaleOnly => {
            args.manage.refuse_any("a scale-only")?;
            print!("{}", scale_only.to_json());
            Ok(())
        }
        ProfileName::Manage | ProfileName::Store | ProfileName::NodeStore => {
            let manage = args.manage.into_manage(args.agent_role)?;
            let manage = made(&scope, &Profile::Manage(Box::new(manage)))?;
            match args.explain {
                true => {
                    let Some(bucket) = bucket else {
                        print!("{}", page(&scale_only, &manage, None));
                        return Ok(());
                    };
                    let of = |role| fitting(store_policy(&scope, &bucket, role));
                    let (agent, node) = (of(Role::Agent)?, of(Role::Node)?);
                    print!("{}", page(&scale_only, &manage, Some([&agent, &node])));
                }
                false => print!("{}", manage.to_json()),
            }
            Ok(())
        }
    }
}

fn together() -> anyhow::Error {
    Hinted::error(
        "the reasons are shown for both profiles together",
        "ask with --profile manage and its arguments",
    )
}

fn bucket(store: Location) -> Result<Bucket> {
    match store {
        Location::S3 { bucket, prefix } => Ok(Bucket { name: bucket, prefix }),
        Location::Folder(folder) => Err(Hinted::error(
            format!("{} is a folder: IAM has no say there", folder.display()),
            "give the account store as s3://bucket/prefix",
        )),
    }
}

fn made(scope: &Scope, profile: &Profile) -> Result<Policy> {
    fitting(policy(scope, profile))
}

fn fitting(policy: Result<Policy, TooLong>) -> Result<Policy> {
    policy.map_err(|error| {
        Hinted::error(
            error.to_string(),
            "name fewer subnets, images, instance types or launch templates, which are in it one by one, or give the \
             account store a shorter prefix",
        )
    })
}

impl ManageArgs {
    /// What is given for nothing was meant for something.
    fn refuse_any(&self, kind: &str) -> Result<()> {
        let given = [
            ("--nodes-per-group-max", self.nodes_per_group_max.is_some()),
            ("--launch-template", !self.launch_template.is_empty()),
            ("--subnet", !self.subnet.is_empty()),
            ("--image", !self.image.is_empty()),
            ("--instance-type", !self.instance_type.is_empty()),
            ("--agent-launch-template", self.agent_launch_template.is_some()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            None => Ok(()),
            Some((flag, _)) => Err(Hinted::error(
                format!("{flag} says nothing in {kind} policy"),
                "leave it out, or ask for --profile manage",
            )),
        }
    }

    fn into_manage(self, agent_role: Name) -> Result<Manage> {
        let missing = |flag: &str| {
            let what = format!("a manage policy needs {flag}");
            Hinted::error(what, "give what the account's guardrails allow, and nothing beyond it")
        };
        let some = |flag: &str, is_empty: bool| match is_empty {
            true => Err(missing(flag)),
            false => Ok(()),
        };
        some("--launch-template", self.launch_template.is_empty())?;
        some("--subnet", self.subnet.is_empty())?;
        some("--image", self.image.is_empty())?;
        some("--instance-type", self.instance_type.is_empty())?;
        if self.node_role == agent_role {
            return Err(Hinted::error(
                format!("the nodes' role is the agent's own: {agent_role}"),
                "give the nodes a role of their own: it is what user code may become",
            ));
        }
        let agent_launch_template =
            self.agent_launch_template.ok_or_else(|| missing("--agent-launch-template"))?;
        if self.launch_template.contains(&agent_launch_template) {
            return Err(Hinted::error(
                format!(
                    "{agent_launch_template} is the agent's own launch template and the nodes'"
                ),
                "make one for the nodes",
            ));
        }
        Ok(Manage {
            nodes_per_group_max: self
                .nodes_per_group_max
                .ok_or_else(|| missing("--nodes-per-group-max"))?,
            launch_templates: self.launch_template,
            subnets: self.subnet,
            images: self.image,
            instance_types: self.instance_type,
            instance_profile: self.instance_profile,
            node_role: self.node_role,
            agent_role,
            agent_launch_template,
        })
    }
}
