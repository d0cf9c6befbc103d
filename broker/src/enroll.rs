//! Enrollment: a conversation of four messages, at whose end an agent has a certificate or a
//! reason why not. Repeating it with the same key and token gives a certificate again, so a lost
//! reply costs nothing.

use outstation_protocol::v1::{Evidence, FromIssuer, ToIssuer};
use outstation_protocol::{AgentId, DataPlane};
use quinn::Connection;
use rand::RngCore as _;
use tracing::{error, info};

use crate::ca::{Csr, Issued};
use crate::clock;
use crate::frames::{FrameReader, FrameWriter, LinkError};
use crate::link::Shared;
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
    let mut nonce = [0; 32];
    rand::rng().fill_bytes(&mut nonce);
    writer.send(&FromIssuer::Challenge { nonce }).await?;

    let answer = match reader.next().await?.ok_or(EnrollError::Left)? {
        ToIssuer::Request { csr, evidence } => admit(shared, &csr, evidence).await,
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

async fn admit(shared: &Shared, csr: &[u8], evidence: Evidence) -> Result<Issued, Denial> {
    let csr = Csr::verify(csr).map_err(|error| Denial {
        reason: error.to_string(),
        hint: "make the request anew; this is not a matter of permission".into(),
    })?;
    let (token, data_plane) = match evidence {
        Evidence::JoinToken { token, data_plane } => (token, data_plane),
        Evidence::Sts(_) => {
            return Err(Denial {
                reason: "this broker does not accept STS evidence".into(),
                hint: "enroll with a join token".into(),
            });
        }
    };
    serves(shared, &data_plane)?;
    let refused =
        |refusal: TokenRefusal| Denial { reason: refusal.to_string(), hint: refusal.hint().into() };
    let token: JoinToken = token.parse().map_err(refused)?;
    let admitted = shared
        .store
        .admit(token, data_plane, *csr.key(), fresh_agent_id(), clock::unix_secs())
        .await
        .map_err(|error| failed(&error))?
        .map_err(refused)?;
    let issued = shared.ca.issue(&admitted, &csr, clock::utc()).map_err(|error| failed(&error))?;
    let agent = admitted.agent().clone();
    shared
        .store
        .certified(agent, issued.serial.clone(), issued.expires_at_unix_secs)
        .await
        .map_err(|error| failed(&error))?;
    Ok(issued)
}

fn serves(shared: &Shared, data_plane: &DataPlane) -> Result<(), Denial> {
    if shared.data_planes.contains(data_plane) {
        return Ok(());
    }
    Err(Denial {
        reason: format!("this broker does not serve data plane {data_plane}"),
        hint: "correct account and region of the agent, or add the data plane to the broker's \
               configuration"
            .into(),
    })
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
