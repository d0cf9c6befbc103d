//! Stateless resets (RFC 9000, 10.3) that agents understand also after a restart of the broker: the
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
    use super::*;

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
}
