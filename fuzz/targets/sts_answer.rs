//! What came back from STS: refused, or exactly the caller that was registered.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outstation_protocol::evidence::answer::judge_response;

mod expected;

fuzz_target!(|data: &[u8]| {
    let expected = expected::caller();
    if judge_response(200, Some("text/xml"), data, &expected).is_ok() {
        let text = std::str::from_utf8(data).expect("XML that was accepted");
        assert!(text.contains(expected::ACCOUNT) && text.contains(expected::ROLE));
    }
});
