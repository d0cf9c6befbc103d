//! The STS GetCallerIdentity proof: what the client sends, what the verifier rebuilds from it,
//! and how the answer is judged. Pure: the HTTP call is the verifier's own.

use serde::{Deserialize, Serialize};

/// All that a client sends of its signed request; the verifier rebuilds everything else.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StsProof {
    pub region: String,
    pub access_key_id: String,
    pub session_token: String,
    pub amz_date: String,
    pub signature: String,
}
