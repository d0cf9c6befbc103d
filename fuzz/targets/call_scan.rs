//! The target's name in a call: what prost takes is read alike.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outstation_api::scan;
use outstation_api::transform::CallRequest;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    if let (Ok(decoded), Ok(scanned)) = (CallRequest::decode(data), scan::target(data)) {
        assert_eq!(decoded.target, scanned);
    }
});
