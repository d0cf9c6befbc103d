//! What STS answered, judged: status, type and size, then a reader for exactly the one document
//! that GetCallerIdentity returns, then who it names. Not a general XML parser on purpose: what
//! it does not know, it refuses.

use crate::ids::{AccountId, Region};

/// The namespace of the answer's root; STS has no other API version.
pub const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
/// An honest answer has some 500 bytes.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;
const DECLARATIONS: [&str; 2] =
    [r#"<?xml version="1.0" encoding="UTF-8"?>"#, r#"<?xml version="1.0" encoding="utf-8"?>"#];

/// Whom the verifier is ready to believe in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedCaller {
    pub region: Region,
    pub account: AccountId,
    /// The role's name without its path, which STS drops. `None`: any role of the account, for a
    /// caller of this function that judges the session name against its own records.
    pub role: Option<String>,
    /// The role's unique id (`AROA…`), which another role of the same name does not have.
    pub role_id: Option<String>,
}

/// Who signed the request, by STS's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallerIdentity {
    pub account: AccountId,
    pub role: String,
    /// For an instance's role: the instance id.
    pub session: String,
    pub role_id: String,
}

/// Why an answer shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("STS answered with status {status}{}", named(code.as_deref()))]
    Status {
        status: u16,
        /// Such as `SignatureDoesNotMatch`; for people only.
        code: Option<String>,
    },
    #[error("STS answered with another content type than text/xml")]
    ContentType,
    #[error("STS answered with {bytes} bytes, more than {ANSWER_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("STS's answer is not a GetCallerIdentityResponse: {what}")]
    Shape { what: &'static str },
    #[error("STS's answer names an ARN that is not one of an assumed role")]
    NotARole,
    #[error("STS's answer contradicts itself: {what}")]
    Contradiction { what: &'static str },
    #[error("the caller is of partition {found:?}, not {expected:?}")]
    Partition { found: String, expected: &'static str },
    #[error("the caller is of account {found}, not {expected}")]
    Account { found: AccountId, expected: AccountId },
    #[error("the caller's role is {found:?}, not {expected:?}")]
    Role { found: String, expected: String },
    #[error("the caller's role has another unique id than the one registered")]
    RoleId,
}

/// The AWS partition that a region is of.
pub fn partition_of(region: &Region) -> &'static str {
    match region.as_str() {
        r if r.starts_with("cn-") => "aws-cn",
        r if r.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// Who the caller is, if the answer is exactly what STS sends and names whom we expect.
pub fn judge_response(
    status: u16,
    content_type: Option<&str>,
    body: &[u8],
    expected: &ExpectedCaller,
) -> Result<CallerIdentity, AnswerError> {
    if status != 200 {
        return Err(AnswerError::Status { status, code: code_of(body) });
    }
    let essence = content_type.and_then(|raw| raw.split(';').next()).map(str::trim);
    if essence != Some("text/xml") {
        return Err(AnswerError::ContentType);
    }
    if body.len() > ANSWER_BYTES_MAX {
        return Err(AnswerError::TooLarge { bytes: body.len() });
    }
    let Document { arn, user_id, account } = read_document(body)?;
    judge_caller(&arn, &user_id, &account, expected)
}

fn judge_caller(
    arn: &str,
    user_id: &str,
    account: &str,
    expected: &ExpectedCaller,
) -> Result<CallerIdentity, AnswerError> {
    let parts: Vec<&str> = arn.split(':').collect();
    let &["arn", partition, "sts", "", arn_account, resource] = parts.as_slice() else {
        return Err(AnswerError::NotARole);
    };
    let segments: Vec<&str> = resource.split('/').collect();
    let &["assumed-role", role, session] = segments.as_slice() else {
        return Err(AnswerError::NotARole);
    };
    if !is_iam_name(role) || !is_iam_name(session) {
        return Err(AnswerError::NotARole);
    }
    let Some((role_id, id_session)) = user_id.split_once(':') else {
        return Err(AnswerError::NotARole);
    };
    let role_id_shape = (16..=128).contains(&role_id.len())
        && role_id.starts_with("AROA")
        && role_id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if !role_id_shape {
        return Err(AnswerError::NotARole);
    }
    if id_session != session {
        return Err(AnswerError::Contradiction { what: "Arn and UserId name two sessions" });
    }
    if arn_account != account {
        return Err(AnswerError::Contradiction { what: "Arn and Account name two accounts" });
    }
    let account = AccountId::try_from(account)
        .map_err(|_| AnswerError::Shape { what: "the Account is no account id" })?;

    let expected_partition = partition_of(&expected.region);
    if partition != expected_partition {
        let found = partition.to_owned();
        return Err(AnswerError::Partition { found, expected: expected_partition });
    }
    if account != expected.account {
        return Err(AnswerError::Account { found: account, expected: expected.account.clone() });
    }
    if let Some(expected) = expected.role.as_deref().filter(|expected| *expected != role) {
        let found = role.to_owned();
        return Err(AnswerError::Role { found, expected: expected.to_owned() });
    }
    if expected.role_id.as_deref().is_some_and(|expected| expected != role_id) {
        return Err(AnswerError::RoleId);
    }
    Ok(CallerIdentity {
        account,
        role: role.to_owned(),
        session: session.to_owned(),
        role_id: role_id.to_owned(),
    })
}

/// What AWS calls its refusal, as far as it looks like a name.
fn code_of(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body.get(..ANSWER_BYTES_MAX).unwrap_or(body)).ok()?;
    let (code, _) = text.split_once("<Code>")?.1.split_once("</Code>")?;
    let is_name = (1..=64).contains(&code.len())
        && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    is_name.then(|| code.to_owned())
}

fn named(code: Option<&str>) -> String {
    code.map(|code| format!(", {code}")).unwrap_or_default()
}

/// What IAM allows in names of roles and sessions.
fn is_iam_name(raw: &str) -> bool {
    (1..=64).contains(&raw.len())
        && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b))
}

