//! What a dishonest client, or an STS that is none, could try. Each ends with its own reason and without a certificate; STS is asked
//! only about what could be an honest proof.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use outstation_integration::ONE_AT_A_TIME;
use outstation_protocol::v1::{Evidence, FromIssuer};
use rcgen::KeyPair;
use time::Duration as Span;

use crate::proof::{Conversation, Sent, Signing, csr, data_plane};
use crate::rig::{OtherSts, Rig};
use crate::sts::{ACCOUNT, Mode, ROLE_ID, Session, Sts, session};

/// What is changed about an honest proof.
enum Change {
    /// What is signed.
    Signed(fn(&mut Signing)),
    /// Who signs.
    By(fn() -> Session),
    /// What is sent in the end.
    Sent(fn(&mut Sent)),
    /// What STS says to an honest one.
    Answer(fn() -> Mode),
}

use Change::{Answer, By, Sent as Sends, Signed};

/// STS itself finds the signature wrong over the request that the broker has rebuilt.
const MISMATCH: &str = "STS answered with status 403, SignatureDoesNotMatch";
const UNKNOWN: &str = "STS answered with status 403, InvalidClientTokenId";
const PRESIGNED: &str = "/?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&Action=GetCallerIdentity&Version=2011-06-15";

/// Name, what is changed, why it fails, how often STS is asked.
#[rustfmt::skip]
const TABLE: &[(&str, Change, &str, u64)] = &[
    // Signed for somebody or something else.
    ("for the node link", Signed(|s| s.audience = s.audience.replace("control-link", "node-link")), MISMATCH, 1),
    ("for another tenant", Signed(|s| s.audience = s.audience.replace("tenant=dev", "tenant=prod")), MISMATCH, 1),
    ("for another account", Signed(|s| s.audience = s.audience.replace("account=", "account=9")), MISMATCH, 1),
    ("for another region", Signed(|s| s.audience = s.audience.replace("eu-central-1", "us-east-1")), MISMATCH, 1),
    ("for an audience and another", Signed(|s| s.audience += ",control-link;tenant=prod"), MISMATCH, 1),
    ("for no audience", Signed(|s| s.audience.clear()), MISMATCH, 1),
    ("over another challenge", Signed(|s| s.challenge = "07".repeat(32)), MISMATCH, 1),
    ("over no challenge", Signed(|s| s.challenge.clear()), MISMATCH, 1),
    ("over another certificate request", Signed(|s| s.csr = "07".repeat(32)), MISMATCH, 1),
    ("for another host", Signed(|s| s.host = "sts.us-east-1.amazonaws.com".into()), MISMATCH, 1),
    ("for another port", Signed(|s| s.host = "127.0.0.1:1".into()), MISMATCH, 1),
    ("by another method", Signed(|s| s.method = "GET"), MISMATCH, 1),
    ("for another path", Signed(|s| s.target = "/other".into()), MISMATCH, 1),
    ("for a query", Signed(|s| s.target = "/?Action=GetCallerIdentity&Version=2011-06-15".into()), MISMATCH, 1),
    ("for another action", Signed(|s| s.body = "Action=GetSessionToken&Version=2011-06-15".into()), MISMATCH, 1),
    ("with more in the body", Signed(|s| s.body += "&X=1"), MISMATCH, 1),
    ("with an empty body", Signed(|s| s.body.clear()), MISMATCH, 1),
    ("with another content type", Signed(|s| s.content_type = "application/json".into()), MISMATCH, 1),
    ("with a header too many", Signed(|s| s.more.push(("x-amz-target", "x".into()))), MISMATCH, 1),
    ("with a header twice", Signed(|s| { let again = s.audience.clone(); s.more.push(("x-outstation-audience", again)); }), MISMATCH, 1),
    ("with a payload that is not signed", Signed(|s| s.more.push(("x-amz-content-sha256", "UNSIGNED-PAYLOAD".into()))), MISMATCH, 1),
    ("with the audience not signed", Signed(|s| s.unsigned = "x-outstation-audience"), MISMATCH, 1),
    ("with the challenge not signed", Signed(|s| s.unsigned = "x-outstation-challenge"), MISMATCH, 1),
    ("with the request's digest not signed", Signed(|s| s.unsigned = "x-outstation-csr-sha256"), MISMATCH, 1),
    ("with the host not signed", Signed(|s| s.unsigned = "host"), MISMATCH, 1),
    ("with the token not signed", Signed(|s| s.unsigned = "x-amz-security-token"), MISMATCH, 1),
    ("with the content type not signed", Signed(|s| s.unsigned = "content-type"), MISMATCH, 1),
    ("as a link that is good for a week", Signed(|s| { s.method = "GET"; s.target = PRESIGNED.into(); s.body.clear(); }), MISMATCH, 1),
    ("with X-Amz-Expires beside a signed header", Signed(|s| s.target = "/?X-Amz-Expires=604800".into()), MISMATCH, 1),
    ("for another service", Signed(|s| s.scope_service = "iam"), MISMATCH, 1),
    ("with a key of another region", Signed(|s| s.scope_region = "us-east-1"), MISMATCH, 1),
    ("with a key of another day", Signed(|s| s.scope_date = Some("20260101")), MISMATCH, 1),
    ("six minutes ago", Signed(|s| s.at -= Span::minutes(6)), "behind the verifier's clock; 300 s are allowed", 0),
    ("in six minutes", Signed(|s| s.at += Span::minutes(6)), "ahead of the verifier's clock; 300 s are allowed", 0),
    ("a year ago", Signed(|s| s.at -= Span::days(365)), "behind the verifier's clock", 0),
    // Signed by somebody else.
    ("by another role", By(|| session("other role")), "the caller's role is \"other\", not \"outstation-agent\"", 1),
    ("by a role that was made again under the name", By(|| session("role made again")), "another unique id than the one registered", 1),
    ("by the same role of another account", By(|| session("other account")), "Arn and Account name two accounts", 1),
    ("from another partition", By(|| session("other partition")), "the caller is of partition \"aws-cn\", not \"aws\"", 1),
    ("by a user with a session", By(|| session("user")), "not one of an assumed role", 1),
    ("by the root with a session", By(|| session("root")), "not one of an assumed role", 1),
    ("by a federated user", By(|| session("federated user")), "not one of an assumed role", 1),
    ("by two sessions at once", By(|| session("two sessions")), "Arn and UserId name two sessions", 1),
    ("by nobody", By(|| Session { key: "ASIAENROLLNOBODY0000".into(), ..session("agent") }), UNKNOWN, 1),
    ("with a guessed secret", By(|| Session { secret: "guessed".into(), ..session("agent") }), MISMATCH, 1),
    ("with a long-lived key", By(|| Session { key: "AKIAENROLLAGENT00000".into(), ..session("agent") }), "not one of temporary credentials", 0),
    ("with another session's token", By(|| Session { token: session("user").token, ..session("agent") }), UNKNOWN, 1),
    // Changed after it was signed.
    ("the date a second later", Sends(|s| { let date = &mut s.proof().amz_date; let last = if date.ends_with("0Z") { "1Z" } else { "0Z" }; date.replace_range(14.., last); }), MISMATCH, 1),
    ("another key of one's own in the request", Sends(|s| s.csr = csr(&KeyPair::generate().expect("a key")).expect("a request")), MISMATCH, 1),
    ("another access key", Sends(|s| s.proof().access_key_id = session("other role").key), UNKNOWN, 1),
    ("another signature", Sends(|s| s.proof().signature = "0".repeat(64)), MISMATCH, 1),
    ("another region", Sends(|s| s.proof().region = "us-east-1".into()), "the proof's region is not eu-central-1", 0),
    ("a host for a region", Sends(|s| s.proof().region = "eu-central-1.evil.example/".into()), "the proof's region is not eu-central-1", 0),
    ("no region", Sends(|s| s.proof().region.clear()), "the proof's region is not eu-central-1", 0),
    ("a scope in the key", Sends(|s| s.proof().access_key_id = "ASIA/20260101/us-eas".into()), "not one of temporary credentials", 0),
    ("a newline in the key", Sends(|s| s.proof().access_key_id = "ASIAENROLLAGENT0000\n".into()), "not one of temporary credentials", 0),
    ("a key without end", Sends(|s| s.proof().access_key_id = "A".repeat(100_000)), "not one of temporary credentials", 0),
    ("a header in the token", Sends(|s| s.proof().session_token = "a\r\nx-outstation-audience: b".into()), "characters that no token has", 0),
    ("a token of another alphabet", Sends(|s| s.proof().session_token = "tøken".into()), "characters that no token has", 0),
    ("a token without end", Sends(|s| s.proof().session_token = "a".repeat(100_000)), "has 100000 bytes", 0),
    ("no token", Sends(|s| s.proof().session_token.clear()), "has 0 bytes", 0),
    ("a date with a zone", Sends(|s| s.proof().amz_date = "20261124T120000+01:00".into()), "not of the form YYYYMMDDTHHMMSSZ", 0),
    ("a header in the date", Sends(|s| s.proof().amz_date = "20261124T1200Z\r\n".into()), "not of the form YYYYMMDDTHHMMSSZ", 0),
    ("a signature in capitals", Sends(|s| s.proof().signature.make_ascii_uppercase()), "not 64 lower-case hexadecimal digits", 0),
    ("half a signature", Sends(|s| s.proof().signature.truncate(32)), "not 64 lower-case hexadecimal digits", 0),
    ("more behind the signature", Sends(|s| s.proof().signature += ", SignedHeaders=host"), "not 64 lower-case hexadecimal digits", 0),
    ("a request that is none", Sends(|s| s.csr = b"nonsense".to_vec()), "the certificate request is damaged", 0),
    ("a request that another key has signed", Sends(|s| *s.csr.last_mut().expect("not empty") ^= 1), "not signed by the key that it names", 0),
    ("an account that is not registered", Sends(|s| claims(s, "210987654321")), "data plane 210987654321/eu-central-1 is not registered", 0),
    ("another account that is registered", Sends(|s| claims(s, "999999999999")), MISMATCH, 1),
    ("a node's evidence", Sends(|s| s.evidence = Evidence::Sts(s.proof().clone())), "a node's evidence", 0),
    ("a join token", Sends(|s| s.evidence = Evidence::JoinToken { token: "x".into(), data_plane: data_plane(ACCOUNT).expect("valid") }), "not with a join token", 0),
    // An STS that is none, or that somebody stands in front of.
    ("a redirect to an STS that says yes", Answer(|| says("302 Found", "text/xml", HONEST)), "status 302", 1),
    ("a permanent redirect", Answer(|| says("308 Permanent Redirect", "text/xml", HONEST)), "status 308", 1),
    ("yes with another status", Answer(|| says("201 Created", "text/xml", HONEST)), "status 201", 1),
    ("an error of its own", Answer(|| says("500 Internal Server Error", "text/xml", "<Code>InternalFailure</Code>")), "status 500, InternalFailure", 1),
    ("a throttled call", Answer(|| says("400 Bad Request", "text/xml", "<Code>Throttling</Code>")), "status 400, Throttling", 1),
    ("silence", Answer(|| Mode::Hangs), "STS did not answer within 5 s", 1),
    ("an answer that never begins its body", Answer(|| Mode::Says(Vec::new())), "STS cannot be reached", 1),
    ("an answer that breaks off", Answer(|| Mode::Says(b"HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: 9999\r\n\r\n<GetC".to_vec())), "cannot be received", 1),
    ("an answer of 20 KB", Answer(|| says("200 OK", "text/xml", &" ".repeat(20_000))), "more than 16384 bytes", 1),
    ("an answer without end", Answer(|| Mode::Goes("HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\n\r\n")), "STS did not answer within 5 s", 1),
    ("HTTP that is none", Answer(|| Mode::Says(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec())), "STS cannot be reached", 1),
    ("JSON", Answer(|| says("200 OK", "application/json", "{}")), "another content type than text/xml", 1),
    ("yes as a web page", Answer(|| says("200 OK", "text/html", HONEST)), "another content type than text/xml", 1),
    ("bytes that are no text", Answer(|| Mode::Says(b"HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: 2\r\n\r\n\xff\xfe".to_vec())), "not UTF-8", 1),
    ("an entity", Answer(|| xml(" xmlns", "<!DOCTYPE x [<!ENTITY a \"b\">]><x")), "its root", 1),
    ("another namespace", Answer(|| xml("sts.amazonaws.com", "sts.evil.example")), "its root", 1),
    ("another action's answer", Answer(|| xml("GetCallerIdentityResponse xmlns", "AssumeRoleResponse xmlns")), "its root", 1),
    ("a comment in a value", Answer(|| xml("outstation-agent/", "outstation-agent<!-- -->/")), "a value has elements in it", 1),
    ("CDATA", Answer(|| xml("<Account>123456789012", "<Account><![CDATA[123456789012]]>")), "a value is empty", 1),
    ("a character by its number", Answer(|| xml("<Account>1", "<Account>&#49;")), "a value is empty, or has characters", 1),
    ("an attribute", Answer(|| xml("<Account>", "<Account x=\"1\">")), "a tag is not a plain name", 1),
    ("two accounts", Answer(|| xml("<Account>", "<Account>999999999999</Account><Account>")), "an element is there twice", 1),
    ("two results", Answer(|| xml("<ResponseMetadata>", "<GetCallerIdentityResult></GetCallerIdentityResult><ResponseMetadata>")), "an element is there twice", 1),
    ("a second document", Answer(|| xml("</GetCallerIdentityResponse>", "</GetCallerIdentityResponse><x></x>")), "something follows its root", 1),
    ("no account", Answer(|| xml("<Account>123456789012</Account>", "")), "the Account is missing", 1),
    ("another account throughout", Answer(|| says("200 OK", "text/xml", &HONEST.replace(ACCOUNT, "999999999999"))), "the caller is of account 999999999999, not 123456789012", 1),
    ("a role with a path", Answer(|| xml("assumed-role/", "assumed-role/path/")), "not one of an assumed role", 1),
];

