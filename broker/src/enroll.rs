//! Enrollment: a conversation of four messages, at whose end an agent has a certificate or a
//! reason why not. What shows who is asking is an STS proof where the data plane is registered with
//! an IAM role, a join token elsewhere. Repeating it with the same key and evidence of the same kind
//! gives the same agent a certificate again, so a lost reply costs nothing.

use std::net::IpAddr;

use outstation_protocol::evidence::{Audience, ExpectedCaller, Purpose, StsProof};
use outstation_protocol::v1::{Evidence, FromIssuer, ToIssuer};
use outstation_protocol::{AgentId, DataPlane};
use outstation_sts::{Challenge, Claim, VerifyError};
use quinn::Connection;
use rand::RngCore as _;
use tracing::{error, info};

use crate::ca::{Csr, Issued};
use crate::clock;
use crate::frames::{FrameReader, FrameWriter, LinkError};
use crate::identity::{AgentIdentity, Shown};
use crate::link::{Shared, peer_certificate};
use crate::store::admitted::Admitted;
use crate::store::planes::Registration;
use crate::store::tokens::{JoinToken, TokenRefusal};

#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("the connection broke")]
    Connection(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the agent left before it asked")]
    Left,
    #[error("the agent spoke out of turn")]
    OutOfTurn,
}

/// What an agent is told when it gets no certificate.
struct Denial {
    reason: String,
    hint: String,
}

/// The caller bounds how long this may take.
pub async fn serve(shared: &Shared, connection: &Connection) -> Result<(), EnrollError> {
    let remote = connection.remote_address();
    let (send, receive) = connection.accept_bi().await?;
    let (mut reader, mut writer) = (FrameReader::new(receive), FrameWriter::new(send));

    let release = match reader.next().await?.ok_or(EnrollError::Left)? {
        ToIssuer::Begin { release } => crate::shown(&release),
        ToIssuer::Request { .. } => return Err(EnrollError::OutOfTurn),
    };
    let challenge = Challenge::issue();
    writer.send(&FromIssuer::Challenge { nonce: *challenge.bytes() }).await?;

    let answer = match reader.next().await?.ok_or(EnrollError::Left)? {
        ToIssuer::Request { csr, evidence } => {
            let source = remote.ip().to_canonical();
            // An agent that renews shows what it has; TLS has verified that it is ours.
            let shown = peer_certificate(connection)
                .and_then(|der| AgentIdentity::of_certificate(&der).ok());
            certify(shared, &csr, evidence, challenge, source, shown).await
        }
        ToIssuer::Begin { .. } => return Err(EnrollError::OutOfTurn),
    };
    let answer = match answer {
        Ok(issued) => {
            let Issued { chain, identity, serial, expires_at_unix_secs } = issued;
            info!(%remote, agent = %identity.agent, account = %identity.account, %serial, expires_at_unix_secs, release, "enrolled");
            let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
            FromIssuer::Issued { chain, identity: identity.to_string() }
        }
        Err(Denial { reason, hint }) => {
            info!(%remote, reason, release, "enrollment denied");
            FromIssuer::Denied { reason, hint }
        }
    };
    writer.send(&answer).await?;
    let mut send = writer.into_inner();
    if send.finish().is_ok() {
        // The agent has everything, or is gone.
        let _ = send.stopped().await;
    }
    Ok(())
}

async fn certify(
    shared: &Shared,
    csr: &[u8],
    evidence: Evidence,
    challenge: Challenge,
    source: IpAddr,
    shown: Option<Shown>,
) -> Result<Issued, Denial> {
    let csr = Csr::verify(csr).map_err(|error| Denial {
        reason: error.to_string(),
        hint: "make the request anew; this is not a matter of permission".into(),
    })?;
    let admitted = match evidence {
        Evidence::JoinToken { token, data_plane } => {
            by_token(shared, &csr, &token, data_plane).await?
        }
        Evidence::AccountSts { data_plane, proof } => {
            by_role(shared, &csr, data_plane, &proof, challenge, source).await?
        }
        Evidence::Sts(_) => {
            return Err(Denial {
                reason: "this is a node's evidence, for its account agent".into(),
                hint: "an account agent's names its data plane; compare both releases".into(),
            });
        }
    };
    let now = clock::unix_secs();
    if let Some(Shown { identity, serial, .. }) = shown
        && identity.agent == *admitted.agent()
        && !shared.store.shown(identity.agent, serial, now).await.map_err(|error| failed(&error))?
    {
        return Err(Denial {
            reason: format!(
                "a newer certificate of agent {} is in use: two hosts have its key",
                admitted.agent()
            ),
            hint: "find out who has it and revoke the agent; if this host was put back from an \
                   image, remove control.key and control.pem and it enrolls as another agent"
                .into(),
        });
    }
    let issued = shared.ca.issue(&admitted, &csr, clock::utc()).map_err(|error| failed(&error))?;
    let agent = admitted.agent().clone();
    shared
        .store
        .certified(agent, issued.serial.clone(), issued.expires_at_unix_secs, now)
        .await
        .map_err(|error| failed(&error))?;
    Ok(issued)
}

