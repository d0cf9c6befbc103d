//! Bodies of frames, of every kind that a socket brings: refused, or a message that survives the way back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use outstation_protocol::frame::{self, Framed, HEADER_BYTES};
use outstation_protocol::v1::{FromIssuer, ToAccountAgent, ToAgent, ToBroker, ToIssuer, ToNode};

fuzz_target!(|data: &[u8]| {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 6 {
        0 => there_and_back::<ToBroker>(body),
        1 => there_and_back::<ToAgent>(body),
        2 => there_and_back::<ToAccountAgent>(body),
        3 => there_and_back::<ToNode>(body),
        4 => there_and_back::<ToIssuer>(body),
        _ => there_and_back::<FromIssuer>(body),
    }
});

fn there_and_back<M: Framed>(body: &[u8]) {
    if let Some(header) = body.first_chunk::<HEADER_BYTES>() {
        let _ = frame::body_length::<M>(*header);
    }
    let Ok(message) = frame::decode_body::<M>(body) else { return };
    let Ok(encoded) = frame::encode(&message) else { return };
    let again = frame::decode_body::<M>(&encoded[HEADER_BYTES..]).expect("what we wrote ourselves");
    assert_eq!(frame::encode(&again).expect("as before"), encoded);
}
