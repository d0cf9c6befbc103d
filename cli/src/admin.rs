//! The broker's admin API, with the context's trust and token.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status, Streaming};

use outstation_api::admin::admin_client::AdminClient;
use outstation_api::admin::{
    AddDataPlaneRequest, Agent, CreateJoinTokenRequest, DataPlane, GetGroupRequest, Group,
    ListAgentsRequest, ListDataPlanesRequest, ListDataPlanesResponse, ListGroupsRequest,
    PutOrderRequest, RegisteredDataPlane, RemoveDataPlaneRequest, RevokeAgentRequest,
    WatchEventsRequest, WatchEventsResponse, WatchGroupsRequest,
};
use outstation_protocol::envelope::Envelope;
use outstation_protocol::ids::GroupName;
use outstation_protocol::order::Order;

use crate::context::{Context, Endpoint, reach_hint, read_root, read_token};
use crate::link::Link;
use crate::message::{Failure, Hint as _, chain};
use crate::plan::Newest;
use crate::signing::Trust;
use crate::view::{GroupView, OrderId};

/// The broker answers from a local database; ten seconds is a stuck one.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// 500 groups at up to 192 KiB of envelope are too many for one answer in theory; at their usual
/// 2 KiB they are 1 MiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Adds the token to every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

#[derive(Clone)]
pub struct Admin {
    client: AdminClient<InterceptedService<Channel, Bearer>>,
    data_plane: DataPlane,
    url: String,
}

