//! Stateless resets (RFC 9000, 10.3) that nodes understand also after a restart of the account agent: the
//! first packet of an old connection is answered by its end, instead of by silence until both give
//! up. Their key is derived from the CA's, which outlives the process.

use std::sync::Arc;

use hmac::{Hmac, Mac as _};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use sha2::Sha256;

/// Long enough that no two connections of a fleet share one.
const ID_BYTES: usize = 8;

/// Derived from a secret, for this purpose only.
pub fn endpoint_config(secret: &[u8]) -> EndpointConfig {
    let mut mac = keyed(secret);
    mac.update(b"outstation stateless resets");
    let mut config = EndpointConfig::new(Arc::new(ResetKey(mac.finalize().into_bytes().into())));
    config.cid_generator(|| Box::new(RandomIds));
    config
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// quinn's own ids are bound to a key of the process: one of an earlier process would be ignored.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        let mut mac = keyed(&self.0);
        mac.update(data);
        signature_out.copy_from_slice(&mac.finalize().into_bytes());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut mac = keyed(&self.0);
        mac.update(data);
        mac.verify_slice(signature).map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::UdpSocket;
    use tokio::sync::watch;

    use super::*;
    use crate::clock;
    use crate::store::AccountStore;
    use crate::trust::testing::{audience, within};
    use crate::trust::{DataPlaneCa, tls};

    #[test]
    fn one_secret_one_key() {
        let token = |secret: &[u8]| {
            let mut mac = keyed(secret);
            mac.update(b"outstation stateless resets");
            let key = ResetKey(mac.finalize().into_bytes().into());
            let mut token = [0; 32];
            key.sign(b"a connection id", &mut token);
            assert!(key.verify(b"a connection id", &token).is_ok());
            assert!(key.verify(b"another", &token).is_err());
            token
        };
        assert_eq!(token(b"a"), token(b"a"));
        assert_ne!(token(b"a"), token(b"b"));
    }

    /// Passes datagrams of one client on to whoever is the server at the moment.
    async fn relay(server: watch::Receiver<SocketAddr>) -> SocketAddr {
        let front = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let back = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = front.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut there, mut here) = ([0; 2048], [0; 2048]);
            let mut client = None;
            loop {
                tokio::select! {
                    Ok((length, from)) = front.recv_from(&mut there) => {
                        client = Some(from);
                        let to = *server.borrow();
                        let _ = back.send_to(&there[..length], to).await;
                    }
                    Ok((length, from)) = back.recv_from(&mut here) => {
                        if let Some(client) = client && from == *server.borrow() {
                            let _ = front.send_to(&here[..length], client).await;
                        }
                    }
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn a_successor_ends_the_connections_of_the_one_that_died() {
        let store = tempfile::tempdir().expect("a folder");
        let ca = DataPlaneCa::open_or_create(
            &AccountStore::folder(store.path()),
            &audience().tenant,
            clock::unix_secs(),
        );
        let ca = Arc::new(ca.expect("makes one"));
        let listen = || {
            let config = tls::node_link_server(ca.clone()).expect("a configuration");
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
            let runtime = Arc::new(quinn::TokioRuntime);
            let resets = endpoint_config(&ca.secret());
            quinn::Endpoint::new(resets, Some(config), socket, runtime).expect("an endpoint")
        };
        let (first, second) = (listen(), listen());
        let (server, servers) = watch::channel(first.local_addr().expect("bound"));
        let address = relay(servers).await;

        let roots = tls::load_roots(&AccountStore::folder(store.path())).expect("its root");
        let config = tls::node_link_client(&roots, None).expect("a configuration");
        let client = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address"));
        let client = client.expect("a port");
        let connecting = client.connect_with(config, address, crate::trust::ca::SERVER_NAME);
        let accepting = async { first.accept().await.expect("open").await.expect("a handshake") };
        let (connection, _kept) =
            within("a connection", async { tokio::join!(connecting.expect("dialled"), accepting) })
                .await;
        let connection = connection.expect("a handshake");

        server.send_replace(second.local_addr().expect("bound"));
        let (mut send, _receive) = connection.open_bi().await.expect("a stream");
        send.write_all(b"is anybody there?").await.expect("queued");
        let ended = within("the end", connection.closed()).await;
        assert!(matches!(ended, quinn::ConnectionError::Reset), "{ended:?}");
    }
}
