//! The Query/XML protocol over the pure model: a request's bytes in, a response's bytes out. Still no socket and no clock,
//! so a test can plug [`Sim`] below an SDK as its HTTP client.

use bytes::Bytes;
use http::{Method, Request, Response};
use time::OffsetDateTime;

mod autoscaling;
pub mod faults;
mod fleet;
mod parse;
mod policies;
pub mod query;
mod render;
pub mod sigv4;
mod sts;
pub mod throttle;
pub mod xml;

use crate::model::{AwsError, Code, Effect, Model, ModelConfig};
use crate::policy::Guard;
use query::Params;
use xml::Xml;

/// The simulated AWS of one account and region, behind its wire protocols.
#[derive(Debug)]
pub struct Sim {
    pub model: Model,
    /// Binds nobody unless told.
    pub guard: Guard,
}

/// The services told apart by the `Version` of their API, as each has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    AutoScaling,
    Sts,
}

impl Service {
    fn of(version: Option<&str>) -> Option<Self> {
        match version {
            Some("2011-01-01") => Some(Service::AutoScaling),
            Some("2011-06-15") => Some(Service::Sts),
            Some(_) | None => None,
        }
    }

    fn signing_name(self) -> &'static str {
        match self {
            Service::AutoScaling => "autoscaling",
            Service::Sts => "sts",
        }
    }

    fn namespace(self) -> &'static str {
        match self {
            Service::AutoScaling => "http://autoscaling.amazonaws.com/doc/2011-01-01/",
            Service::Sts => "https://sts.amazonaws.com/doc/2011-06-15/",
        }
    }
}

impl Sim {
    pub fn new(config: ModelConfig) -> Self {
        Sim { model: Model::new(config), guard: Guard::default() }
    }

    /// One call of AutoScaling or STS. Does not let time pass: call [`Sim::tick`] for what follows from it.
    pub fn handle(&mut self, request: &Request<Bytes>, now: OffsetDateTime) -> Response<Bytes> {
        let form = if request.method() == Method::GET {
            request.uri().query().unwrap_or_default().to_owned()
        } else {
            String::from_utf8_lossy(request.body()).into_owned()
        };
        let params = Params::parse(&form);
        let version = params.get("Version");
        let service = Service::of(version);
        let action = params.get("Action").unwrap_or_default();
        let request_id = self.model.request_id();
        let answer = self.call(request, &params, service, action, now);
        match &answer {
            Ok(_) => tracing::debug!(action, "call"),
            Err(error) => tracing::debug!(
                action,
                code = error.code.as_str(),
                message = error.message,
                "call refused"
            ),
        }
        match answer {
            Ok((service, answer)) => success(service, action, answer, &request_id),
            Err(error) => failure(service.unwrap_or(Service::Sts), &error, &request_id),
        }
    }

    /// Lets time pass, see [`Model::tick`].
    pub fn tick(&mut self, now: OffsetDateTime) -> Vec<Effect> {
        self.model.tick(now)
    }

    fn call(
        &mut self,
        request: &Request<Bytes>,
        params: &Params,
        service: Option<Service>,
        action: &str,
        now: OffsetDateTime,
    ) -> Result<(Service, Answer), AwsError> {
        let caller = sigv4::verify(request, &self.model, now)?;
        let Some(service) = service else {
            return Err(unknown_action(action, params.get("Version").unwrap_or("(none)")));
        };
        if caller.service != service.signing_name() {
            return Err(AwsError::new(
                Code::SignatureDoesNotMatch,
                format!(
                    "Credential should be scoped to correct service: '{}'.",
                    service.signing_name()
                ),
            ));
        }
        let answer = match service {
            Service::AutoScaling => {
                // Read apart: what IAM looks at does not count as simulated.
                let asked = params.clone();
                self.guard.authorize(&caller.arn, &self.model, action, &asked)?;
                autoscaling::call(&mut self.model, action, params, now)?
            }
            // IAM cannot deny GetCallerIdentity.
            Service::Sts => sts::call(&self.model, &caller, action, params)?,
        };
        Ok((service, answer))
    }
}

/// What goes inside `<ActionResult>`; `None` for actions that answer nothing but metadata.
type Answer = Option<Xml>;

fn unknown_action(action: &str, version: &str) -> AwsError {
    AwsError::new(
        Code::InvalidAction,
        format!("Could not find operation {action} for version {version}"),
    )
}

fn success(service: Service, action: &str, answer: Answer, request_id: &str) -> Response<Bytes> {
    let mut xml = Xml::root(&format!("{action}Response"), service.namespace());
    if let Some(answer) = answer {
        xml.splice(&format!("{action}Result"), answer);
    }
    xml.element("ResponseMetadata", |xml| xml.text("RequestId", request_id));
    respond(200, xml, request_id)
}

fn failure(service: Service, error: &AwsError, request_id: &str) -> Response<Bytes> {
    let status = error.code.http_status();
    let mut xml = Xml::root("ErrorResponse", service.namespace());
    xml.element("Error", |xml| {
        // Sender for every 4xx, as AWS has it; ResourceContention is a 500 whose model says Sender too.
        xml.text("Type", "Sender");
        xml.text("Code", error.code.as_str());
        xml.text("Message", &error.message);
    });
    xml.text("RequestId", request_id);
    respond(status, xml, request_id)
}

fn respond(status: u16, xml: Xml, request_id: &str) -> Response<Bytes> {
    Response::builder()
        .status(status)
        .header("content-type", "text/xml")
        .header("x-amzn-requestid", request_id)
        .body(Bytes::from(xml.finish()))
        .expect("status and headers are valid: they are ours")
}