const HONEST: &str = "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
    <Arn>arn:aws:sts::123456789012:assumed-role/outstation-agent/i-0123456789abcdef0</Arn><UserId>AROAENROLLAGENT000000:i-0123456789abcdef0</UserId>\
    <Account>123456789012</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></GetCallerIdentityResponse>";

fn says(status: &str, content_type: &str, body: &str) -> Mode {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\nlocation: http://127.0.0.1:1/\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Mode::Says([head.as_bytes(), body.as_bytes()].concat())
}

fn xml(from: &str, to: &str) -> Mode {
    assert!(HONEST.contains(from), "{from}");
    says("200 OK", "text/xml", &HONEST.replacen(from, to, 1))
}

fn claims(sent: &mut Sent, account: &str) {
    let proof = sent.proof().clone();
    let data_plane = data_plane(account).expect("valid");
    sent.evidence = Evidence::AccountSts { data_plane, proof };
}

/// The broker's answer to an honest proof of which one thing is changed.
async fn attempt(rig: &Rig, account: &str, honest: &Session, change: &Change) -> Result<String> {
    let mut conversation = rig.begin().await?;
    let csr = csr(&KeyPair::generate()?)?;
    let mut signing = Signing::honest(account, rig.host(), &conversation.challenge, &csr)?;
    let mut session = honest.clone();
    match change {
        Signed(change) => change(&mut signing),
        By(other) => session = other(),
        Sends(_) | Answer(_) => {}
    }
    let (data_plane, proof) = (data_plane(account)?, signing.prove(&session)?);
    let mut sent = Sent { csr, evidence: Evidence::AccountSts { data_plane, proof } };
    if let Sends(change) = change {
        change(&mut sent);
    }
    conversation.show(sent).await?;
    reason(conversation.answer().await?)
}

