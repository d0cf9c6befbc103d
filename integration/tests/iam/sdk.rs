//! The agent's own checks out of the way: the AWS SDK against the simulated AWS, which holds the caller to the policy. For each
//! guardrail that AWS has a key for, what keeps to it passes and what goes beyond it is refused.

use std::sync::{Arc, Mutex};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::retry::RetryConfig;
use aws_sdk_autoscaling::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_autoscaling::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_autoscaling::types::{LaunchTemplateSpecification, Tag};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use outstation_agent::account::aws::Aws;
use outstation_agent::account::pacing::Pacer;
use outstation_agent::account::plan::Action;
use outstation_agent::clock::Clock;
use outstation_agent::iam::policy::Policy;
use outstation_aws_sim::policy::Policies;
use outstation_aws_sim::wire::Sim;
use time::OffsetDateTime;

use crate::account::{
    AGENT_ARN, AGENT_KEY, AGENT_SECRET, NODE_TEMPLATE, REGION, STRANGE_SUBNET, STRANGE_TEMPLATE,
    SUBNETS, config, manage, model, scale_only, templates,
};

/// Below the SDK in place of a network.
#[derive(Debug, Clone)]
struct Plugged(Arc<Mutex<Sim>>);

impl Plugged {
    fn new(policy: &Policy) -> Plugged {
        let mut sim = Sim::new(config());
        sim.model = model();
        let document = policy.to_json();
        sim.guard.bind(AGENT_ARN, Policies::parse([document.as_str()]).expect("a policy"));
        for (id, used) in templates() {
            sim.guard.template(&id, used);
        }
        Plugged(Arc::new(Mutex::new(sim)))
    }

    fn client(&self) -> Client {
        Client::new(&self.config())
    }

    fn config(&self) -> SdkConfig {
        let session = Some("session".to_owned());
        let credentials = Credentials::new(AGENT_KEY, AGENT_SECRET, session, None, "test");
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url("http://aws.sim")
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(self.clone())
            .retry_config(RetryConfig::disabled())
            .build()
    }
}

impl HttpClient for Plugged {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Plugged {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = as_received(request).map(|request| {
            self.0.lock().expect("nobody panics in it").handle(&request, OffsetDateTime::now_utc())
        });
        let answer = answer.and_then(|response| {
            HttpResponse::try_from(response.map(SdkBody::from)).map_err(|error| error.to_string())
        });
        HttpConnectorFuture::ready(answer.map_err(|error| ConnectorError::user(error.into())))
    }
}

fn as_received(request: HttpRequest) -> Result<http::Request<Bytes>, String> {
    let request = request.try_into_http1x().map_err(|error| error.to_string())?;
    let (mut parts, body) = request.into_parts();
    let body = Bytes::copy_from_slice(body.bytes().ok_or("a streaming body")?);
    let host = parts.uri.authority().map(|authority| authority.as_str().parse());
    if let Some(host) = host {
        parts.headers.entry(http::header::HOST).or_insert(host.map_err(|_| "an odd host")?);
    }
    Ok(http::Request::from_parts(parts, body))
}

/// What of a creation differs from one that is in order.
#[derive(Clone, Copy)]
struct Wanted {
    name: &'static str,
    nodes: i32,
    template: &'static str,
    version: &'static str,
    subnets: &'static str,
    tenant: &'static str,
}

const IN_ORDER: Wanted = Wanted {
    name: "outstation-new",
    nodes: 40,
    template: NODE_TEMPLATE,
    version: "1",
    subnets: SUBNETS,
    tenant: "example",
};

async fn create(client: &Client, wanted: Wanted) -> Result<(), String> {
    let tag = Tag::builder()
        .resource_type("auto-scaling-group")
        .resource_id(wanted.name)
        .key("outstation:tenant")
        .value(wanted.tenant)
        .propagate_at_launch(true)
        .build();
    let created = client
        .create_auto_scaling_group()
        .auto_scaling_group_name(wanted.name)
        .min_size(wanted.nodes)
        .max_size(wanted.nodes)
        .launch_template(template(wanted.template, wanted.version))
        .vpc_zone_identifier(wanted.subnets)
        .tags(tag)
        .send()
        .await;
    created.map(drop).map_err(told)
}

fn template(id: &str, version: &str) -> LaunchTemplateSpecification {
    LaunchTemplateSpecification::builder().launch_template_id(id).version(version).build()
}

fn told<E: ProvideErrorMetadata>(error: SdkError<E>) -> String {
    let code = error.code().unwrap_or("no answer");
    format!("{code}: {}", error.message().unwrap_or_default())
}