struct Document {
    arn: String,
    user_id: String,
    account: String,
}

fn read_document(body: &[u8]) -> Result<Document, AnswerError> {
    let text = std::str::from_utf8(body).map_err(|_| shape("not UTF-8"))?;
    let text = DECLARATIONS.iter().find_map(|d| text.strip_prefix(d)).unwrap_or(text);
    let mut reader = Reader { rest: text };
    reader.space();
    reader.literal(&format!("<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\">"), "its root")?;

    let (mut arn, mut user_id, mut account) = (None, None, None);
    let (mut result, mut metadata) = (false, false);
    while let Some(name) = reader.child("GetCallerIdentityResponse")? {
        match name {
            "GetCallerIdentityResult" if !result => {
                result = true;
                while let Some(name) = reader.child("GetCallerIdentityResult")? {
                    let slot = match name {
                        "Arn" => &mut arn,
                        "UserId" => &mut user_id,
                        "Account" => &mut account,
                        _ => return Err(shape("an element that does not belong there")),
                    };
                    if slot.replace(reader.text(name)?).is_some() {
                        return Err(shape("an element is there twice"));
                    }
                }
            }
            "ResponseMetadata" if !metadata => {
                metadata = true;
                let mut request_id = None;
                while let Some(name) = reader.child("ResponseMetadata")? {
                    if name != "RequestId" || request_id.replace(reader.text(name)?).is_some() {
                        return Err(shape("an element that does not belong there"));
                    }
                }
                request_id.ok_or(shape("the RequestId is missing"))?;
            }
            "GetCallerIdentityResult" | "ResponseMetadata" => {
                return Err(shape("an element is there twice"));
            }
            _ => return Err(shape("an element that does not belong there")),
        }
    }
    reader.space();
    if !reader.rest.is_empty() {
        return Err(shape("something follows its root"));
    }
    if !metadata {
        return Err(shape("the ResponseMetadata is missing"));
    }
    Ok(Document {
        arn: arn.ok_or(shape("the Arn is missing"))?,
        user_id: user_id.ok_or(shape("the UserId is missing"))?,
        account: account.ok_or(shape("the Account is missing"))?,
    })
}

fn shape(what: &'static str) -> AnswerError {
    AnswerError::Shape { what }
}