async fn by_token(
    shared: &Shared,
    csr: &Csr,
    token: &str,
    data_plane: DataPlane,
) -> Result<Admitted, Denial> {
    if !shared.served.contains(&data_plane).await.map_err(|error| failed(&error))? {
        return Err(Denial {
            reason: format!("this broker does not serve data plane {data_plane}"),
            hint: "correct account and region of the agent, or add the data plane to the broker's \
                   configuration"
                .into(),
        });
    }
    let registered = shared.store.registration(data_plane.clone()).await;
    let refused =
        |refusal: TokenRefusal| Denial { reason: refusal.to_string(), hint: refusal.hint().into() };
    if let Some(Registration { name, .. }) = registered.map_err(|error| failed(&error))? {
        return Err(refused(TokenRefusal::Registered { name }));
    }
    let token: JoinToken = token.parse().map_err(refused)?;
    shared
        .store
        .admit(token, data_plane, *csr.key(), fresh_agent_id(), clock::unix_secs())
        .await
        .map_err(|error| failed(&error))?
        .map_err(refused)
}

/// The data plane is the agent's claim; everything that the proof is held against is what was
/// registered for it.
async fn by_role(
    shared: &Shared,
    csr: &Csr,
    data_plane: DataPlane,
    proof: &StsProof,
    challenge: Challenge,
    source: IpAddr,
) -> Result<Admitted, Denial> {
    let registered = shared.store.registration(data_plane.clone()).await;
    let Some(registered) = registered.map_err(|error| failed(&error))? else {
        return Err(Denial {
            reason: format!("data plane {data_plane} is not registered at this broker"),
            hint: "correct account and region of the agent, or register them with their role: \
                   `outstation dataplane add`"
                .into(),
        });
    };
    let DataPlane { account, region } = data_plane;
    let expected = ExpectedCaller {
        account: account.clone(),
        region: region.clone(),
        role: Some(registered.role.into()),
        role_id: Some(registered.role_id.into()),
    };
    let tenant = shared.tenant.clone();
    let audience = Audience { purpose: Purpose::ControlLink, tenant, account, region };
    let claim = Claim { source, audience: &audience, expected: &expected };
    let now = clock::unix_secs();
    let attested = shared
        .verifier
        .verify(claim, proof, challenge, csr.digest(), now)
        .await
        .map_err(|error| unproven(&error))?;
    shared
        .store
        .admit_attested(attested, csr, fresh_agent_id(), now)
        .await
        .map_err(|error| failed(&error))?
        .map_err(|refusal| Denial { reason: refusal.to_string(), hint: refusal.hint().into() })
}

/// Causes are for our log: they may tell of our own network.
fn unproven(error: &VerifyError) -> Denial {
    let hint = match error {
        VerifyError::Proof(_) => {
            "check the agent's clock, its account and region, and that it runs with a role's \
             temporary credentials"
        }
        VerifyError::TooOften { .. } => "the agent tries again by itself",
        VerifyError::Endpoint(_) => {
            "the broker knows no STS there; set [sts] endpoint at the broker"
        }
        VerifyError::Timeout
        | VerifyError::Roots(_)
        | VerifyError::Unreachable(_)
        | VerifyError::Body(_)
        | VerifyError::Request(_) => {
            "the broker must reach the region's STS; its log says why it did not. The agent tries again"
        }
        VerifyError::Answer(_) => {
            "check the agent's role against `outstation dataplane list`; a refusal by STS itself also \
             comes from a clock, or from another tenant or endpoint in its configuration"
        }
    };
    info!(error = crate::chain(error), "an STS proof shows nothing");
    Denial { reason: error.to_string(), hint: hint.into() }
}

/// Our own trouble: the details are for our log.
fn failed(error: &dyn std::error::Error) -> Denial {
    error!(error = %crate::chain(error), "an enrollment failed");
    Denial {
        reason: "the broker could not finish the enrollment".into(),
        hint: "try again; the broker's log says why".into(),
    }
}

fn fresh_agent_id() -> AgentId {
    let mut id = [0; 8];
    rand::rng().fill_bytes(&mut id);
    AgentId::try_from(format!("a-{}", hex::encode(id))).expect("lower-case letters and digits")
}
