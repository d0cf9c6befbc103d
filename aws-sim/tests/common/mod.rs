//! A simulated account for tests: its own clock, machines that obey at once, and a signer for the wire.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use outstation_aws_sim::model::credentials::{InstanceRole, Principal};
use outstation_aws_sim::model::group::{Instance, LaunchTemplate};
use outstation_aws_sim::model::{AccessKeyId, Effect, InstanceId, ModelConfig};
use outstation_aws_sim::wire::Sim;
use outstation_aws_sim::wire::query::encode;
use outstation_aws_sim::wire::sigv4::Claim;
use time::OffsetDateTime;
use time::macros::{datetime, format_description};

pub const START: OffsetDateTime = datetime!(2026-11-22 12:00:00 UTC);
pub const REGION: &str = "eu-central-1";

pub fn config() -> ModelConfig {
    let template = |version: u32| LaunchTemplate {
        id: "lt-0123456789abcdef0".to_owned(),
        name: "outstation-node".to_owned(),
        version,
        image_id: "ami-0123456789abcdef0".to_owned(),
        instance_type: "c7i.large".to_owned(),
        user_data: format!("user-data-{version}.sh"),
    };
    ModelConfig {
        account: "123456789012".to_owned(),
        region: REGION.to_owned(),
        zones: ["a", "b", "c"].iter().map(|letter| format!("{REGION}{letter}")).collect(),
        subnets: [
            ("subnet-1".to_owned(), format!("{REGION}a")),
            ("subnet-2".to_owned(), format!("{REGION}b")),
        ]
        .into(),
        role: InstanceRole {
            account: "123456789012".to_owned(),
            name: "outstation-node".to_owned(),
            id: "AROAEXAMPLENODE".to_owned(),
        },
        net: Ipv4Addr::new(127, 83, 0, 0),
        boot_delay: Duration::ZERO,
        templates: vec![template(1), template(2)],
        patience: Default::default(),
        hooks_hold_dead_instances: false,
        principals: vec![(AccessKeyId::from(AGENT.key.to_owned()), principal())],
        seed: 42,
    }
}

fn principal() -> Principal {
    Principal {
        secret_access_key: AGENT.secret.to_owned(),
        session_token: Some(AGENT.token.unwrap().to_owned()),
        arn: "arn:aws:sts::123456789012:assumed-role/outstation-agent/dev".to_owned(),
        user_id: "AROAEXAMPLEAGENT:dev".to_owned(),
        expires: None,
    }
}

/// Credentials to sign with.
#[derive(Debug, Clone, Copy)]
pub struct Signer<'a> {
    pub key: &'a str,
    pub secret: &'a str,
    pub token: Option<&'a str>,
}

pub const AGENT: Signer<'static> =
    Signer { key: "ASIAEXAMPLEAGENT", secret: "agent-secret", token: Some("agent/token+=") };