/// Knows plain start tags, end tags and text. Attributes, comments, CDATA, processing
/// instructions, DTDs, entities and empty-element tags fit none of them.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    fn literal(&mut self, literal: &str, what: &'static str) -> Result<(), AnswerError> {
        self.rest = self.rest.strip_prefix(literal).ok_or(shape(what))?;
        Ok(())
    }

    /// The name of the next child, its start tag consumed; `None` at the parent's end tag, also
    /// consumed.
    fn child(&mut self, parent: &str) -> Result<Option<&'a str>, AnswerError> {
        self.space();
        let inner = self.rest.strip_prefix('<').ok_or(shape("text between elements"))?;
        let (tag, rest) = inner.split_once('>').ok_or(shape("a tag does not end"))?;
        self.rest = rest;
        if let Some(name) = tag.strip_prefix('/') {
            return if name == parent { Ok(None) } else { Err(shape("tags do not nest")) };
        }
        if tag.is_empty() || !tag.bytes().all(|b| b.is_ascii_alphabetic()) {
            return Err(shape("a tag is not a plain name"));
        }
        Ok(Some(tag))
    }

    /// The text up to the end tag of `name`, which is consumed.
    fn text(&mut self, name: &str) -> Result<String, AnswerError> {
        let end = self.rest.find('<').ok_or(shape("an element does not end"))?;
        let (text, rest) = self.rest.split_at(end);
        let allowed = |b: u8| b.is_ascii_graphic() && !b"&>\"'".contains(&b);
        if !(1..=2048).contains(&text.len()) || !text.bytes().all(allowed) {
            return Err(shape("a value is empty, or has characters that none has"));
        }
        self.rest = rest;
        self.literal(&format!("</{name}>"), "a value has elements in it")?;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HONEST: &str = r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>arn:aws:sts::123456789012:assumed-role/outstation-node/i-0123456789abcdef0</Arn>
    <UserId>AROAABCDEFGHIJKLMNOPQ:i-0123456789abcdef0</UserId>
    <Account>123456789012</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata>
    <RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>
  </ResponseMetadata>
</GetCallerIdentityResponse>
"#;

    fn expected() -> ExpectedCaller {
        ExpectedCaller {
            region: Region::try_from("eu-central-1").expect("valid"),
            account: AccountId::try_from("123456789012").expect("valid"),
            role: Some("outstation-node".into()),
            role_id: Some("AROAABCDEFGHIJKLMNOPQ".into()),
        }
    }

    fn judge(body: &str) -> Result<CallerIdentity, AnswerError> {
        judge_response(200, Some("text/xml"), body.as_bytes(), &expected())
    }

    #[test]
    fn an_honest_answer_names_the_caller() {
        let compact: String = HONEST.lines().map(str::trim).collect();
        let declared = format!("{}\n{HONEST}", DECLARATIONS[0]);
        for body in [HONEST, &compact, &declared] {
            let caller = judge(body).expect("an honest answer");
            assert_eq!(caller.session, "i-0123456789abcdef0");
            assert_eq!(caller.role, "outstation-node");
            assert_eq!(caller.role_id, "AROAABCDEFGHIJKLMNOPQ");
        }
    }

    #[test]
    fn status_type_and_size_come_first() {
        let large = "x".repeat(ANSWER_BYTES_MAX + 1);
        let refused = "<ErrorResponse><Error><Code>ExpiredToken</Code></Error></ErrorResponse>";
        let status = |status, code: Option<&str>| AnswerError::Status {
            status,
            code: code.map(str::to_owned),
        };
        assert_eq!(
            status(403, Some("ExpiredToken")).to_string(),
            "STS answered with status 403, ExpiredToken"
        );
        for (status, content_type, body, wanted) in [
            (403, Some("text/xml"), HONEST, status(403, None)),
            (403, None, refused, status(403, Some("ExpiredToken"))),
            (403, None, "<Code>a\nb</Code>", status(403, None)),
            (403, None, "<Code></Code>", status(403, None)),
            (302, Some("text/xml"), HONEST, status(302, None)),
            (201, Some("text/xml"), HONEST, status(201, None)),
            (200, None, HONEST, AnswerError::ContentType),
            (200, Some("application/json"), HONEST, AnswerError::ContentType),
            (200, Some("text/xmlx"), HONEST, AnswerError::ContentType),
            (200, Some("text/xml"), &large, AnswerError::TooLarge { bytes: 16 * 1024 + 1 }),
        ] {
            let judged = judge_response(status, content_type, body.as_bytes(), &expected());
            assert_eq!(judged, Err(wanted));
        }
        let with_charset = Some("text/xml; charset=utf-8");
        assert!(judge_response(200, with_charset, HONEST.as_bytes(), &expected()).is_ok());
    }

    #[test]
    fn another_shape_is_refused() {
        let twice = "an element is there twice";
        let alien = "an element that does not belong there";
        let text = "a value is empty, or has characters that none has";
        let tag = "a tag is not a plain name";
        let root = "its root";
        let account = "<Account>123456789012</Account>";
        for (from, to, wanted) in [
            // The root and its namespace.
            (" xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"", "", root),
            ("2011-06-15", "2010-01-01", root),
            ("<GetCallerIdentityResponse xmlns", "<GetCallerIdentityResponse a=\"b\" xmlns", root),
            (
                "<GetCallerIdentityResponse xmlns",
                "<!DOCTYPE x><GetCallerIdentityResponse xmlns",
                root,
            ),
            (
                "<GetCallerIdentityResponse xmlns",
                "<!-- x --><GetCallerIdentityResponse xmlns",
                root,
            ),
            ("<GetCallerIdentityResponse xmlns", "<AssumeRoleResponse xmlns", root),
            // Children: exact, each once, plain.
            (account, "", "the Account is missing"),
            (account, "<Account>123456789012</Account><Account>999999999999</Account>", twice),
            (account, "<Account>123456789012</Account><Extra>1</Extra>", alien),
            (account, "<Account/>", tag),
            (account, "<Account x=\"1\">123456789012</Account>", tag),
            (account, "<Account>123456789012</Account><!-- x -->", tag),
            (account, "<Account>123456789012</Account>text", "text between elements"),
            (account, "<Account>123456789012<!-- x --></Account>", "a value has elements in it"),
            (account, "<Account><![CDATA[123456789012]]></Account>", text),
            (account, "<Account>&#49;23456789012</Account>", text),
            (account, "<Account> 123456789012</Account>", text),
            (account, "<Account></Account>", text),
            (account, "<Account>12345678901a</Account>", ""),
            (account, "<account>123456789012</account>", alien),
            (account, "<Account>123456789012</Accounts>", "a value has elements in it"),
            ("</GetCallerIdentityResult>", "</GetCallerIdentityResponse>", "tags do not nest"),
            (
                "  <ResponseMetadata>",
                "  <GetCallerIdentityResult></GetCallerIdentityResult><ResponseMetadata>",
                twice,
            ),
            (
                "<RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>",
                "",
                "the RequestId is missing",
            ),
            (
                "</GetCallerIdentityResponse>",
                "</GetCallerIdentityResponse>x",
                "something follows its root",
            ),
            ("</GetCallerIdentityResponse>", "</GetCallerIdentityResponse", "a tag does not end"),
        ] {
            let forged = HONEST.replacen(from, to, 1);
            assert_ne!(forged, HONEST, "{from}");
            match judge(&forged).expect_err(to) {
                AnswerError::Shape { what } => assert_eq!(what, wanted, "{to}"),
                // The one case whose shape is right and whose account is not the ARN's.
                AnswerError::Contradiction { .. } => assert_eq!(wanted, "", "{to}"),
                other => panic!("{to}: {other}"),
            }
        }
        assert_eq!(judge(""), Err(shape(root)));
        let not_utf8 = judge_response(200, Some("text/xml"), b"\xff", &expected());
        assert_eq!(not_utf8, Err(shape("not UTF-8")));
        let only_root = format!(
            "<GetCallerIdentityResponse xmlns=\"{NAMESPACE}\"></GetCallerIdentityResponse>"
        );
        assert_eq!(judge(&only_root), Err(shape("the ResponseMetadata is missing")));
    }

    #[test]
    fn another_caller_is_refused() {
        let account = |found: &str| AnswerError::Account {
            found: AccountId::try_from(found).expect("valid"),
            expected: expected().account,
        };
        let arn = "arn:aws:sts::123456789012:assumed-role/outstation-node/i-0123456789abcdef0";
        for (from, to, wanted) in [
            (arn, "arn:aws:iam::123456789012:user/eve", AnswerError::NotARole),
            (arn, "arn:aws:iam::123456789012:root", AnswerError::NotARole),
            (arn, "arn:aws:sts::123456789012:federated-user/eve", AnswerError::NotARole),
            (arn, "arn:aws:sts::123456789012:assumed-role/outstation-node", AnswerError::NotARole),
            (
                arn,
                "arn:aws:sts::123456789012:assumed-role/path/outstation-node/i-1",
                AnswerError::NotARole,
            ),
            (
                arn,
                "arn:aws:sts:eu:123456789012:assumed-role/outstation-node/i-1",
                AnswerError::NotARole,
            ),
            (
                "arn:aws:",
                "arn:aws-cn:",
                AnswerError::Partition { found: "aws-cn".into(), expected: "aws" },
            ),
            ("123456789012", "999999999999", account("999999999999")),
            (
                "outstation-node/",
                "other/",
                AnswerError::Role { found: "other".into(), expected: "outstation-node".into() },
            ),
            ("AROAABCDEFGHIJKLMNOPQ", "AROAZZZZZZZZZZZZZZZZZ", AnswerError::RoleId),
            ("AROAABCDEFGHIJKLMNOPQ", "AIDAABCDEFGHIJKLMNOPQ", AnswerError::NotARole),
            (
                "OPQ:i-0123456789abcdef0",
                "OPQ:i-0fffffffffffffff0",
                AnswerError::Contradiction { what: "Arn and UserId name two sessions" },
            ),
            (
                "sts::123456789012",
                "sts::999999999999",
                AnswerError::Contradiction { what: "Arn and Account name two accounts" },
            ),
        ] {
            let times = if to == "999999999999" { 2 } else { 1 };
            let forged = HONEST.replacen(from, to, times);
            assert_ne!(forged, HONEST, "{from}");
            assert_eq!(judge(&forged), Err(wanted), "{to}");
        }
    }

    #[test]
    fn partitions_follow_regions() {
        for (region, partition) in
            [("eu-central-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")]
        {
            assert_eq!(partition_of(&Region::try_from(region).expect("valid")), partition);
        }
    }
}
