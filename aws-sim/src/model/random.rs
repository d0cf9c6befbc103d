//! Identifiers and secrets from a seed: the same seed and the same calls give the same ids, so a run can be repeated.

use sha2::{Digest, Sha256};

use super::names::{AccessKeyId, InstanceId};

/// A counter behind SHA-256. Serves a simulation; not a source of secrets for anything real.
#[derive(Debug, Clone)]
pub struct Ids {
    seed: u64,
    drawn: u64,
}

impl Ids {
    pub fn new(seed: u64) -> Self {
        Ids { seed, drawn: 0 }
    }

    fn draw(&mut self, label: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_be_bytes());
        hash.update(self.drawn.to_be_bytes());
        hash.update(label.as_bytes());
        self.drawn += 1;
        hash.finalize().into()
    }

    pub fn instance_id(&mut self) -> InstanceId {
        let hex = hex::encode(self.draw("instance"));
        InstanceId::try_from(format!("i-{}", &hex[..17])).expect("19 characters")
    }

    /// A UUID in version 4 form: activity ids, lifecycle action tokens, request ids.
    pub fn uuid(&mut self) -> String {
        let mut bytes = self.draw("uuid");
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let hex = hex::encode(&bytes[..16]);
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
    }

    pub fn session_key_id(&mut self) -> AccessKeyId {
        const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let tail = self
            .draw("key")
            .into_iter()
            .take(16)
            .map(|byte| char::from(BASE32[usize::from(byte % 32)]));
        AccessKeyId::from("ASIA".chars().chain(tail).collect::<String>())
    }

    pub fn secret(&mut self) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(self.draw("secret"))[..40].to_owned()
    }

    pub fn session_token(&mut self) -> String {
        use base64::Engine as _;
        let bytes: Vec<u8> = (0..6).flat_map(|_| self.draw("token")).collect();
        format!("IQoJb3JpZ2lu{}", base64::engine::general_purpose::STANDARD.encode(bytes))
    }
}