/// A signed call of `service`; `extra` headers are signed too.
pub fn signed(
    signer: Signer<'_>,
    service: &str,
    form: &str,
    extra: &[(&str, &str)],
    now: OffsetDateTime,
) -> Request<Bytes> {
    let timestamp =
        now.format(format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap();
    let mut headers: Vec<(String, String)> = vec![
        ("host".to_owned(), "aws.test".to_owned()),
        ("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned()),
        ("x-amz-date".to_owned(), timestamp.clone()),
    ];
    headers.extend(signer.token.map(|token| ("x-amz-security-token".to_owned(), token.to_owned())));
    headers.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let scope = format!("{}/{}/{REGION}/{service}/aws4_request", signer.key, &timestamp[..8]);
    let authorization = |signature: &str| {
        format!(
            "AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={}, Signature={signature}",
            names.join(";")
        )
    };
    let mut request = Request::post("/")
        .header("authorization", authorization("00"))
        .body(Bytes::from(form.to_owned()))
        .unwrap();
    for (name, value) in &headers {
        request
            .headers_mut()
            .insert(HeaderName::try_from(name.as_str()).unwrap(), value.parse().unwrap());
    }
    let signature = Claim::parse(&request).unwrap().signature_for(&request, signer.secret);
    let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    request.headers_mut().insert("authorization", authorization(&hex).parse().unwrap());
    request
}

/// The simulation with a clock of its own. Machines run as soon as they are launched and end as soon as they are told,
/// unless `obey` is off.
pub struct Account {
    pub sim: Sim,
    pub now: OffsetDateTime,
    pub obey: bool,
    /// Machines of other template versions never come up.
    pub obey_launches_of: Option<u32>,
    pub effects: Vec<Effect>,
}

impl Account {
    pub fn new() -> Self {
        Account::with(config())
    }

    pub fn with(config: ModelConfig) -> Self {
        Account {
            sim: Sim::new(config),
            now: START,
            obey: true,
            obey_launches_of: None,
            effects: Vec::new(),
        }
    }

    /// One call by `form` (spaces and newlines between parameters are dropped, values are escaped): `Ok(body)` or
    /// `Err("Code: message")`. What follows from it happens at once.
    pub fn call(&mut self, action: &str, form: &str) -> Result<String, String> {
        let response = self.send(AGENT, "autoscaling", action, form);
        self.settle();
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        if response.status() == 200 {
            Ok(body)
        } else {
            Err(format!("{}: {}", element(&body, "Code"), element(&body, "Message")))
        }
    }

    pub fn send(
        &mut self,
        signer: Signer<'_>,
        service: &str,
        action: &str,
        form: &str,
    ) -> Response<Bytes> {
        let version = if service == "sts" { "2011-06-15" } else { "2011-01-01" };
        let mut body = format!("Action={action}&Version={version}");
        for (name, value) in form.split_whitespace().map(|pair| pair.split_once('=').unwrap()) {
            body.push_str(&format!("&{name}={}", encode(value)));
        }
        let request = signed(signer, service, &body, &[], self.now);
        self.sim.handle(&request, self.now)
    }

    /// A group `g` between 0 and 10 in zone a, with what else is given.
    pub fn group(&mut self, desired: u32, more: &str) {
        self.call(
            "CreateAutoScalingGroup",
            &format!("{} DesiredCapacity={desired} {more}", basic("g")),
        )
        .unwrap();
    }

    /// Ticks until nothing more happens at this instant.
    pub fn settle(&mut self) {
        for _ in 0..20 {
            let effects = self.sim.tick(self.now);
            if effects.is_empty() {
                return;
            }
            for effect in &effects {
                match effect {
                    Effect::Launch { facts, .. }
                        if self.obey && self.comes_up(&facts.instance_id) =>
                    {
                        self.sim.model.instance_running(&facts.instance_id)
                    }
                    Effect::Shutdown { instance } if self.obey => {
                        self.sim.model.instance_dead(instance)
                    }
                    Effect::Launch { .. } | Effect::Shutdown { .. } | Effect::Update { .. } => {}
                }
            }
            self.effects.extend(effects);
        }
        panic!("the model does not come to rest");
    }

    fn comes_up(&self, id: &InstanceId) -> bool {
        let version = self.sim.model.instance(id).map(|instance| instance.template.version);
        self.obey_launches_of.is_none_or(|only| version == Some(only))
    }

    pub fn pass(&mut self, secs: u64) {
        self.now += Duration::from_secs(secs);
        self.settle();
    }

    pub fn instances(&self) -> Vec<&Instance> {
        let mut instances: Vec<&Instance> = self.sim.model.instances().collect();
        instances.sort_by_key(|instance| (instance.launched, instance.address));
        instances
    }

    /// `InService InService Terminating:Wait`, in the order of launch.
    pub fn states(&self) -> String {
        self.instances()
            .iter()
            .map(|instance| instance.lifecycle.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub fn id(&self, index: usize) -> String {
        self.instances()[index].id.to_string()
    }

    pub fn kill(&mut self, id: &str) {
        self.sim.model.instance_dead(&id.to_owned().try_into().unwrap());
        self.settle();
    }
}

/// The parameters every group needs.
pub fn basic(name: &str) -> String {
    format!(
        "AutoScalingGroupName={name} MinSize=0 MaxSize=10 AvailabilityZones.member.1={REGION}a {TEMPLATE}"
    )
}

pub const TEMPLATE: &str =
    "LaunchTemplate.LaunchTemplateName=outstation-node LaunchTemplate.Version=1";

pub const DRAIN: &str = "LifecycleHookSpecificationList.member.1.LifecycleHookName=drain \
    LifecycleHookSpecificationList.member.1.LifecycleTransition=autoscaling:EC2_INSTANCE_TERMINATING \
    LifecycleHookSpecificationList.member.1.HeartbeatTimeout=60 LifecycleHookSpecificationList.member.1.DefaultResult=CONTINUE";

pub const WARM: &str = "LifecycleHookSpecificationList.member.1.LifecycleHookName=warm \
    LifecycleHookSpecificationList.member.1.LifecycleTransition=autoscaling:EC2_INSTANCE_LAUNCHING \
    LifecycleHookSpecificationList.member.1.HeartbeatTimeout=60";

/// Text of the first element of that name.
pub fn element(xml: &str, name: &str) -> String {
    let found = xml
        .split_once(&format!("<{name}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{name}>")));
    found.map(|(text, _)| text.to_owned()).unwrap_or_default()
}

/// Texts of all elements of that name.
pub fn elements(xml: &str, name: &str) -> Vec<String> {
    let open = format!("<{name}>");
    xml.split(&open)
        .skip(1)
        .map(|part| part.split_once(&format!("</{name}>")).unwrap().0.to_owned())
        .collect()
}
