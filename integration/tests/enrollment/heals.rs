//! What goes wrong between a broker that has issued and an agent that has its certificate heals by itself, and the agent is the
//! same one afterwards.

use anyhow::{Context as _, Result};
use outstation_integration::ONE_AT_A_TIME;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};

use crate::rig::Rig;
use crate::sts::{ACCOUNT, ROLE_ID, Sts, session};

async fn started() -> Result<(Sts, Rig)> {
    let sts = Sts::start().await?;
    let rig = Rig::start(&sts.url).await?;
    rig.register("prod", ACCOUNT, ROLE_ID)?;
    Ok((sts, rig))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_costs_nothing() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (sts, mut rig) = started().await?;
    let (agent, key) = (session("agent"), KeyPair::generate()?);
    let mut conversation = rig.begin().await?;
    let sent = rig.honest(&conversation, ACCOUNT, &agent, &key)?;
    conversation.show(sent).await?;
    // The broker has issued, and nobody hears of it.
    while rig.agents()?.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    conversation.close();
    assert_eq!(sts.asked(), 1);
    let issued = rig.agents()?[0]["id"].clone();

    let again = rig.enroll(ACCOUNT, &agent, &key).await?;
    assert!(again.ends_with(issued.as_str().context("an id")?), "{again} is not {issued}");
    rig.start_broker().await?;
    assert_eq!(rig.enroll(ACCOUNT, &agent, &key).await?, again, "a restarted broker knows it too");
    assert_eq!(rig.agents()?.len(), 1, "it is one agent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_certificate_is_on_disk_costs_nothing() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (_sts, rig) = started().await?;
    let agent = session("agent");
    // The key is on disk before anybody hears of it; of the certificate only the broker knows.
    let key = KeyPair::generate()?;
    std::fs::create_dir_all(rig.state())?;
    std::fs::write(rig.state().join("control.key"), key.serialize_pem())?;
    let identity = rig.enroll(ACCOUNT, &agent, &key).await?;
    assert!(!rig.state().join("control.pem").exists());

    let _process = rig.agent(ACCOUNT, &agent)?;
    let id = rig.connected().await?;
    assert!(identity.ends_with(&id), "{identity} is not {id}");
    assert_eq!(rig.agents()?.len(), 1, "it is one agent");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expired_in_a_month_offline_is_replaced() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (_sts, rig) = started().await?;
    let agent = session("agent");
    let process = rig.agent(ACCOUNT, &agent)?;
    let id = rig.connected().await?;
    process.stop()?;
    rig.nobody_connected().await?;

    // As its own, of a month ago.
    let key = KeyPair::from_pem(&std::fs::read_to_string(rig.state().join("control.key"))?)?;
    let root = CertificateDer::from_pem_file(rig.root())?;
    let root_key = std::fs::read_to_string(rig.root().with_file_name("root.key"))?;
    let issuer = Issuer::from_ca_cert_der(&root, KeyPair::from_pem(&root_key)?)?;
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - Duration::days(31);
    params.not_after = params.not_before + Duration::days(7);
    let uri = format!("spiffe://dev.outstation/account/{ACCOUNT}/agent/{id}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    let expired = params.signed_by(&key, &issuer)?.pem();
    std::fs::write(rig.state().join("control.pem"), &expired)?;

    let _process = rig.agent(ACCOUNT, &agent)?;
    assert_eq!(rig.connected().await?, id, "it is the same agent");
    let present = std::fs::read_to_string(rig.state().join("control.pem"))?;
    assert_ne!(present, expired);
    Ok(())
}
