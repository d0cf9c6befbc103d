//! The account as the AWS SDK shows it, and the calls that change it. Plain IO: what to call is
//! decided in `plan`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region as AwsRegion, SdkConfig};
use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::{
    AutoScalingGroup, Filter, LaunchTemplateSpecification, LifecycleHookSpecification,
    LifecycleState, Tag,
};
use outstation_protocol::status::Held;
use outstation_protocol::{GroupName, InstanceId, TenantId};

use super::backoff::Class;
use super::config::Config;
use super::entry::{READY_HEARTBEAT_SECS, READY_HOOK};
use super::guardrails::{Guardrails, LaunchTemplate};
use super::journal::intercept::Journaled;
use super::journal::{Journal, JournalError};
use super::pacing::Pacer;
use super::plan::{
    Action, Observed, ObservedGroup, ObservedInstance, Shape, TAG_GROUP, TAG_TENANT,
};
use super::refresh::Image;
use crate::clock::Clock;

pub const DRAIN_HOOK: &str = "outstation-drain";
/// The drain's own limits (5 s until withdrawn, 1 s grace, 30 s in flight) and a margin. After
/// it AWS goes on by itself: a dead agent delays a scale-in by no more than this.
pub(super) const DRAIN_HEARTBEAT_SECS: i32 = 90;
/// One call with the SDK's retries; a hanging endpoint must not hold up the next look.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(15);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// AWS's own limit; short pages are legal.
pub const RECORDS_MAX: i32 = 100;
/// 500 groups a region at 100 a page, with room for short pages.
pub const PAGES_MAX: usize = 64;

#[derive(Clone)]
pub struct Aws {
    /// Every call waits for its turn here; those that change something wait in [`Aws::turn`].
    pub(super) pacer: Pacer,
    pub(super) autoscaling: Client,
    /// Sends each call once: between two attempts an order may have been replaced, so a mutation is
    /// planned anew rather than repeated.
    pub(super) mutations: Client,
    sts: aws_sdk_sts::Client,
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {message}")]
pub struct CallError {
    pub call: &'static str,
    /// AWS's error code, when there was an answer at all.
    pub code: Option<String>,
    pub message: String,
}

impl CallError {
    pub(super) fn of<E>(call: &'static str, error: SdkError<E>) -> CallError
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        if let Some(journal) = journal_error(&error) {
            let code = Some(JOURNAL.to_owned());
            return CallError { call, code, message: format!("not made: {}", causes(journal)) };
        }
        let code = error.code().map(str::to_owned);
        let message = match (&code, error.message()) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.clone(),
            (None, _) => causes(&error),
        };
        CallError { call, code, message: message.chars().take(400).collect() }
    }

    pub(super) fn has_code(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// The failure as it is shown, with what a person can do.
    pub fn into_held(self) -> Held {
        let hint = match self.code.as_deref() {
            Some("AccessDenied" | "UnauthorizedOperation" | "AccessDeniedException") => {
                "the agent's role may not do this: compare its policy with what outstation-agent iam-policy prints"
            }
            Some("ExpiredToken" | "InvalidClientTokenId" | "SignatureDoesNotMatch") => {
                "the agent's AWS credentials are not valid: look at its role or environment"
            }
            Some("AlreadyExists") => {
                "a group of this name exists and is not tagged as ours: remove it or change name_prefix"
            }
            Some(JOURNAL) => {
                "nothing is changed that cannot be written down: look at the disk of the state folder and at \
                 journal/ of the account store"
            }
            Some("LimitExceeded") => "ask AWS for a higher quota in this region",
            Some(code)
                if matches!(Class::of(Some(code)), Class::Throttling | Class::Contention) =>
            {
                "nobody has to do anything: the agent tries again more slowly"
            }
            Some(_) => "the agent tries again; the message above is AWS's own",
            None => "the AWS endpoint cannot be reached from the agent; it tries again",
        };
        Held {
            generation: None,
            rule: "aws".to_owned(),
            message: self.to_string(),
            hint: hint.to_owned(),
        }
    }
}

/// Instead of AWS's code: the call was not made.
const JOURNAL: &str = "JournalUnavailable";

fn journal_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a JournalError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<JournalError>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The SDK's own text says only that something failed; its last causes say what.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

impl Aws {
    /// Without a journal nothing that this changes is written down: for commands that only look.
    pub async fn connect(config: &Config, journal: Option<Arc<Journal>>) -> Aws {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(AwsRegion::new(config.region.to_string()))
            .timeout_config(Aws::timeouts());
        if let Some(endpoint) = &config.aws.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let pacer = Pacer::new(config.aws.requests_per_second(), Clock::System);
        Aws::with(&loader.load().await, journal, pacer)
    }