impl Admin {
    pub async fn connect(context: &Context) -> anyhow::Result<Admin> {
        let Endpoint { url, ca, server_name, token_file } = &context.broker;
        let token = read_token(token_file, "broker", "the broker")?;
        let mut token: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().context("read the token")?;
        token.set_sensitive(true);
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read_root(ca, "broker", "the broker")?))
            .domain_name(server_name);
        let channel = Channel::from_shared(url.clone())
            .context("the broker's URL in the context is not valid")?
            .tls_config(tls)
            .context("set up TLS to the broker")
            .hint(
                "`ca` of [broker] in the context is no PEM certificate, or `server_name` no name",
            )?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_while_idle(true);
        // Its own limit covers TCP only: a broker that hangs takes the connection and says nothing.
        let channel = tokio::time::timeout(CALL_TIMEOUT, channel.connect())
            .await
            .map_err(|_| anyhow::anyhow!("it takes connections and does not answer"))
            .and_then(|connected| connected.map_err(Into::into))
            .with_context(|| format!("reach the broker at {url}"))
            .map_err(|error| {
                let said = chain(&error);
                Failure::new(&said, reach_hint("broker", &said))
            })?;
        let client = AdminClient::with_interceptor(channel, Bearer(token))
            .max_decoding_message_size(ANSWER_BYTES_MAX);
        let data_plane =
            DataPlane { account: context.account.to_string(), region: context.region.to_string() };
        Ok(Admin { client, data_plane, url: url.clone() })
    }

    pub async fn groups(&self) -> anyhow::Result<Vec<GroupView>> {
        let request = ListGroupsRequest { data_plane: Some(self.data_plane.clone()) };
        let mut client = self.client.clone();
        let answer = self.call("list the groups", client.list_groups(request)).await?;
        answer.groups.into_iter().map(GroupView::try_from).collect()
    }

    /// The newest order of every group, as plans need them.
    pub async fn newest(&self, trust: &Trust) -> anyhow::Result<BTreeMap<GroupName, Newest>> {
        let groups = self.groups().await?;
        Ok(groups.iter().map(|group| (group.name.clone(), group.newest(trust))).collect())
    }

    pub async fn group(&self, name: &GroupName) -> anyhow::Result<GroupView> {
        let request =
            GetGroupRequest { data_plane: Some(self.data_plane.clone()), name: name.to_string() };
        let mut client = self.client.clone();
        match tokio::time::timeout(CALL_TIMEOUT, client.get_group(request)).await {
            Ok(Ok(group)) => group.into_inner().try_into(),
            Ok(Err(status)) if status.code() == Code::NotFound => Err(Failure::new(
                format!("there is no server group {name}"),
                "`outstation get` lists those that there are",
            )
            .into()),
            Ok(Err(status)) => Err(self.refused("describe the group", &status)),
            Err(_) => Err(self.silent("describe the group")),
        }
    }

    /// Every group (or the one named) now, and each again whenever it changes.
    pub async fn watch(&self, name: Option<&GroupName>) -> anyhow::Result<Streaming<Group>> {
        let request = WatchGroupsRequest {
            data_plane: Some(self.data_plane.clone()),
            name: name.map(ToString::to_string).unwrap_or_default(),
        };
        let mut client = self.client.clone();
        self.call("watch the groups", client.watch_groups(request)).await
    }

    /// Events from a cursor on. The status tells whether it is worth trying again.
    pub async fn events(
        &self,
        mut request: WatchEventsRequest,
    ) -> Result<Streaming<WatchEventsResponse>, Status> {
        request.data_plane = Some(self.data_plane.clone());
        let mut client = self.client.clone();
        match tokio::time::timeout(CALL_TIMEOUT, client.watch_events(request)).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::unavailable("it does not answer")),
        }
    }

    pub async fn put(&self, order: &Order, envelope: &Envelope) -> anyhow::Result<OrderId> {
        let (group, generation) = (&order.group, order.generation);
        let request = PutOrderRequest { envelope: envelope.to_json().into() };
        let mut client = self.client.clone();
        match tokio::time::timeout(CALL_TIMEOUT, client.put_order(request)).await {
            Ok(Ok(_)) => Ok(OrderId { generation, digest: envelope.digest() }),
            Ok(Err(status)) if status.code() == Code::Aborted => Err(Failure::new(
                format!("someone else applied {group} meanwhile: {}", status.message()),
                "plan again, look at what changed, then apply",
            )
            .into()),
            Ok(Err(status)) => Err(self.refused(&format!("put the order for {group}"), &status)),
            Err(_) => Err(self.silent(&format!("put the order for {group}"))),
        }
    }

    pub async fn create_join_token(&self, valid_secs: u32) -> anyhow::Result<String> {
        let request =
            CreateJoinTokenRequest { data_plane: Some(self.data_plane.clone()), valid_secs };
        let mut client = self.client.clone();
        Ok(self.call("create a join token", client.create_join_token(request)).await?.token)
    }

    pub async fn add_data_plane(
        &self,
        data_plane: RegisteredDataPlane,
    ) -> anyhow::Result<RegisteredDataPlane> {
        let request = AddDataPlaneRequest { data_plane: Some(data_plane) };
        let mut client = self.client.clone();
        self.call("register the data plane", client.add_data_plane(request)).await
    }

    pub async fn data_planes(&self) -> anyhow::Result<ListDataPlanesResponse> {
        let mut client = self.client.clone();
        let request = ListDataPlanesRequest {};
        self.call("list the data planes", client.list_data_planes(request)).await
    }

    pub async fn remove_data_plane(&self, name: String) -> anyhow::Result<RegisteredDataPlane> {
        let mut client = self.client.clone();
        let request = RemoveDataPlaneRequest { name };
        self.call("remove the data plane", client.remove_data_plane(request)).await
    }

    pub async fn revoke_agent(&self, id: String) -> anyhow::Result<Agent> {
        let mut client = self.client.clone();
        let revoked = client.revoke_agent(RevokeAgentRequest { id });
        self.call("revoke the agent", revoked).await
    }

    pub async fn agents(&self) -> anyhow::Result<Vec<Agent>> {
        let mut client = self.client.clone();
        Ok(self.call("list the agents", client.list_agents(ListAgentsRequest {})).await?.agents)
    }

    /// Who governs the context's data plane, and whether they are heard.
    pub async fn link(&self) -> anyhow::Result<Link> {
        let mut agents = self.agents().await?;
        agents.retain(|agent| agent.data_plane.as_ref() == Some(&self.data_plane));
        Ok(Link::of(&agents))
    }

    async fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> anyhow::Result<T> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.refused(what, &status)),
            Err(_) => Err(self.silent(what)),
        }
    }

    pub fn refused(&self, what: &str, status: &Status) -> anyhow::Error {
        let hint = match status.code() {
            Code::Unauthenticated => "the token that the context names is not this broker's",
            Code::Unavailable => "is the broker running? try again in a moment",
            Code::AlreadyExists => "`outstation dataplane list` shows what is registered",
            Code::NotFound => {
                "`outstation dataplane list` and `outstation agents` show what there is"
            }
            Code::FailedPrecondition => "check account and region in the context",
            Code::InvalidArgument | Code::Unimplemented => {
                "are the broker and this command of the same release?"
            }
            Code::ResourceExhausted => "make room there, then run this again",
            _ => "look at the broker's log",
        };
        Failure::new(format!("{what}: {}: {}", code_text(status.code()), status.message()), hint)
            .into()
    }

    fn silent(&self, what: &str) -> anyhow::Error {
        let what = format!("{what}: the broker at {} did not answer within 10 s", self.url);
        Failure::new(what, "look at the broker's log").into()
    }
}

/// `FAILED_PRECONDITION` rather than tonic's sentence.
pub fn code_text(code: Code) -> String {
    let mut text = String::new();
    for (index, c) in format!("{code:?}").chars().enumerate() {
        if c.is_uppercase() && index > 0 {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_named_as_grpc_names_them() {
        for (code, text) in [
            (Code::Ok, "OK"),
            (Code::FailedPrecondition, "FAILED_PRECONDITION"),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        ] {
            assert_eq!(code_text(code), text);
        }
    }
}
