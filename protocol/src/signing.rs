//! Who may sign orders, and whether enough of them have signed one: ed25519 over an envelope's
//! pre-authentication encoding, verified strictly. No file, no clock: keys and envelopes are values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes};
use ed25519_dalek::{Signer as _, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, Signature};
use crate::ids::Digest;

/// Two teams on call; a longer list is nobody's to oversee.
pub const SIGNERS_MAX: usize = 32;
const SIGNATURE_BYTES: usize = 64;
const KEY_BYTES: usize = 32;
const PREFIX: &str = "ed25519:";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("{0:?} is no public key: `ed25519:` and the base64 of 32 bytes")]
    Text(String),
    #[error("{0} is no point of the curve that a key could be")]
    Point(String),
    #[error("{0} is of small order: signatures for it can be made without any key")]
    Weak(String),
    #[error("it is no private key in PKCS#8 PEM (`-----BEGIN PRIVATE KEY-----`)")]
    NotPem,
    #[error("it is an OpenSSH private key; what is needed is PKCS#8 PEM")]
    OpenSsh,
    #[error("it is protected by a passphrase, which this command does not ask for")]
    Encrypted,
    #[error("it holds a private key, but none of ed25519")]
    OtherAlgorithm,
}

/// A key that signatures are verified by. Its text form is `ed25519:<base64>`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Refuses what no honest key is: small-order points, and bytes that are another key's
    /// second spelling.
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Result<PublicKey, KeyError> {
        let text = || format!("{PREFIX}{}", BASE64.encode(bytes));
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Point(text()))?;
        if key.is_weak() {
            return Err(KeyError::Weak(text()));
        }
        if key.to_edwards().compress().as_bytes() != bytes {
            return Err(KeyError::Point(text()));
        }
        Ok(PublicKey(key))
    }

    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        self.0.as_bytes()
    }

    /// What signatures name their key by: `printf %s ed25519:… | sha256sum`.
    pub fn id(&self) -> Digest {
        Digest::of(self.to_string().as_bytes())
    }

    /// Strict in the sense of RFC 8032 and beyond: one signature has one spelling, and neither
    /// the key nor the signature's point may be of small order.
    pub fn has_signed(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl TryFrom<&str> for PublicKey {
    type Error = KeyError;
    fn try_from(raw: &str) -> Result<PublicKey, KeyError> {
        let wrong = || KeyError::Text(raw.chars().take(80).collect());
        let encoded = raw.strip_prefix(PREFIX).ok_or_else(wrong)?;
        let bytes = BASE64.decode(encoded).map_err(|_| wrong())?;
        PublicKey::from_bytes(&bytes.try_into().map_err(|_| wrong())?)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(raw: String) -> Result<PublicKey, KeyError> {
        PublicKey::try_from(raw.as_str())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", BASE64.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        PublicKey::try_from(text).map_err(serde::de::Error::custom)
    }
}

/// A key that signs. Wiped from memory when it is dropped; prints nothing of itself.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// From 32 bytes of the system's randomness.
    pub fn from_seed(seed: &[u8; KEY_BYTES]) -> SigningKey {
        SigningKey(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    pub fn from_pem(pem: &str) -> Result<SigningKey, KeyError> {
        let has = |label: &str| pem.contains(&format!("-----BEGIN {label}-----"));
        if has("OPENSSH PRIVATE KEY") {
            return Err(KeyError::OpenSsh);
        }
        if has("ENCRYPTED PRIVATE KEY") {
            return Err(KeyError::Encrypted);
        }
        if !has("PRIVATE KEY") {
            return Err(KeyError::NotPem);
        }
        let trimmed = pem.trim_start();
        match ed25519_dalek::SigningKey::from_pkcs8_pem(trimmed) {
            Ok(key) => Ok(SigningKey(key)),
            Err(ed25519_dalek::pkcs8::Error::PublicKey(_)) => Err(KeyError::OtherAlgorithm),
            Err(_) => Err(KeyError::NotPem),
        }
    }

    /// The older form of PKCS#8, without the public key, which every OpenSSL reads.
    pub fn to_pem(&self) -> impl AsRef<str> + use<> {
        let pair = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        pair.to_pkcs8_pem(LineEnding::LF).expect("32 bytes always encode")
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(.., {})", self.public())
    }
}

impl Envelope {
    /// Adds the signature of `key` over the pre-authentication encoding; one of each key is kept.
    pub fn attach(&mut self, key: &PublicKey, signature: [u8; SIGNATURE_BYTES]) {
        let keyid = key.id().to_string();
        self.signatures.retain(|present| present.keyid != keyid);
        self.signatures.push(Signature { keyid, sig: signature.to_vec() });
    }

    pub fn sign(&mut self, key: &SigningKey) {
        let signature = key.sign(&self.pre_authentication_encoding());
        self.attach(&key.public(), signature);
    }
}

/// What people call a signer: `ops@example`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SignerName(String);

impl TryFrom<String> for SignerName {
    type Error = String;
    fn try_from(raw: String) -> Result<SignerName, String> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"@._+-".contains(&b);
        if (1..=64).contains(&raw.len()) && raw.bytes().all(is_plain) {
            Ok(SignerName(raw))
        } else {
            let shown: String = raw.chars().take(80).collect();
            Err(format!(
                "{shown:?} is no signer's name: 1-64 letters, digits, '@', '.', '_', '+', '-'"
            ))
        }
    }
}

impl From<SignerName> for String {
    fn from(name: SignerName) -> String {
        name.0
    }
}

impl fmt::Display for SignerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signer {
    pub name: SignerName,
    pub key: PublicKey,
}

/// Who may sign, and how many of them have to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSigners", into = "RawSigners")]
pub struct Signers {
    threshold: usize,
    keys: BTreeMap<Digest, Signer>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSigners {
    #[serde(default = "one")]
    threshold: usize,
    keys: Vec<Signer>,
}

fn one() -> usize {
    1
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignersError {
    #[error("signers without any key: name one, or leave [signers] out")]
    None,
    #[error("{0} signers are more than {SIGNERS_MAX}")]
    TooMany(usize),
    #[error("two signers are called {0}")]
    SameName(SignerName),
    #[error("{0} and {1} have the same key")]
    SameKey(SignerName, SignerName),
    #[error("threshold {threshold} of {keys} signers cannot be: 1 to {keys}")]
    Threshold { threshold: usize, keys: usize },
}

impl Signers {
    pub fn new(threshold: usize, signers: Vec<Signer>) -> Result<Signers, SignersError> {
        let count = signers.len();
        if count == 0 {
            return Err(SignersError::None);
        }
        if count > SIGNERS_MAX {
            return Err(SignersError::TooMany(count));
        }
        if threshold == 0 || threshold > count {
            return Err(SignersError::Threshold { threshold, keys: count });
        }
        let mut names = BTreeSet::new();
        let mut keys: BTreeMap<Digest, Signer> = BTreeMap::new();
        for signer in signers {
            if !names.insert(signer.name.clone()) {
                return Err(SignersError::SameName(signer.name));
            }
            let name = signer.name.clone();
            if let Some(other) = keys.insert(signer.key.id(), signer) {
                return Err(SignersError::SameKey(other.name, name));
            }
        }
        Ok(Signers { threshold, keys })
    }

    /// The one signer there is.
    pub fn only(name: SignerName, key: PublicKey) -> Signers {
        Signers { threshold: 1, keys: [(key.id(), Signer { name, key })].into() }
    }

    pub fn threshold(&self) -> usize {
        self.threshold
    }

    pub fn signers(&self) -> impl Iterator<Item = &Signer> {
        self.keys.values()
    }

    pub fn name_of(&self, key: &PublicKey) -> Option<&SignerName> {
        self.keys.get(&key.id()).map(|signer| &signer.name)
    }

    /// Those who have signed `envelope`, if they are enough. Signatures of keys that are not
    /// named here say nothing and are passed over; a wrong one of a key that is refuses it all.
    pub fn verify(&self, envelope: &Envelope) -> Result<BTreeSet<SignerName>, Unverified> {
        let have = self.valid(envelope)?;
        if have.len() >= self.threshold {
            return Ok(have);
        }
        if envelope.signatures.is_empty() {
            return Err(Unverified::Unsigned);
        }
        let strangers: BTreeSet<String> = envelope
            .signatures
            .iter()
            .filter(|signature| self.signer(&signature.keyid).is_none())
            .map(|signature| shortened(&signature.keyid))
            .collect();
        if have.is_empty() {
            return Err(Unverified::Strangers(strangers));
        }
        Err(Unverified::TooFew { have, wanted: self.threshold })
    }

    /// Those who have signed `envelope`, however many.
    pub fn valid(&self, envelope: &Envelope) -> Result<BTreeSet<SignerName>, Unverified> {
        let mut message = None;
        let mut have = BTreeSet::new();
        for Signature { keyid, sig } in &envelope.signatures {
            let Some(Signer { name, key }) = self.signer(keyid) else { continue };
            let Ok(sig) = <&[u8; SIGNATURE_BYTES]>::try_from(sig.as_slice()) else {
                return Err(Unverified::Malformed { name: name.clone(), bytes: sig.len() });
            };
            let message = message.get_or_insert_with(|| envelope.pre_authentication_encoding());
            if !key.has_signed(message, sig) {
                return Err(Unverified::Invalid(name.clone()));
            }
            have.insert(name.clone());
        }
        Ok(have)
    }

    fn signer(&self, keyid: &str) -> Option<&Signer> {
        self.keys.get(&Digest::try_from(keyid).ok()?)
    }
}

impl TryFrom<RawSigners> for Signers {
    type Error = SignersError;
    fn try_from(raw: RawSigners) -> Result<Signers, SignersError> {
        Signers::new(raw.threshold, raw.keys)
    }
}

impl From<Signers> for RawSigners {
    fn from(signers: Signers) -> RawSigners {
        RawSigners { threshold: signers.threshold, keys: signers.keys.into_values().collect() }
    }
}

/// Why an envelope does not count as signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    #[error("nobody has signed it")]
    Unsigned,
    #[error("it is signed by {} only, which is no signer's key", listed(.0))]
    Strangers(BTreeSet<String>),
    #[error("the signature of {name} has {bytes} bytes instead of {SIGNATURE_BYTES}")]
    Malformed { name: SignerName, bytes: usize },
    #[error(
        "the signature of {0} is not one over this order: it was altered, or signed by another key"
    )]
    Invalid(SignerName),
    #[error("it is signed by {} only, and {wanted} signers have to", listed(.have))]
    TooFew { have: BTreeSet<SignerName>, wanted: usize },
}

fn listed<T: ToString>(names: &BTreeSet<T>) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `sha256:` and twelve digits of a key's id; of anything else the beginning, as Rust quotes it.
pub fn shortened(keyid: &str) -> String {
    match Digest::try_from(keyid) {
        Ok(digest) => digest.short(),
        Err(_) => format!("{:?}", keyid.chars().take(20).collect::<String>()),
    }
}

#[cfg(test)]
#[path = "signing_tests.rs"]
mod tests;
