//! The node role: reads from instance metadata what this instance is, then supervises its server
//! and tells the account agent. [`machine`] decides, [`supervisor`] acts.

pub mod artifacts;
pub mod environments;
pub mod events;
pub mod fetch;
pub mod health;
pub mod imds;
pub mod install;
pub mod link;
pub mod machine;
pub mod metadata;
pub mod server;
mod service;
mod stages;
pub mod supervisor;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use outstation_protocol::evidence::{Audience, Purpose};
use outstation_protocol::ids::{AccountId, GroupName, InstanceId, Region, TenantId};
use outstation_protocol::v1::Artifacts;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::artifacts::ArtifactStore;
use self::environments::Environments;
use self::imds::{Imds, ImdsError};
use self::link::{Link, LinkSettings, Outbox};
use self::metadata::MetadataGuard;
use self::server::ServerSettings;
use self::supervisor::Supervisor;
use crate::clock;
use crate::store::{Access, AccountStore, Location};
use crate::tags;
use outstation_sts::StsEndpoint;

/// Instance metadata is up before user-data runs; a hiccup passes, a wrong address does not.
const FACTS_MAX: Duration = Duration::from_secs(30);
const FACTS_RETRY: Duration = Duration::from_millis(200);
/// Every task has its say; none can grow the queue.
const EVENTS_MAX: usize = 64;

#[derive(Debug, Args)]
pub struct NodeArgs {
    /// Where the account agent listens for nodes
    #[arg(long, value_name = "HOST:PORT")]
    account_agent: String,
    /// The account store: artifacts and trust roots
    #[arg(long, value_name = "DIR|s3://BUCKET/PREFIX")]
    store: Location,
    /// This node's own folder is made below it, named after the instance
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where environments are kept, also those that the image came with  [default: DIR/environments]
    #[arg(long, value_name = "DIR")]
    environments: Option<PathBuf>,
    /// An interpreter for environments; may be given once for each version of Python  [default:
    /// python3.X on the path]
    #[arg(long, value_name = "PATH")]
    python: Vec<PathBuf>,
    /// The program outstation-transform-server
    #[arg(long, value_name = "PATH")]
    transform_server: PathBuf,
    /// The user that functions run as. No server starts while that user reaches instance metadata
    #[arg(long, value_name = "NAME")]
    worker_user: Option<String>,
    #[arg(long, value_name = "ID")]
    account: AccountId,
    #[arg(long, value_name = "REGION")]
    region: Region,
    /// The STS that the account agent asks, where it is not the region's own
    #[arg(long, value_name = "URL")]
    sts_endpoint: Option<String>,
    /// Instance metadata
    #[arg(
        long,
        value_name = "URL",
        env = "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        default_value = "http://169.254.169.254"
    )]
    imds: String,
}

/// What the instance is, by its own metadata.
struct Facts {
    instance: InstanceId,
    address: IpAddr,
    tenant: TenantId,
    group: GroupName,
    /// None in a group of the customer: then the account agent says what to serve.
    artifacts: Option<Artifacts>,
}

/// Runs until `shutdown`. The server runs on then: only a drain ends it.
pub async fn run(args: NodeArgs, shutdown: CancellationToken) -> Result<()> {
    let imds = Arc::new(Imds::new(&args.imds));
    let facts = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        facts = read_facts(&imds) => facts?,
    };
    // Around everything that this node logs from here on.
    let span = tracing::info_span!("node", instance = %facts.instance, group = %facts.group);
    supervise(args, imds, facts, shutdown).instrument(span).await
}

async fn supervise(
    args: NodeArgs,
    imds: Arc<Imds>,
    facts: Facts,
    shutdown: CancellationToken,
) -> Result<()> {
    let Facts { instance, address, tenant, group, artifacts } = facts;
    match &artifacts {
        Some(artifacts) => tracing::info!(%address, generation = %artifacts.generation,
            bundle = artifacts.bundle.short(), "node"),
        None => tracing::info!(%address, "node; its account agent says what to serve"),
    }

    let dir = args.dir.join(instance.as_str());
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
    // Servers run in the node's folder, so that nothing given here may depend on ours.
    let absolute = |path: &std::path::Path| {
        std::path::absolute(path).with_context(|| format!("find {}", path.display()))
    };
    let program = absolute(&args.transform_server)?;
    let location = match args.store {
        Location::Folder(folder) => Location::Folder(absolute(&folder)?),
        bucket @ Location::S3 { .. } => bucket,
    };
    let account_store = AccountStore::open(&location, Access::of_environment(Some(&args.region)))
        .context("open the account store")?;
    let sts = StsEndpoint::choose(&args.region, args.sts_endpoint.as_deref())?;
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let (outbox, to_send) = watch::channel(Outbox::default());
    let settings = LinkSettings {
        account_agent: args.account_agent,
        bind: address,
        store: account_store.clone(),
        audience: Audience {
            purpose: Purpose::NodeLink,
            tenant,
            account: args.account,
            region: args.region,
        },
        sts,
        instance: instance.clone(),
    };
    let link = Link::new(settings, imds.clone(), to_send, events.clone())
        .with_context(|| format!("open a UDP port on {address}"))?;
    let endpoint = link.endpoint();
    let link = tokio::spawn(link.run().in_current_span());

    let guard = args.worker_user.map(|user| MetadataGuard::new(&user, &args.imds)).transpose()?;
    if guard.is_none() {
        tracing::warn!("functions run as this agent's user, and read what it can: --worker-user");
    }
    let servers = ServerSettings {
        program,
        guard,
        address,
        group: group.to_string(),
        instance: instance.to_string(),
        dir: dir.clone(),
    };
    let environments = args.environments.unwrap_or_else(|| args.dir.join("environments"));
    let environments =
        Environments::new(account_store.clone(), &absolute(&environments)?, args.python);
    let store = ArtifactStore::new(account_store, &dir, environments);
    let supervisor = Supervisor::new(dir, servers, store, events, outbox);
    supervisor.run(inbox, imds, artifacts, shutdown).await;
    service::stopping();
    link.abort();
    endpoint.close(0u8.into(), b"the node agent stops");
    // One packet has to leave.
    let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
    Ok(())
}

