//! What to do when the broker is not reached: the last words of the line that says so.

/// The reason with its causes and, in brackets, the advice.
pub fn with_advice(error: &anyhow::Error) -> String {
    let reason = format!("{error:#}");
    match without_broker(&reason) {
        Some(advice) => format!("{reason} ({advice})"),
        None => reason,
    }
}

/// From the reason, causes included; nothing where the reason says it itself. Pure.
fn without_broker(reason: &str) -> Option<&'static str> {
    let any = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    // A denial brings the broker's own advice along.
    if reason.contains("denied: ") {
        None
    } else if any(&["aborted by peer: the cryptographic handshake failed"]) {
        // It is the broker that says so, of what this agent showed.
        Some("the broker does not take this agent's certificate; it enrolls again")
    } else if any(&["not valid yet", "NotValidYet", "certificate expired"]) {
        Some("the clocks of this machine and of the broker differ: check the clock with `date`")
    } else if any(&["UnknownIssuer", "BadSignature", "holds no certificate", "the broker's root"]) {
        Some("broker.root in the configuration must be the root.pem of this broker")
    } else if any(&["not valid for name", "NotValidForName"]) {
        Some("correct broker.server_name in the configuration")
    } else if reason.contains("read the certificate ") {
        Some("remove it: the agent enrolls again with its own key")
    } else if any(&["read the key ", "the agent's own key"]) {
        Some("restore the key, or remove it and the certificate and enroll anew")
    } else if reason.contains("resolve ") {
        Some("broker.address in the configuration is host:port, and the name must resolve")
    } else if reason.contains("does not answer (UDP)") {
        Some("is the broker running, and may UDP leave this network for its port?")
    } else if reason.contains("the role's credentials") {
        Some("give the agent its IAM role, or broker.join_token_file in a place without AWS")
    } else if reason.contains("join token") {
        Some("make one at the broker, and keep it where broker.join_token_file says")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_advice() {
        for (reason, words) in [
            ("connect to the broker: invalid peer certificate: UnknownIssuer", "root.pem"),
            (
                "connection lost: aborted by peer: the cryptographic handshake failed: error 48: \
                 invalid peer certificate: UnknownIssuer",
                "enrolls again",
            ),
            ("connect: invalid peer certificate: certificate not valid yet: …", "clock"),
            ("the broker at 10.0.0.1:1 does not answer (UDP): deadline has elapsed", "UDP"),
            ("read the join token /x: No such file or directory (os error 2)", "make one"),
            ("get the role's credentials: no providers in chain provided credentials", "IAM role"),
            ("resolve broker: failed to lookup address", "host:port"),
        ] {
            let advice = without_broker(reason).expect(reason);
            assert!(advice.contains(words), "{reason}: {advice}");
        }
        assert_eq!(without_broker("denied: the join token is used (make a new one)"), None);
        assert_eq!(without_broker("the broker ended the session"), None);
    }
}