#[tokio::test]
async fn a_creation_beyond_a_guardrail_is_refused_by_the_policy() {
    let sim = Plugged::new(&manage());
    let client = sim.client();
    let group = "arn:aws:autoscaling:eu-central-1:123456789012:autoScalingGroup:*:autoScalingGroupName/outstation-new";
    let no_statement = format!(
        "AccessDenied: User: {AGENT_ARN} is not authorized to perform: \
         autoscaling:CreateAutoScalingGroup on resource: {group} because no identity-based policy \
         allows the autoscaling:CreateAutoScalingGroup action"
    );
    let a_deny = format!(
        "AccessDenied: User: {AGENT_ARN} is not authorized to perform: \
         autoscaling:CreateAutoScalingGroup on resource: {group} with an explicit deny in an \
         identity-based policy"
    );
    let of_template =
        |name: &str| format!("AccessDenied: You are not authorized to use launch template: {name}");
    for (guardrail, wanted, refusal) in [
        ("nodes_per_group_max", Wanted { nodes: 41, ..IN_ORDER }, no_statement.clone()),
        ("subnets", Wanted { subnets: STRANGE_SUBNET, ..IN_ORDER }, no_statement.clone()),
        ("tenant", Wanted { tenant: "somebody-else", ..IN_ORDER }, no_statement.clone()),
        (
            "name_prefix",
            Wanted { name: "shop-new", ..IN_ORDER },
            no_statement.replace("outstation-new", "shop-new"),
        ),
        ("a numeric version", Wanted { version: "$Latest", ..IN_ORDER }, a_deny),
        (
            "launch_template",
            Wanted { template: STRANGE_TEMPLATE, ..IN_ORDER },
            of_template("stranger"),
        ),
        ("the image", Wanted { version: "3", ..IN_ORDER }, of_template("outstation-node")),
        ("the instance type", Wanted { version: "4", ..IN_ORDER }, of_template("outstation-node")),
    ] {
        assert_eq!(create(&client, wanted).await, Err(refusal), "{guardrail}");
    }
    let there = |sim: &Plugged| {
        let sim = sim.0.lock().expect("nobody panics in it");
        sim.model.groups().any(|group| group.name.as_str() == "outstation-new")
    };
    assert!(!there(&sim), "nothing was made");
    assert_eq!(create(&client, IN_ORDER).await, Ok(()));
    assert!(there(&sim));
}

#[tokio::test]
async fn a_change_beyond_a_guardrail_is_refused_by_the_policy() {
    let sim = Plugged::new(&manage());
    let client = sim.client();
    let mine = || client.update_auto_scaling_group().auto_scaling_group_name("outstation-mine");
    for (guardrail, change) in [
        ("nodes_per_group_max", mine().max_size(41)),
        ("subnets", mine().vpc_zone_identifier(STRANGE_SUBNET)),
        ("launch_template", mine().launch_template(template(STRANGE_TEMPLATE, "1"))),
        ("a numeric version", mine().launch_template(template(NODE_TEMPLATE, "$Default"))),
        ("the image", mine().launch_template(template(NODE_TEMPLATE, "3"))),
        ("the instance type", mine().launch_template(template(NODE_TEMPLATE, "4"))),
        ("launch_template, by configuration", mine().launch_configuration_name("admin")),
        (
            "name_prefix",
            client.update_auto_scaling_group().auto_scaling_group_name("shop-web").max_size(0),
        ),
        (
            "tenant",
            client
                .update_auto_scaling_group()
                .auto_scaling_group_name("outstation-others")
                .max_size(0),
        ),
    ] {
        let refusal = change.send().await.map(drop).map_err(told).expect_err(guardrail);
        assert!(refusal.starts_with("AccessDenied: "), "{guardrail}: {refusal}");
    }
    mine().max_size(40).send().await.map_err(told).expect("as much as is allowed");
    mine()
        .launch_template(template(NODE_TEMPLATE, "2"))
        .send()
        .await
        .map_err(told)
        .expect("a numbered version");
    let forced = client
        .delete_auto_scaling_group()
        .auto_scaling_group_name("outstation-mine")
        .force_delete(true);
    let refusal = forced.send().await.map(drop).map_err(told).expect_err("drains first");
    assert!(refusal.contains("with an explicit deny"), "{refusal}");
}

#[tokio::test]
async fn scale_only_changes_a_number_and_nothing_else() {
    let sim = Plugged::new(&scale_only());
    let client = sim.client();
    let scale = |group: &str, nodes| {
        client.set_desired_capacity().auto_scaling_group_name(group).desired_capacity(nodes).send()
    };
    scale("outstation-mine", 10).await.map_err(told).expect("ours");
    // The ceiling is the customer's own: AWS keeps to it, and the agent cannot move it.
    let refusal = scale("outstation-mine", 11).await.map_err(told).expect_err("beyond its maximum");
    assert!(refusal.starts_with("ValidationError: "), "{refusal}");
    let update = client.update_auto_scaling_group().auto_scaling_group_name("outstation-mine");
    let refusal = update.max_size(11).send().await.map_err(told).expect_err("no update");
    assert!(refusal.starts_with("AccessDenied: "), "{refusal}");
    for group in ["outstation-others", "outstation-untagged", "shop-web", "outstation-agent"] {
        let refusal = scale(group, 1).await.map_err(told).expect_err(group);
        assert!(refusal.starts_with("AccessDenied: "), "{group}: {refusal}");
    }
    let refusal = create(&client, IN_ORDER).await.expect_err("no creation");
    assert!(refusal.starts_with("AccessDenied: "), "{refusal}");
    let seen = client.describe_auto_scaling_groups().send().await.map_err(told).expect("looks");
    assert_eq!(seen.auto_scaling_groups().len(), 5, "no describe can be narrowed");
}

/// The agent itself, whose role has less than it needs: AWS's own words, and what a person can do.
#[tokio::test]
async fn a_role_that_lacks_an_action_is_told_as_such() {
    let sim = Plugged::new(&scale_only());
    let aws = Aws::with(&sim.config(), None, Pacer::new(100, Clock::System));
    let delete = Action::Delete { asg_name: "outstation-mine".to_owned() };
    let held = aws.apply(&delete).await.expect_err("scale-only deletes nothing").into_held();
    assert!(
        held.message.starts_with("DeleteAutoScalingGroup: AccessDenied: User: ")
            && held.message.contains("no identity-based policy allows"),
        "{held:?}"
    );
    assert!(held.hint.contains("outstation-agent iam-policy"), "{held:?}");
}