async fn read_facts(imds: &Imds) -> Result<Facts> {
    let deadline = clock::now() + FACTS_MAX;
    loop {
        match ask_facts(imds).await {
            Ok((instance, address, tags)) => {
                let address = IpAddr::V4(address);
                let (tenant, group, artifacts) =
                    parse_tags(&tags).context("read the instance's tags")?;
                return Ok(Facts { instance, address, tenant, group, artifacts });
            }
            Err(error) if clock::now() >= deadline => {
                return Err(error).context("ask instance metadata what this instance is");
            }
            Err(error) => tracing::debug!(%error, "instance metadata is asked again"),
        }
        tokio::time::sleep(FACTS_RETRY).await;
    }
}

async fn ask_facts(
    imds: &Imds,
) -> Result<(InstanceId, std::net::Ipv4Addr, BTreeMap<String, String>), ImdsError> {
    Ok((imds.instance_id().await?, imds.local_ipv4().await?, imds.tags().await?))
}

/// What the AutoScaling group had its instances born with.
fn parse_tags(tags: &BTreeMap<String, String>) -> Result<(TenantId, GroupName, Option<Artifacts>)> {
    let (tenant, group) = (tags::tag(tags, "tenant")?, tags::tag(tags, "group")?);
    // All or none: half of them is a mistake.
    let has = |name: &str| tags.contains_key(&format!("outstation:{name}"));
    let artifacts = if ["generation", "environment", "bundle"].into_iter().any(has) {
        Some(tags::artifacts(tags)?)
    } else {
        None
    };
    Ok((tenant.try_into()?, group.try_into()?, artifacts))
}

#[cfg(test)]
mod tests {
    use outstation_protocol::{Digest, Generation};

    use super::*;

    fn tags(extra: &[(&str, &str)]) -> BTreeMap<String, String> {
        let digest = Digest::of(b"x").to_string();
        let mut tags: BTreeMap<String, String> = [
            ("outstation:tenant", "dev"),
            ("outstation:group", "delay"),
            ("outstation:generation", "3"),
            ("outstation:environment", digest.as_str()),
            ("outstation:bundle", digest.as_str()),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        tags.extend(extra.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        tags
    }

    #[test]
    fn tags_say_what_to_serve() {
        let (tenant, group, artifacts) =
            parse_tags(&tags(&[("outstation:options", "workers=2,log=info")])).expect("complete");
        assert_eq!((tenant.as_str(), group.as_str()), ("dev", "delay"));
        let artifacts = artifacts.expect("tagged");
        assert_eq!(artifacts.generation, Generation(3));
        assert_eq!(artifacts.bundle, Digest::of(b"x"));
        let options: Vec<_> =
            artifacts.options.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(options, [("log", "info"), ("workers", "2")]);
        let (.., artifacts) = parse_tags(&tags(&[])).expect("complete");
        assert!(artifacts.expect("tagged").options.is_empty());
    }

    #[test]
    fn in_a_group_of_the_customer_the_account_agent_says_what_to_serve() {
        let mut tags = tags(&[]);
        tags.retain(|name, _| ["outstation:tenant", "outstation:group"].contains(&name.as_str()));
        assert_eq!(parse_tags(&tags).expect("enough").2, None);
    }

    #[test]
    fn missing_or_damaged_tags_are_named() {
        for name in ["tenant", "group", "generation", "environment", "bundle"] {
            let mut missing = tags(&[]);
            missing.remove(&format!("outstation:{name}"));
            let error = parse_tags(&missing).expect_err(name).to_string();
            assert!(error.contains(&format!("no tag outstation:{name}")), "{error}");
            assert!(error.contains("InstanceMetadataTags"), "{error}");
            let damaged = tags(&[(&format!("outstation:{name}"), "?")]);
            assert!(parse_tags(&damaged).is_err(), "{name}");
        }
    }
}
