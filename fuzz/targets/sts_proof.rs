//! Proofs of identity: refused, or a request to STS in which every value is one header of plain characters.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outstation_protocol::evidence::{SESSION_TOKEN_BYTES_MAX, StsProof, rebuild};

mod expected;

/// 2026-01-01, as `20260101T000000Z`.
const NOW: u64 = 1_767_225_600;

fuzz_target!(|data: &[u8]| {
    let Ok((proof, _)) = postcard::take_from_bytes::<StsProof>(data) else { return };
    let audience = expected::audience();
    let digest = expected::digest();
    let Ok(request) = rebuild(&proof, expected::HOST, &audience, &[7; 32], &digest, NOW) else {
        return;
    };
    assert_eq!(request.host, expected::HOST);
    for (name, value) in &request.headers {
        assert!(value.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{name}: {value:?}");
        assert!(value.len() <= SESSION_TOKEN_BYTES_MAX + 512, "{name} has {} bytes", value.len());
    }
});
