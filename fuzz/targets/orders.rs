//! Envelopes as a broker may hand them on, and the orders inside: refused, or the same after being written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outstation_protocol::envelope::Envelope;
use outstation_protocol::order::Order;

fuzz_target!(|data: &[u8]| {
    if let Ok(envelope) = Envelope::from_json(data) {
        let again = Envelope::from_json(&envelope.to_json()).expect("what we wrote ourselves");
        assert_eq!(again.digest(), envelope.digest());
        let _ = envelope.check_bounds();
        read(&envelope);
    }
    // The order itself, without the way through JSON and base64.
    read(&Envelope::unsigned(data.to_vec()));
});

fn read(envelope: &Envelope) {
    let Ok(order) = Order::from_envelope(envelope) else { return };
    let written = order.clone().into_envelope();
    let again = Order::from_envelope(&written).expect("what we wrote ourselves");
    assert_eq!(again.into_envelope().digest(), written.digest());
}
