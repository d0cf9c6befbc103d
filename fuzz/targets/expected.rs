//! What the verifier of the targets expects.

#![allow(dead_code, reason = "each target uses a part of this")]

use outstation_protocol::evidence::answer::ExpectedCaller;
use outstation_protocol::evidence::{Audience, Purpose};
use outstation_protocol::{AccountId, Digest, Region, TenantId};

pub const ACCOUNT: &str = "123456789012";
pub const ROLE: &str = "outstation-agent";
pub const HOST: &str = "sts.eu-central-1.amazonaws.com";

fn account() -> AccountId {
    AccountId::try_from(ACCOUNT).expect("an account")
}

fn region() -> Region {
    Region::try_from("eu-central-1").expect("a region")
}

pub fn caller() -> ExpectedCaller {
    ExpectedCaller {
        region: region(),
        account: account(),
        role: Some(ROLE.to_owned()),
        role_id: Some("AROAEXAMPLEEXAMPLE123".to_owned()),
    }
}

pub fn audience() -> Audience {
    let tenant = TenantId::try_from("acme").expect("a tenant");
    Audience { purpose: Purpose::ControlLink, tenant, account: account(), region: region() }
}

pub fn digest() -> Digest {
    Digest::of(b"a certificate request")
}
