//! The balanced client, with the context's trust and token.

use std::time::Duration;

use anyhow::Context as _;
use outstation_api::transform::{CallRequest, CallResponse};
use outstation_protocol::ids::GroupName;
use outstation_transform_client::{Agent, Client, Config, EndpointSource, Phase, Token};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::admin::code_text;
use crate::context::{Context, reach_hint, read_root, read_token};
use crate::message::{Failure, Hint as _};

/// Calls to one server group, spread over its nodes.
pub struct Caller {
    group: GroupName,
    client: Client,
    source: Mutex<EndpointSource>,
}

/// The answer to one call, and which instance gave it.
pub struct Answered {
    pub node: Option<String>,
    pub outcome: Result<CallResponse, Status>,
}

/// Between two looks at the connections, which have no event of their own.
const POLL: Duration = Duration::from_millis(10);

impl Caller {
    /// Follows the group's endpoints in the background.
    pub async fn connect(context: &Context, group: &GroupName) -> anyhow::Result<Caller> {
        let callers = context.callers.as_ref().context("the context names no [callers]").hint(
            "calls go to the account's own agent: add its url, ca, server_name and token_file",
        )?;
        let whose = "the account agent";
        let token = read_token(&callers.token_file, "callers", whose)?;
        let token = Token::new(&token).context("a token that was checked above")?;
        let agent = Agent {
            url: callers.url.clone(),
            ca_pem: read_root(&callers.ca, "callers", whose)?,
            server_name: callers.server_name.clone(),
            token,
        };
        let source = EndpointSource::follow(&agent, group.as_str()).hint(
            "`ca` of [callers] in the context is no PEM certificate, or `server_name` no name",
        )?;
        let client = Client::new(source.endpoints(), Config::default());
        Ok(Caller { group: group.clone(), client, source: Mutex::new(source) })
    }

    /// Waits until `count` servers take calls; gives the instances.
    pub async fn wait_for_endpoints(
        &self,
        count: usize,
        timeout: Duration,
    ) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + timeout;
        let group = &self.group;
        self.source.lock().await.ready(timeout).await.map_err(|status| {
            let hint = match status.code() {
                Code::NotFound => "`outstation get` lists the groups that there are".to_owned(),
                Code::Unauthenticated => {
                    "token_file of [callers] in the context is not this account agent's".to_owned()
                }
                _ => reach_hint("callers", status.message()),
            };
            let code = code_text(status.code());
            Failure::new(format!("endpoints of {group}: {code}: {}", status.message()), hint)
        })?;
        loop {
            let up: Vec<String> = self
                .client
                .endpoints()
                .into_iter()
                .filter(|view| matches!(view.phase, Phase::Up { .. }))
                .map(|view| view.endpoint.instance)
                .collect();
            if up.len() >= count {
                return Ok(up);
            }
            if Instant::now() >= deadline {
                let what = format!("{} of {count} servers of {group} take calls", up.len());
                let hint = format!("`outstation describe {group}` says where its nodes stand");
                return Err(Failure::new(what, hint).into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub async fn call(&self, request: CallRequest, timeout: Duration) -> Answered {
        match self.client.call(&request, timeout).await {
            Ok((response, used)) => {
                Answered { node: Some(used.endpoint.instance.clone()), outcome: Ok(response) }
            }
            Err(status) => Answered { node: None, outcome: Err(status) },
        }
    }
}

pub fn call_failure(group: &GroupName, status: &Status) -> anyhow::Error {
    let hint = match status.code() {
        Code::NotFound => "`outstation plan` shows whether the declarations here are applied",
        Code::DeadlineExceeded => "give it more time with --timeout-ms, or look at the function",
        Code::InvalidArgument | Code::OutOfRange => "correct the request as it says",
        Code::Aborted => {
            "call again; if it happens again, look at the function and its nodes' logs"
        }
        Code::ResourceExhausted => "the group is busy: declare more nodes",
        Code::Unavailable => "`outstation describe` the group: are its nodes ready?",
        _ => "`outstation describe` the group, and look at its nodes' logs",
    };
    let code = code_text(status.code());
    Failure::new(format!("{group}: {code}: {}", status.message()), hint).into()
}
