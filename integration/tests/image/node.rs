//! An instance with nobody watching: it boots and serves, and what runs on it reaches no credential.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Uid;
use outstation_api::transform::transform_client::TransformClient;
use outstation_api::transform::value::Kind;
use outstation_api::transform::{CallRequest, Field, Row, Value, row_result::Outcome};
use outstation_integration::s3::S3;
use outstation_integration::{ONE_AT_A_TIME, debian, python};

use crate::instance::{Instance, image};

pub const DECLARED: &str = "
from outstation import Attribute, Environment, ProvisionedScalingConfig, RequestSource
from outstation import TransformServerGroup, realtime_feature_view
from outstation.types import Field, Int64, String
Environment(name='plain', requirements='requirements.txt')
TransformServerGroup(name='delay', environment='plain', scaling_config=ProvisionedScalingConfig(desired_nodes=1))
row = RequestSource(schema=[Field('number', Int64)])
";

/// What a function answers for one row, as text.
pub async fn call(address: Ipv4Addr, target: &str) -> Result<String> {
    let mut client = TransformClient::connect(format!("http://{address}:7400")).await?;
    let number = Value { kind: Some(Kind::Int64Value(41)) };
    let row = Row { fields: vec![Field { name: "number".into(), value: Some(number) }] };
    let mut request =
        tonic::Request::new(CallRequest { target: target.to_owned(), rows: vec![row] });
    request.set_timeout(Duration::from_secs(30));
    let response = client.call(request).await?.into_inner();
    match response.results.into_iter().next().and_then(|result| result.outcome) {
        Some(Outcome::Row(row)) => match row.fields.into_iter().next().and_then(|f| f.value) {
            Some(Value { kind: Some(Kind::StringValue(text)) }) => Ok(text),
            other => anyhow::bail!("{other:?}"),
        },
        other => anyhow::bail!("{other:?}"),
    }
}

