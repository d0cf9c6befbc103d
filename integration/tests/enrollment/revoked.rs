//! An agent that was revoked is shut out at once and for good; and a certificate that was copied shows itself.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use outstation_integration::ONE_AT_A_TIME;
use outstation_protocol::v1::{FromIssuer, ToAgent};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use serde_json::Value as Json;

use crate::proof::{Conversation, Held};
use crate::rig::Rig;
use crate::sts::{ACCOUNT, ROLE_ID, Sts, session};

async fn started() -> Result<(Sts, Rig)> {
    let sts = Sts::start().await?;
    let rig = Rig::start(&sts.url).await?;
    rig.register("prod", ACCOUNT, ROLE_ID)?;
    Ok((sts, rig))
}

/// A certificate for this key; shown with another one where the agent renews.
async fn certificate(
    rig: &Rig,
    key: &KeyPair,
    present: Option<&Held>,
) -> Result<Result<Held, String>> {
    let mut conversation = match present {
        Some(held) => Conversation::renew(rig.slot.broker_link(), &rig.root(), held).await?,
        None => rig.begin().await?,
    };
    let sent = rig.honest(&conversation, ACCOUNT, &session("agent"), key)?;
    conversation.show(sent).await?;
    match conversation.answer().await? {
        FromIssuer::Issued { chain, identity } => {
            let key = KeyPair::from_pem(&key.serialize_pem())?;
            let chain = chain.into_iter().map(CertificateDer::from).collect();
            Ok(Ok(Held { key, chain, identity }))
        }
        FromIssuer::Denied { reason, .. } => Ok(Err(reason)),
        FromIssuer::Challenge { .. } => bail!("a second challenge"),
    }
}

fn events(rig: &Rig, kind: &str) -> Result<Vec<Json>> {
    let text = rig.done(&["events", "--json"])?;
    let all: Vec<Json> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(all.into_iter().filter(|event| event["kind"] == kind).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_shut_out_at_once_and_for_good() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (sts, rig) = started().await?;
    let key = KeyPair::generate()?;
    let held = certificate(&rig, &key, None).await?.expect("an honest proof");
    let (link, root) = (rig.slot.broker_link(), rig.root());
    // It reads nothing after its welcome, and does not go by itself.
    let open = held.session(link, &root).await?;
    assert!(matches!(open.first, ToAgent::Welcome(_)), "{:?}", open.first);
    let id = held.id()?;

    let unknown = rig.outstation(&["agent", "revoke", "a-0000000000000000"])?;
    assert!(unknown.code == 1 && unknown.stderr.contains("there is no agent"), "{unknown}");
    let said = rig.done(&["agent", "revoke", id.as_str()])?;
    assert!(said.contains("revoked"), "{said}");
    // Within a second; the next thing that would end it is a minute of silence.
    tokio::time::timeout(Duration::from_secs(10), open.connection.closed()).await?;
    rig.done(&["agent", "revoke", id.as_str()])?;
    assert!(rig.done(&["agents"])?.contains("revoked"));
    assert_eq!(events(&rig, "agent_revoked")?.len(), 1, "once is enough");

    let refused = format!("agent {id} was revoked");
    let first = held.session(link, &root).await?.first;
    assert!(matches!(&first, ToAgent::Goodbye { reason, .. } if *reason == refused), "{first:?}");
    for present in [None, Some(&held)] {
        let denied = certificate(&rig, &key, present).await?.err().context("a certificate")?;
        assert_eq!(denied, refused);
    }
    // With a key of its own choice it is still the same instance.
    let denied = certificate(&rig, &KeyPair::generate()?, None).await?.err();
    let denied = denied.context("a certificate")?;
    assert!(
        denied.contains("i-0123456789abcdef0 is that of agent") && denied.contains(id.as_str())
    );
    assert!(sts.asked() > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_certificate_shows_itself() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (_sts, rig) = started().await?;
    let key = KeyPair::generate()?;
    let (link, root) = (rig.slot.broker_link(), rig.root());
    let welcomed = async |held: &Held| -> Result<bool> {
        Ok(matches!(held.session(link, &root).await?.first, ToAgent::Welcome(_)))
    };
    let renew = async |held: &Held| certificate(&rig, &key, Some(held)).await;

    let first = certificate(&rig, &key, None).await?.expect("an honest proof");
    assert!(welcomed(&first).await?);
    // Replies that are lost are no copies: the same certificate renews again.
    let lost = renew(&first).await?.expect("renewed");
    let second = renew(&first).await?.expect("renewed again");
    assert!(welcomed(&first).await?, "the new one is not in use yet");
    assert!(welcomed(&second).await?);
    assert!(events(&rig, "agent_copied")?.is_empty());

    let copied = format!("a newer certificate of agent {} is in use", first.id()?);
    for old in [&first, &lost, &first] {
        let denied = renew(old).await?.err().context("a copy was renewed")?;
        assert!(denied.contains(&copied), "{denied}");
        let told = old.session(link, &root).await?.first;
        let goodbye = matches!(&told, ToAgent::Goodbye { reason, .. } if reason.contains(&copied));
        assert!(goodbye, "{told:?}");
    }
    let alarms = events(&rig, "agent_copied")?;
    assert_eq!(alarms.len(), 2, "one for each certificate, however often it is shown: {alarms:?}");
    assert!(alarms[0]["hint"].as_str().unwrap_or_default().contains("outstation agent revoke"));
    assert!(welcomed(&second).await?, "whoever has the newest goes on");
    assert!(renew(&second).await?.is_ok());
    Ok(())
}
