//! The signed envelope that carries an order from the place where it was applied to the agent.
//! The shape is DSSE's (<https://github.com/secure-systems-lab/dsse>): payload type, payload
//! bytes, signatures over their pre-authentication encoding. It is stored and sent whole; the
//! payload is opaque to everything but the CLI that made it and the agent that judges it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::ids::Digest;

/// The payload type of an order: JSON, see [`crate::order::Order`].
pub const ORDER_PAYLOAD_TYPE: &str = "application/vnd.outstation.order.v1+json";

/// An envelope fits in one frame with room to spare for the frame's own fields.
pub const ENVELOPE_BYTES_MAX: usize = 192 * 1024;
pub const SIGNATURES_MAX: usize = 16;

/// Payload and signatures, as received. Nothing is verified yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub payload_type: String,
    pub payload: Vec<u8>,
    pub signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    pub keyid: String,
    pub sig: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the envelope is not valid JSON of the DSSE shape")]
    Json(#[source] serde_json::Error),
    #[error("the envelope's field {field:?} is not base64")]
    Base64 { field: &'static str },
    #[error("the envelope has {bytes} bytes, more than {ENVELOPE_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("the envelope has {count} signatures, more than {SIGNATURES_MAX}")]
    TooManySignatures { count: usize },
}

/// DSSE's JSON form, used at rest and in the admin API.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dsse {
    #[serde(rename = "payloadType")]
    payload_type: String,
    payload: String,
    signatures: Vec<DsseSignature>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DsseSignature {
    keyid: String,
    sig: String,
}

impl Envelope {
    /// An envelope around `payload` that nobody has signed.
    pub fn unsigned(payload: Vec<u8>) -> Envelope {
        Envelope { payload_type: ORDER_PAYLOAD_TYPE.to_owned(), payload, signatures: Vec::new() }
    }

    /// DSSE's PAE: the bytes that a signature covers.
    pub fn pre_authentication_encoding(&self) -> Vec<u8> {
        let mut bytes = format!(
            "DSSEv1 {} {} {} ",
            self.payload_type.len(),
            self.payload_type,
            self.payload.len()
        )
        .into_bytes();
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// Names what was ordered. Signatures do not count: a second signer changes no digest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.pre_authentication_encoding())
    }

    /// Refuses what would not fit the links, before anything else looks at it.
    pub fn check_bounds(&self) -> Result<(), EnvelopeError> {
        let count = self.signatures.len();
        if count > SIGNATURES_MAX {
            return Err(EnvelopeError::TooManySignatures { count });
        }
        let signatures: usize = self.signatures.iter().map(|s| s.keyid.len() + s.sig.len()).sum();
        let bytes = self.payload_type.len() + self.payload.len() + signatures;
        if bytes > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge { bytes });
        }
        Ok(())
    }

    pub fn to_json(&self) -> Vec<u8> {
        let dsse = Dsse {
            payload_type: self.payload_type.clone(),
            payload: BASE64.encode(&self.payload),
            signatures: self
                .signatures
                .iter()
                .map(|s| DsseSignature { keyid: s.keyid.clone(), sig: BASE64.encode(&s.sig) })
                .collect(),
        };
        serde_json::to_vec(&dsse).expect("strings and lists always serialize")
    }

    pub fn from_json(json: &[u8]) -> Result<Envelope, EnvelopeError> {
        let dsse: Dsse = serde_json::from_slice(json).map_err(EnvelopeError::Json)?;
        let decode =
            |field, text: &str| BASE64.decode(text).map_err(|_| EnvelopeError::Base64 { field });
        let envelope = Envelope {
            payload: decode("payload", &dsse.payload)?,
            payload_type: dsse.payload_type,
            signatures: dsse
                .signatures
                .into_iter()
                .map(|s| Ok(Signature { sig: decode("sig", &s.sig)?, keyid: s.keyid }))
                .collect::<Result<_, EnvelopeError>>()?,
        };
        envelope.check_bounds()?;
        Ok(envelope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pre_authentication_encoding_is_that_of_the_dsse_specification() {
        // The example of the DSSE protocol document.
        let envelope = Envelope {
            payload_type: "http://example.com/HelloWorld".into(),
            payload: b"hello world".to_vec(),
            signatures: vec![],
        };
        assert_eq!(
            envelope.pre_authentication_encoding(),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn json_round_trips_and_a_signature_changes_no_digest() {
        let plain = Envelope::unsigned(b"{\"a\":1}".to_vec());
        let mut signed = plain.clone();
        signed.signatures.push(Signature { keyid: "ops".into(), sig: vec![7; 64] });
        assert_eq!(Envelope::from_json(&signed.to_json()).expect("own JSON"), signed);
        assert_eq!(plain.digest(), signed.digest());
    }

    #[test]
    fn damaged_or_oversized_envelopes_are_refused() {
        for (json, wanted) in [
            ("{", "not valid JSON"),
            (r#"{"payloadType":"t","payload":"%%","signatures":[]}"#, "\"payload\" is not base64"),
            (r#"{"payloadType":"t","payload":"","signatures":[],"x":1}"#, "not valid JSON"),
        ] {
            let error = Envelope::from_json(json.as_bytes()).expect_err(json);
            assert!(error.to_string().contains(wanted), "{json}: {error}");
        }
        let huge = Envelope::unsigned(vec![0; ENVELOPE_BYTES_MAX + 1]);
        assert!(matches!(huge.check_bounds(), Err(EnvelopeError::TooLarge { .. })));
    }
}