fn reason(answer: FromIssuer) -> Result<String> {
    match answer {
        FromIssuer::Denied { reason, hint } if !hint.is_empty() => Ok(reason),
        other => bail!("{other:?}"),
    }
}

async fn started() -> Result<(Sts, Rig)> {
    let sts = Sts::start().await?;
    let rig = Rig::start(&sts.url).await?;
    rig.register("prod", ACCOUNT, ROLE_ID)?;
    rig.register("other", "999999999999", "AROAENROLLOTHERS00000")?;
    Ok((sts, rig))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_dishonest_proof_gets_a_certificate() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (sts, rig) = started().await?;
    let agent = session("agent");
    rig.enroll(ACCOUNT, &agent, &KeyPair::generate()?).await?;
    sts.set(says("200 OK", "text/xml", HONEST));
    rig.enroll(ACCOUNT, &agent, &KeyPair::generate()?).await?;
    let mut wrong = Vec::new();
    for (name, change, wanted, asked) in TABLE {
        sts.set(if let Answer(mode) = change { mode() } else { Mode::Honest });
        let before = sts.asked();
        let told = match attempt(&rig, ACCOUNT, &agent, change).await {
            Ok(told) => told,
            Err(error) => format!("{error:#}"),
        };
        let asked_now = sts.asked() - before;
        if !told.contains(wanted) || asked_now != *asked {
            wrong.push(format!("{name}: {told:?}, STS asked {asked_now} times; not {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(TABLE.len() >= 40);
    assert_eq!(rig.agents()?.len(), 2, "the two honest ones");
    // Nothing of all that has hurt the broker, and none of it stands in its log.
    sts.set(Mode::Honest);
    rig.enroll(ACCOUNT, &agent, &KeyPair::generate()?).await?;
    let log = std::fs::read_to_string(rig.dir.path().join("broker.log"))?;
    for secret in [&agent.token, &agent.secret, "x-amz-security-token", "Signature="] {
        assert!(!log.contains(secret), "{secret} is in the broker's log");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_good_once_and_on_its_own_connection() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (sts, rig) = started().await?;
    let (agent, key) = (session("agent"), KeyPair::generate()?);
    let mut first = rig.begin().await?;
    let mut second = rig.begin().await?;
    let sent = rig.honest(&first, ACCOUNT, &agent, &key)?;
    // Overheard, and shown elsewhere before its owner has shown it.
    second.show(sent.clone()).await?;
    assert_eq!(reason(second.answer().await?)?, MISMATCH);
    first.show(sent.clone()).await?;
    assert!(matches!(first.answer().await?, FromIssuer::Issued { .. }));
    // Once more on the connection for which it was made: that conversation is over.
    let asked = sts.asked();
    let again = first.show(sent).await;
    assert!(again.is_err() || first.answer().await.is_err(), "a challenge is for one proof");
    assert_eq!(sts.asked(), asked);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_proofs_all_the_time_is_not_passed_on_to_sts() -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let (sts, rig) = started().await?;
    let (agent, key, began) = (session("agent"), KeyPair::generate()?, Instant::now());
    let root = rig.root();
    let from = |source| Conversation::begin_from(source, rig.slot.broker_link(), &root);
    let flood = Ipv4Addr::new(127, 2, 0, 1);
    let (mut passed, mut told) = (0, None);
    // One in five seconds is given back meanwhile, however slow this machine is.
    while told.is_none() {
        assert!(passed < 20 + began.elapsed().as_secs() / 5 + 1, "{passed} have passed");
        let mut conversation = from(flood).await?;
        let mut sent = rig.honest(&conversation, ACCOUNT, &agent, &key)?;
        sent.proof().signature = "0".repeat(64);
        conversation.show(sent).await?;
        match reason(conversation.answer().await?)? {
            mismatch if mismatch == MISMATCH => passed += 1,
            other => told = Some(other),
        }
    }
    let told = told.context("set above")?;
    assert!(passed >= 20 && told.contains("too many proofs from this address"), "{passed} {told}");
    assert_eq!(sts.asked(), passed, "STS has not heard of the last");
    // Somebody else of the same account is not held up by it.
    let mut honest = from(Ipv4Addr::new(127, 2, 0, 2)).await?;
    let sent = rig.honest(&honest, ACCOUNT, &agent, &key)?;
    honest.show(sent).await?;
    assert!(matches!(honest.answer().await?, FromIssuer::Issued { .. }));
    assert!(began.elapsed() < Duration::from_secs(120), "far below what would refill it");
    Ok(())
}

/// Of another make than ours: all that is wrong about a signature, and another role.
pub async fn against_another_sts(rig: &Rig, sts: &OtherSts) -> Result<()> {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (name, change, wanted, asked) in TABLE {
        // The word that ours has for it is AWS's; theirs is not always.
        let wanted = if *asked == 1 { "STS answered with status 4" } else { wanted };
        if let Signed(_) = change {
            tried += 1;
            let told = attempt(rig, &sts.account, &sts.agent, change).await?;
            if !told.contains(wanted) {
                wrong.push(format!("{name}: {told:?}, not {wanted:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried >= 30, "{tried}");
    let none = Signed(|_| {});
    let told = attempt(rig, &sts.account, &sts.other, &none).await?;
    assert!(told.contains("the caller's role is \"other\""), "{told}");
    Ok(())
}
