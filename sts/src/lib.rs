//! Asks STS who signed a GetCallerIdentity proof. What is asked and how the answer is judged is
//! pure and stands in `outstation_protocol::evidence`; here are the HTTP call, its bounds, and the
//! [`Attested`] that nothing else can make. The broker verifies account agents with it, an account
//! agent its nodes.

mod endpoint;
mod pace;
mod verifier;

pub use endpoint::{EndpointError, StsEndpoint};
pub use pace::{Limits, Pace, Rate, Wait};
pub use verifier::{Attested, Challenge, Claim, StsVerifier, VerifyError};
