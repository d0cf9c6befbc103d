//! Account agents enroll at the broker with their IAM role: with real processes, against the simulated AWS, moto and ministack; what
//! goes wrong on the way heals by itself; and whatever is dishonest about a proof gets no certificate.

mod dishonest;
mod heals;
mod proof;
mod revoked;
mod rig;
mod sts;

use anyhow::Result;
use outstation_integration::{ONE_AT_A_TIME, World};
use rcgen::KeyPair;

use crate::rig::{OtherSts, Rig};

#[tokio::test(flavor = "multi_thread")]
async fn the_dev_systems_agent_enrolls_with_its_role() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let world = World::start("enrollment").await?;
    let list = world.outstation(&["dataplane", "list"])?;
    assert!(list.stdout.contains("outstation-agent  AROADEVAGENTROLE00000"), "{list}");
    let agents = world.outstation(&["agents"])?;
    assert!(agents.stdout.contains("123456789012/eu-central-1  connected"), "{agents}");
    let events = world.outstation(&["events"])?;
    assert!(events.stdout.contains("as outstation-agent/dev"), "{events}");
    assert!(!world.system.layout().join_token().exists(), "no token was ever made");
    world.system.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_enrolls_by_the_word_of_moto() -> Result<()> {
    by_the_word_of("moto").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_enrolls_by_the_word_of_ministack() -> Result<()> {
    by_the_word_of("ministack").await
}

async fn by_the_word_of(kind: &str) -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let sts = OtherSts::start(kind)?;
    let rig = Rig::start(&sts.url).await?;
    rig.register("other", &sts.account, &sts.role_id)?;

    let process = rig.agent(&sts.account, &sts.agent)?;
    let id = rig.connected().await?;
    let agents = rig.agents()?;
    assert_eq!(agents.len(), 1, "{agents:?}");
    assert_eq!(agents[0]["account"], sts.account.as_str());
    drop(process);

    let identity = rig.enroll(&sts.account, &sts.agent, &KeyPair::generate()?).await?;
    assert!(
        identity.starts_with(&format!("spiffe://dev.outstation/account/{}/agent/a-", sts.account)),
        "{identity}"
    );
    assert!(!identity.ends_with(&id), "another key is another agent");
    dishonest::against_another_sts(&rig, &sts).await
}

/// An account is registered before its agents come, and removed while they are there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_registered_decides_who_may_come() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let sts = sts::Sts::start().await?;
    let rig = Rig::start(&sts.url).await?;
    let agent = sts::session("agent");

    let refused = |run: outstation_integration::Run, wanted: &str| {
        assert!(run.code == 1 && run.stderr.contains(wanted), "{wanted}: {run}");
    };
    rig.register("prod", sts::ACCOUNT, sts::ROLE_ID)?;
    rig.register("prod", sts::ACCOUNT, sts::ROLE_ID)?;
    let add = |name: &'static str, account: &'static str, role_id: &'static str| {
        rig.outstation(&[
            "dataplane",
            "add",
            name,
            "--account",
            account,
            "--region",
            sts::REGION,
            "--role",
            sts::ROLE,
            "--role-id",
            role_id,
        ])
    };
    refused(add("prod", "999999999999", sts::ROLE_ID)?, "prod is registered already, with another");
    refused(add("other", sts::ACCOUNT, sts::ROLE_ID)?, "is registered already, as prod");
    let unreadable = add("other", "999999999999", "AIDAENROLLUSER0000000")?;
    assert!(unreadable.code == 1 && unreadable.stderr.contains("RoleId"), "{unreadable}");

    let _process = rig.agent(sts::ACCOUNT, &agent)?;
    rig.connected().await?;
    let removed = rig.done(&["dataplane", "remove", "prod"])?;
    assert!(removed.contains("no agent of 123456789012/eu-central-1"), "{removed}");
    rig.nobody_connected().await?;
    refused(
        rig.outstation(&["dataplane", "remove", "prod"])?,
        "no data plane is registered as prod",
    );
    assert_eq!(rig.done(&["dataplane", "list", "--json"])?.trim(), "[]");
    let denied = rig.enroll(sts::ACCOUNT, &agent, &KeyPair::generate()?).await;
    let denied = format!("{:#}", denied.expect_err("nothing is registered"));
    assert!(denied.contains("is not registered at this broker"), "{denied}");

    rig.register("prod", sts::ACCOUNT, sts::ROLE_ID)?;
    rig.enroll(sts::ACCOUNT, &agent, &KeyPair::generate()?).await?;
    Ok(())
}