    pub fn timeouts() -> TimeoutConfig {
        TimeoutConfig::builder()
            .connect_timeout(ATTEMPT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build()
    }

    /// Over any configuration of the SDK: a simulation brings its own HTTP client, clock and sleep.
    pub fn with(config: &SdkConfig, journal: Option<Arc<Journal>>, pacer: Pacer) -> Aws {
        let pacer = pacer.waiting_by(config.sleep_impl());
        let journaled = journal.map(Journaled);
        // Retries are paid from a budget of this agent's own: the SDK's default is one for the whole
        // process.
        let mut autoscaling = aws_sdk_autoscaling::config::Builder::from(config)
            .retry_partition(RetryPartition::custom("autoscaling").build())
            .interceptor(pacer.clone());
        if let Some(journaled) = &journaled {
            autoscaling = autoscaling.interceptor(journaled.clone());
        }
        let mutations = autoscaling.clone().retry_config(RetryConfig::disabled());
        let mut sts = aws_sdk_sts::config::Builder::from(config)
            .retry_partition(aws_sdk_sts::config::retry::RetryPartition::custom("sts").build())
            .interceptor(pacer.clone());
        if let Some(journaled) = journaled {
            sts = sts.interceptor(journaled);
        }
        Aws {
            pacer,
            autoscaling: Client::from_conf(autoscaling.build()),
            mutations: Client::from_conf(mutations.build()),
            sts: aws_sdk_sts::Client::from_conf(sts.build()),
        }
    }

    /// Before [`Aws::apply`] and what else changes something: by the time that its turn comes, it may not be wanted any more.
    pub async fn turn(&self) {
        self.pacer.turn().await;
    }

    /// Refuses to work in another account than the configured one.
    pub async fn check_account(&self, config: &Config) -> Result<()> {
        self.turn().await;
        let identity = self
            .sts
            .get_caller_identity()
            .send()
            .await
            .map_err(|e| CallError::of("GetCallerIdentity", e))?;
        let account = identity.account().context("STS named no account")?;
        if account != config.account.as_str() {
            bail!(
                "these AWS credentials belong to account {account}, this agent is configured for {}",
                config.account
            );
        }
        Ok(())
    }

    /// All groups of our tenant that bear the name we would give them. Nothing else leaves this
    /// function: a tag may be anybody's copy.
    pub async fn observe(
        &self,
        tenant: &TenantId,
        guardrails: &Guardrails,
    ) -> Result<Observed, CallError> {
        let filter =
            Filter::builder().name(format!("tag:{TAG_TENANT}")).values(tenant.to_string()).build();
        let mut observed = Observed::new();
        let mut token = None;
        for _ in 0..PAGES_MAX {
            self.turn().await;
            let page = self
                .autoscaling
                .describe_auto_scaling_groups()
                .filters(filter.clone())
                .max_records(RECORDS_MAX)
                .set_next_token(token)
                .send()
                .await
                .map_err(|e| CallError::of("DescribeAutoScalingGroups", e))?;
            let ours = |group: &AutoScalingGroup| {
                let (name, observed) = observed_group(group)?;
                let asg_name = guardrails.asg_name(&name);
                (group.auto_scaling_group_name() == Some(&asg_name)).then_some((name, observed))
            };
            observed.extend(page.auto_scaling_groups().iter().filter_map(ours));
            token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if token.is_none() {
                return Ok(observed);
            }
        }
        Err(CallError {
            call: "DescribeAutoScalingGroups",
            code: None,
            message: format!("more than {PAGES_MAX} pages"),
        })
    }

    /// The AutoScaling groups that AWS itself says `instances` are in now, those that are in one; after an [`Aws::turn`], as
    /// further pages take their own. As many as one call takes.
    pub(super) async fn groups_of(
        &self,
        instances: &[&InstanceId],
    ) -> Result<BTreeMap<InstanceId, String>, CallError> {
        let ids: Vec<String> = instances.iter().map(ToString::to_string).collect();
        let mut groups = BTreeMap::new();
        let mut token = None;
        for _ in 0..PAGES_MAX {
            let page = self
                .autoscaling
                .describe_auto_scaling_instances()
                .set_instance_ids(Some(ids.clone()))
                .set_next_token(token)
                .send()
                .await
                .map_err(|e| CallError::of("DescribeAutoScalingInstances", e))?;
            groups.extend(page.auto_scaling_instances().iter().filter_map(|found| {
                let id = InstanceId::try_from(found.instance_id()?).ok()?;
                Some((id, found.auto_scaling_group_name()?.to_owned()))
            }));
            token = page.next_token().filter(|token| !token.is_empty()).map(str::to_owned);
            if token.is_none() {
                return Ok(groups);
            }
            self.turn().await;
        }
        Err(CallError {
            call: "DescribeAutoScalingInstances",
            code: None,
            message: format!("more than {PAGES_MAX} pages"),
        })
    }

    /// One call, after its [`Aws::turn`]. Each action may be repeated; what is already so counts as done.
    pub async fn apply(&self, action: &Action) -> Result<(), CallError> {
        match action {
            Action::Create(shape) => self.create(shape).await,
            Action::Resize { asg_name, min, max, desired } => {
                self.resize(asg_name, *min, *max, *desired).await
            }
            Action::DrainToZero { asg_name } => self.resize(asg_name, 0, 0, Some(0)).await,
            Action::Track { asg_name, target } => self.track(asg_name, target).await,
            Action::TrackNothing { asg_name } => self.track_nothing(asg_name).await,
            Action::SetDesired { asg_name, nodes } => self.set_desired(asg_name, *nodes).await,
            Action::PutDrainHook { asg_name } => self.put_drain_hook(asg_name).await,
            Action::Place { asg_name, subnets, zones } => {
                self.place(asg_name, subnets, zones).await
            }
            Action::UseTemplate { asg_name, launch_template } => self
                .mutations
                .update_auto_scaling_group()
                .auto_scaling_group_name(asg_name)
                .launch_template(template(launch_template))
                .send()
                .await
                .map(drop)
                .map_err(|e| CallError::of("UpdateAutoScalingGroup", e)),
            Action::PutReadyHook { asg_name } => self.put_ready_hook(asg_name).await,
            Action::StartRefresh { asg_name, launch_template, min_healthy_percent } => {
                self.start_refresh(asg_name, launch_template, *min_healthy_percent).await
            }
            Action::CancelRefresh { asg_name } => self.cancel_refresh(asg_name).await,
            Action::Replace { instance, .. } => self.replace(instance).await,
            Action::Tag { asg_name, tags } => self
                .mutations
                .create_or_update_tags()
                .set_tags(Some(tags_of(asg_name, tags)))
                .send()
                .await
                .map(drop)
                .map_err(|e| CallError::of("CreateOrUpdateTags", e)),
            Action::Delete { asg_name } => self
                .mutations
                .delete_auto_scaling_group()
                .auto_scaling_group_name(asg_name)
                .send()
                .await
                .map(drop)
                .map_err(|e| CallError::of("DeleteAutoScalingGroup", e)),
        }
    }

    async fn create(&self, shape: &Shape) -> Result<(), CallError> {
        let ready = LifecycleHookSpecification::builder()
            .lifecycle_hook_name(READY_HOOK)
            .lifecycle_transition("autoscaling:EC2_INSTANCE_LAUNCHING")
            .heartbeat_timeout(READY_HEARTBEAT_SECS)
            .default_result("ABANDON")
            .build();
        let hook = LifecycleHookSpecification::builder()
            .lifecycle_hook_name(DRAIN_HOOK)
            .lifecycle_transition("autoscaling:EC2_INSTANCE_TERMINATING")
            .heartbeat_timeout(DRAIN_HEARTBEAT_SECS)
            .default_result("CONTINUE")
            .build();
        let mut request = self
            .mutations
            .create_auto_scaling_group()
            .auto_scaling_group_name(&shape.asg_name)
            .launch_template(template(&shape.launch_template))
            .min_size(size(shape.min))
            .max_size(size(shape.max))
            .desired_capacity(size(shape.min))
            .lifecycle_hook_specification_list(hook)
            .lifecycle_hook_specification_list(ready)
            .set_tags(Some(tags_of(&shape.asg_name, &shape.tags)));
        if !shape.availability_zones.is_empty() {
            request = request.set_availability_zones(Some(shape.availability_zones.clone()));
        }
        if !shape.subnets.is_empty() {
            request = request.vpc_zone_identifier(shape.subnets.join(","));
        }
        request.send().await.map(drop).map_err(|e| CallError::of("CreateAutoScalingGroup", e))
    }

    /// Without `desired` AWS moves the count only if a bound passes it.
    async fn resize(
        &self,
        asg_name: &str,
        min: u32,
        max: u32,
        desired: Option<u32>,
    ) -> Result<(), CallError> {
        self.mutations
            .update_auto_scaling_group()
            .auto_scaling_group_name(asg_name)
            .min_size(size(min))
            .max_size(size(max))
            .set_desired_capacity(desired.map(size))
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("UpdateAutoScalingGroup", e))
    }