fn next_number() -> String {
    format!(
        "{DECLARED}
@realtime_feature_view(sources=[row], mode='python', features=[Attribute('text', String)])
def next_number(row):
    return {{'text': str(row['number'] + 1)}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_boots_and_serves_without_account_agent_and_broker() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let metadata = SocketAddr::from(([127, 0, 0, 1], 0));
    let address = Ipv4Addr::from(0x7f4e_0000 | (rand::random::<u32>() & 0xffff));
    let mut instance = Instance::new(metadata, address, &next_number()).await?;
    instance.start_node(&[])?;
    instance.until_told("the agent is up", |told| told == "READY=1")?;
    instance.until_told("it serves", |told| told.starts_with("STATUS=ready"))?;
    assert_eq!(call(address, "next_number").await?, "42");
    for _ in 0..3 {
        instance.until_told("it is not stuck", |told| told == "WATCHDOG=1")?;
    }

    // Without its agent as well; and one that comes back takes the same server over.
    let before = instance.server_pid()?;
    instance.kill_node()?;
    assert_eq!(call(address, "next_number").await?, "42");
    instance.start_node(&[])?;
    instance.until_told("it serves", |told| told.starts_with("STATUS=ready"))?;
    assert_eq!(instance.server_pid()?, before);
    assert_eq!(call(address, "next_number").await?, "42");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_takes_its_artifacts_from_a_bucket() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let s3 = S3::start()?;
    let metadata = SocketAddr::from(([127, 0, 0, 1], 0));
    let address = Ipv4Addr::from(0x7f4e_0000 | (rand::random::<u32>() & 0xffff));
    let mut instance = Instance::new(metadata, address, &next_number()).await?;
    instance.move_store_into(&s3)?;
    instance.start_node(&[])?;
    instance.until_told("it serves", |told| told.starts_with("STATUS=ready"))?;
    assert_eq!(call(address, "next_number").await?, "42");
    // What was fetched serves on without it.
    drop(s3);
    assert_eq!(call(address, "next_number").await?, "42");
    Ok(())
}

const SYSTEMS_PYTHON: &str = "/usr/bin/python3";

/// Each is a function of its own, and none may get what it tries to.
const ATTEMPTS: [(&str, &str); 9] = [
    (
        "metadata_token",
        "urllib.request.urlopen(urllib.request.Request('http://169.254.169.254/latest/api/token', method='PUT'), timeout=2).read()",
    ),
    (
        "metadata_v1",
        "urllib.request.urlopen('http://169.254.169.254/latest/meta-data/iam/security-credentials/outstation-node', timeout=2).read()",
    ),
    ("metadata_socket", "socket.create_connection(('169.254.169.254', 80), timeout=2)"),
    (
        "environment",
        "[v for k, v in os.environ.items() if k.startswith(('AWS_', 'OUTSTATION_', 'NOTIFY'))][0]",
    ),
    ("parents_environment", "open(f'/proc/{os.getppid()}/environ').read()"),
    (
        "agents_memory",
        "open([f'/proc/{p}/mem' for p in os.listdir('/proc') if p.isdigit() and b'node' in open(f'/proc/{p}/cmdline', 'rb').read().split(b'\\0')][0], 'rb')",
    ),
    (
        "nodes_files",
        "open(os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), 'server.json')).read()",
    ),
    ("systems_files", "open('/etc/shadow').read()"),
    ("trace_of_the_server", "trace()"),
];

#[tokio::test(flavor = "multi_thread")]
async fn user_code_reaches_no_credential_of_the_instance() -> Result<()> {
    let name = "node::user_code_reaches_no_credential_of_the_instance";
    if std::env::var_os("OUTSTATION_INSIDE_NAMESPACE").is_some() {
        return in_a_namespace().await;
    }
    if !Uid::effective().is_root() {
        eprintln!("LEFT OUT: {name} takes root, for a network namespace and another user");
        return Ok(());
    }
    if !debian::program("nft", "nftables") {
        return Ok(());
    }
    // That other users may run, and of the version that environments here are built for.
    if version(SYSTEMS_PYTHON) != version(&python().display().to_string()) {
        eprintln!("LEFT OUT: {name} takes a {SYSTEMS_PYTHON} of the version of {:?}", python());
        return Ok(());
    }
    let _turn = ONE_AT_A_TIME.lock().await;
    let output = Command::new("unshare")
        .args(["--net", "--"])
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env("OUTSTATION_INSIDE_NAMESPACE", "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    print!("{said}");
    eprint!("{why}");
    ensure!(output.status.success() && said.contains("1 passed"), "{said}\n{why}");
    Ok(())
}

fn version(python: &str) -> Option<String> {
    let script = "import sys; print(sys.version_info[:2])";
    let output = Command::new(python).args(["-c", script]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn in_a_namespace() -> Result<()> {
    let run = |program: &str, arguments: &[&str]| -> Result<()> {
        let status = Command::new(program).args(arguments).status();
        let status = status.with_context(|| format!("start {program}"))?;
        ensure!(status.success(), "{program} {arguments:?}: {status}");
        Ok(())
    };
    run("ip", &["link", "set", "lo", "up"])?;
    run("ip", &["address", "add", "169.254.169.254/32", "dev", "lo"])?;
    // Whoever asks comes from the instance's own address, as it does there.
    run("ip", &["address", "add", "10.7.0.2/32", "dev", "lo"])?;
    let route = "route replace table local local 169.254.169.254 dev lo src 10.7.0.2";
    run("ip", &route.split(' ').collect::<Vec<_>>())?;
    let mut features = format!(
        "import ctypes, os, socket, urllib.request\n{DECLARED}
def trace():
    if ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), 'ptrace')
    return 'attached'
"
    );
    for (name, attempt) in ATTEMPTS {
        features.push_str(&format!(
            "
@realtime_feature_view(sources=[row], mode='python', features=[Attribute('text', String)])
def {name}(row):
    try:
        return {{'text': 'got ' + repr({attempt})}}
    except (OSError, IndexError) as error:
        return {{'text': f'refused: {{type(error).__name__}}: {{error}}'}}
"
        ));
    }
    let metadata = SocketAddr::from(([169, 254, 169, 254], 80));
    let mut instance = Instance::new(metadata, Ipv4Addr::new(127, 78, 0, 1), &features).await?;
    let guarded = ["--worker-user", "nobody", "--python", SYSTEMS_PYTHON];
    instance.start_node(&guarded)?;

    let why = instance.until_told("no server starts", |told| told.contains("credentials"))?;
    ensure!(why.contains("user nobody reaches instance metadata"), "{why}");
    ensure!(why.contains("load outstation-metadata.nft"), "{why}");
    let rules = image("outstation-metadata.nft");
    run("nft", &["-f", rules.to_str().context("a path")?])?;
    instance.until_told("it serves", |told| told.starts_with("STATUS=ready"))?;
    let before = instance.metadata.asked().len();

    for (name, _) in ATTEMPTS {
        let said = call(instance.address, name).await?;
        println!("{name}: {said}");
        ensure!(said.starts_with("refused: "), "{name}: {said}");
    }
    let asked = instance.metadata.asked();
    let credentials = asked[before..].iter().filter(|path| path.contains("api/token"));
    ensure!(credentials.count() == 0, "{:?}", &asked[before..]);
    Ok(())
}
