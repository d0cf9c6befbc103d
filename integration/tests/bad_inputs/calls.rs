//! Calls: functions that fail in every way there is, requests that are too large or none, callers
//! without a token; and the broker's own API.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use outstation_api::admin as admin_api;
use outstation_api::admin::admin_client::AdminClient;
use outstation_api::callers::WatchRequest;
use outstation_api::callers::endpoints_client::EndpointsClient;
use outstation_api::transform::row_result::Outcome;
use outstation_api::transform::value::Kind;
use outstation_api::transform::{Field, Row, Value};
use outstation_cli::admin::code_text;
use outstation_cli::context::Endpoint;
use outstation_integration::bad::Said;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Request, Status};

use crate::Act::{Cli, Do};
use crate::{Doing, Ground, PATIENCE, Table};

const ROW: &str = r#"{"distance": 1400, "air_time": 227}"#;
const ZERO: &str = r#"{"distance": 1400, "air_time": 0}"#;

#[rustfmt::skip]
pub const TABLE: Table = &[
    ("a function that raises", Cli(&["call", "raises", "--row", ROW]), "exit 1",
        "1 of 1 rows failed*FUNCTION in raises*ValueError: no such airport", "correct the function"),
    ("a division by zero", Cli(&["call", "delay", "--row", ZERO]), "exit 1",
        "FUNCTION in speed*ZeroDivisionError", "correct the function"),
    ("one bad row among good ones",
        Cli(&["call", "delay", "--row", r#"[{"distance": 1, "air_time": 1}, {"distance": 1, "air_time": 0}, {"distance": 1, "air_time": 1}]"#]), "exit 1",
        "1 of 3 rows failed, the first row 2: FUNCTION in speed", "correct the function"),
    ("a null where the function needs a number",
        Cli(&["call", "delay", "--row", r#"{"distance": null, "air_time": 2}"#]), "exit 1",
        "FUNCTION in speed*TypeError", "correct the function"),
    ("a function that returns text for a number", Cli(&["call", "another_type", "--row", ROW]), "exit 1",
        "OUTPUT in another_type*mph*Float64", "its features"),
    ("a function that returns nothing", Cli(&["call", "nothing", "--row", ROW]), "exit 1",
        "OUTPUT in nothing*None", "its features"),
    ("a function that returns another feature", Cli(&["call", "another_name", "--row", ROW]), "exit 1",
        "OUTPUT in another_name*mph", "its features"),
    ("a function that calls itself for ever", Cli(&["call", "recurses", "--row", ROW]), "exit 1",
        "FUNCTION in recurses*RecursionError", "correct the function"),
    ("a function that exits", Cli(&["call", "exits", "--row", ROW]), "exit 1",
        "FUNCTION in exits*SystemExit", "correct the function"),
    ("a function that loops", Cli(&["call", "loops", "--row", ROW, "--timeout-ms", "5000"]), "exit 1",
        "delay_tsg: DEADLINE_EXCEEDED*loops", "--timeout-ms"),
    ("a function that ends its process", Cli(&["call", "dies", "--row", ROW]), "exit 1",
        "delay_tsg: ABORTED*worker*dies*exited with status 3", "call again*function"),
    ("an answer of 65 MB", Cli(&["call", "floods", "--row", ROW]), "exit 1",
        "too many for one message", "correct the request"),
    ("a request without rows", Do(|g| call(g, "speed", Vec::new())), "INVALID_ARGUMENT",
        "without rows", ""),
    ("a request without a target", Do(|g| call(g, "", vec![good_row()])), "INVALID_ARGUMENT",
        "names no target", ""),
    ("a target that there is not", Do(|g| call(g, "sped", vec![good_row()])), "NOT_FOUND",
        "no feature view or service 'sped'; there is*speed", ""),
    ("a target's name of 20 MB", Do(|g| call(g, MANY, vec![good_row()])), "NOT_FOUND",
        "no feature view or service", ""),
    ("a row without fields", Do(|g| call(g, "speed", vec![Row { fields: Vec::new() }])), "OK",
        "needs field 'distance' (Float64), which the row lacks", ""),
    ("a row of 20 MB", Do(|g| call(g, "speed", vec![wide_row(20)])), "OK", "", ""),
    ("a row of 70 MB", Do(|g| call(g, "speed", vec![wide_row(70)])), "OUT_OF_RANGE",
        "the request of * bytes is more than 67108864: send fewer rows", ""),
    ("endpoints without a token", Do(|g| watch(g, "", "delay_tsg")), "UNAUTHENTICATED",
        "present the callers' token", ""),
    ("endpoints with a wrong token",
        Do(|g| watch(g, "0123456789abcdef0123456789abcdef", "delay_tsg")), "UNAUTHENTICATED",
        "present the callers' token", ""),
    ("endpoints of no group", Do(|g| watch(g, "TOKEN", "nope")), "NOT_FOUND",
        "no server group nope", ""),
    ("endpoints of what is no name", Do(|g| watch(g, "TOKEN", "../state")), "INVALID_ARGUMENT",
        "\"../state\" is not valid: 1-63 letters", ""),
    ("endpoints of a name of 20 MB", Do(|g| watch(g, "TOKEN", MANY)), "OUT_OF_RANGE",
        "too large", ""),
    ("the broker's API without a token", Do(|g| list(g, "")), "UNAUTHENTICATED",
        "needs the admin token", ""),
    ("the broker's API with a wrong token", Do(|g| list(g, "0123456789abcdef0123456789abcdef")), "UNAUTHENTICATED",
        "needs the admin token", ""),
    ("an order that is no JSON", Do(|g| put(g, b"garbage".to_vec())), "INVALID_ARGUMENT",
        "envelope", ""),
    ("an order of 20 MB", Do(|g| put(g, vec![b'x'; 20 << 20])), "OUT_OF_RANGE",
        "too large", ""),
    ("a join token for no time", Do(|g| token(g, 0)), "INVALID_ARGUMENT",
        "valid_secs must be 1 to 604800", ""),
    ("a join token for ever", Do(|g| token(g, u32::MAX)), "INVALID_ARGUMENT",
        "valid_secs must be 1 to", ""),
    ("a watch too many", Do(watch_everything), "RESOURCE_EXHAUSTED",
        "64 watches are open already", ""),
];

/// 20 MB of letters.
const MANY: &str = "MANY";

fn many() -> String {
    "a".repeat(20 << 20)
}

fn field(name: &str, kind: Kind) -> Field {
    Field { name: name.to_owned(), value: Some(Value { kind: Some(kind) }) }
}

pub fn good_row() -> Row {
    let number = |name, number| field(name, Kind::Float64Value(number));
    Row { fields: vec![number("distance", 1400.0), number("air_time", 3.5)] }
}

/// A good row, and beside its fields one that nobody asked for.
fn wide_row(megabytes: usize) -> Row {
    let mut row = good_row();
    row.fields.push(field("note", Kind::StringValue("x".repeat(megabytes << 20))));
    row
}

fn call(ground: Arc<Ground>, target: &'static str, rows: Vec<Row>) -> Doing {
    Box::pin(async move {
        let target = if target == MANY { many() } else { target.to_owned() };
        let answered = ground.call(&target, rows, PATIENCE).await;
        Ok(match answered.outcome {
            Err(status) => said(&status),
            Ok(response) => {
                let first = response.results.into_iter().next().and_then(|result| result.outcome);
                match first.context("an outcome")? {
                    Outcome::Row(_) => Said::ok(),
                    Outcome::Error(error) => Said::status("OK", &error.message),
                }
            }
        })
    })
}

pub fn said(status: &Status) -> Said {
    Said::status(&code_text(status.code()), status.message())
}

async fn channel(endpoint: &Endpoint) -> Result<Channel> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(std::fs::read(&endpoint.ca)?))
        .domain_name(&endpoint.server_name);
    let channel = Channel::from_shared(endpoint.url.clone())?.tls_config(tls)?;
    Ok(tokio::time::timeout(PATIENCE, channel.connect()).await??)
}

/// `TOKEN` stands for the good one.
fn request<T>(endpoint: &Endpoint, token: &str, message: T) -> Result<Request<T>> {
    let good = std::fs::read_to_string(&endpoint.token_file)?;
    let token = if token == "TOKEN" { good.trim() } else { token };
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    Ok(request)
}

fn outcome<T>(answer: std::result::Result<T, Status>) -> Said {
    answer.map_or_else(|status| said(&status), |_| Said::ok())
}

fn watch(ground: Arc<Ground>, token: &'static str, group: &'static str) -> Doing {
    Box::pin(async move {
        let callers = ground.world.system.context().callers.as_ref().context("callers")?;
        let group = if group == MANY { many() } else { group.to_owned() };
        let request = request(callers, token, WatchRequest { group })?;
        Ok(outcome(EndpointsClient::new(channel(callers).await?).watch(request).await))
    })
}

async fn broker(ground: &Ground) -> Result<(AdminClient<Channel>, &Endpoint)> {
    let endpoint = &ground.world.system.context().broker;
    Ok((AdminClient::new(channel(endpoint).await?), endpoint))
}

fn data_plane(ground: &Ground) -> Option<admin_api::DataPlane> {
    let context = ground.world.system.context();
    let (account, region) = (context.account.to_string(), context.region.to_string());
    Some(admin_api::DataPlane { account, region })
}

fn list(ground: Arc<Ground>, token: &'static str) -> Doing {
    Box::pin(async move {
        let (mut client, endpoint) = broker(&ground).await?;
        let message = admin_api::ListGroupsRequest { data_plane: data_plane(&ground) };
        Ok(outcome(client.list_groups(request(endpoint, token, message)?).await))
    })
}

fn put(ground: Arc<Ground>, envelope: Vec<u8>) -> Doing {
    Box::pin(async move {
        let (mut client, endpoint) = broker(&ground).await?;
        let message = admin_api::PutOrderRequest { envelope: envelope.into() };
        Ok(outcome(client.put_order(request(endpoint, "TOKEN", message)?).await))
    })
}

fn token(ground: Arc<Ground>, valid_secs: u32) -> Doing {
    Box::pin(async move {
        let (mut client, endpoint) = broker(&ground).await?;
        let data_plane = data_plane(&ground);
        let message = admin_api::CreateJoinTokenRequest { data_plane, valid_secs };
        Ok(outcome(client.create_join_token(request(endpoint, "TOKEN", message)?).await))
    })
}

/// Watches until one is refused; the others are given up afterwards.
fn watch_everything(ground: Arc<Ground>) -> Doing {
    Box::pin(async move {
        let mut open = Vec::new();
        // 32 streams are what one connection takes.
        for _ in 0..4 {
            let (mut client, endpoint) = broker(&ground).await?;
            for _ in 0..20 {
                let data_plane = data_plane(&ground);
                let message = admin_api::WatchGroupsRequest { data_plane, name: String::new() };
                let request = request(endpoint, "TOKEN", message)?;
                let watch = client.watch_groups(request);
                match tokio::time::timeout(Duration::from_secs(60), watch).await? {
                    Ok(stream) => open.push(stream),
                    Err(status) => return Ok(said(&status)),
                }
            }
        }
        Ok(Said { ends: format!("{} watches are open", open.len()), text: String::new() })
    })
}