    /// Whatever cooldown the group has: an order does not wait for it.
    async fn set_desired(&self, asg_name: &str, nodes: u32) -> Result<(), CallError> {
        self.mutations
            .set_desired_capacity()
            .auto_scaling_group_name(asg_name)
            .desired_capacity(size(nodes))
            .honor_cooldown(false)
            .send()
            .await
            .map(drop)
            .map_err(|e| CallError::of("SetDesiredCapacity", e))
    }

    async fn place(
        &self,
        asg_name: &str,
        subnets: &[String],
        zones: &[String],
    ) -> Result<(), CallError> {
        let mut request =
            self.mutations.update_auto_scaling_group().auto_scaling_group_name(asg_name);
        if !zones.is_empty() {
            request = request.set_availability_zones(Some(zones.to_vec()));
        }
        if !subnets.is_empty() {
            request = request.vpc_zone_identifier(subnets.join(","));
        }
        request.send().await.map(drop).map_err(|e| CallError::of("UpdateAutoScalingGroup", e))
    }

    /// Lets a drained instance end. One that has already ended is no error.
    pub async fn complete_drain(
        &self,
        asg_name: &str,
        instance: &InstanceId,
    ) -> Result<(), CallError> {
        self.turn().await;
        let completed = self
            .autoscaling
            .complete_lifecycle_action()
            .auto_scaling_group_name(asg_name)
            .lifecycle_hook_name(DRAIN_HOOK)
            .instance_id(instance.as_str())
            .lifecycle_action_result("CONTINUE")
            .send()
            .await
            .map_err(|e| CallError::of("CompleteLifecycleAction", e));
        match completed {
            Ok(_) => Ok(()),
            Err(error) if error.has_code("ValidationError") => Ok(()),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn template(launch_template: &LaunchTemplate) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder()
        .launch_template_name(&launch_template.name)
        .version(launch_template.version.to_string())
        .build()
}

fn tags_of(asg_name: &str, tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter()
        .map(|(key, value)| {
            Tag::builder()
                .resource_type("auto-scaling-group")
                .resource_id(asg_name)
                .key(key)
                .value(value)
                .propagate_at_launch(true)
                .build()
        })
        .collect()
}

/// AWS counts in signed integers; guardrails keep ours far below their end.
fn size(nodes: u32) -> i32 {
    i32::try_from(nodes).unwrap_or(i32::MAX)
}

fn observed_group(group: &AutoScalingGroup) -> Option<(GroupName, ObservedGroup)> {
    let tags: BTreeMap<String, String> = group
        .tags()
        .iter()
        .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or("").to_owned())))
        .collect();
    let name = GroupName::try_from(tags.get(TAG_GROUP)?.as_str()).ok()?;
    let read = |template: &LaunchTemplateSpecification| {
        let name = template.launch_template_name()?.to_owned();
        Some(LaunchTemplate { name, version: template.version()?.parse().ok()? })
    };
    let launch_template = group.launch_template().and_then(read);
    let is_leaving = |state: &LifecycleState| {
        state.as_str().trim_start_matches("Warmed:").starts_with("Terminat")
    };
    let staying =
        group.instances().iter().filter(|held| !held.lifecycle_state().is_some_and(is_leaving));
    let templates = staying.map(|instance| instance.launch_template().and_then(read)).collect();
    let instances = group
        .instances()
        .iter()
        .filter_map(|instance| {
            let id = InstanceId::try_from(instance.instance_id()?).ok()?;
            let lifecycle = instance.lifecycle_state().map_or("", |state| state.as_str());
            let healthy = instance.health_status() != Some("Unhealthy");
            Some((id, ObservedInstance { lifecycle: lifecycle.to_owned(), healthy }))
        })
        .collect();
    let mut subnets: Vec<String> = group
        .vpc_zone_identifier()
        .unwrap_or_default()
        .split(',')
        .map(|subnet| subnet.trim().to_owned())
        .filter(|subnet| !subnet.is_empty())
        .collect();
    subnets.sort();
    let mut zones = group.availability_zones().to_vec();
    zones.sort();
    let count = |n: Option<i32>| u32::try_from(n.unwrap_or(0)).unwrap_or(0);
    let observed = ObservedGroup {
        min: count(group.min_size()),
        max: count(group.max_size()),
        desired: count(group.desired_capacity()),
        policy: None,
        hooks: None,
        subnets,
        zones,
        launch_template,
        image: Image { templates, ..Image::default() },
        tags,
        instances,
        deleting: group.status().is_some_and(|status| status.contains("Delete")),
    };
    Some((name, observed))
}
