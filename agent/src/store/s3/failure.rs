//! What went wrong with a request, by S3's own status and code rather than by what a client makes of them. Pure.

use std::error::Error;

/// Made where the answer is read ([`super::connector`]), and found again in whatever is made of it on the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{self:?}")]
pub enum Failure {
    Absent,
    NoBucket,
    OtherRegion,
    /// Something else is there than was named.
    Precondition,
    /// 409: others write there at this moment, and nothing was written.
    Conflict,
    /// With S3's code.
    Denied(String),
    /// No answer, or one that says to come back.
    Unreachable(String),
    Refused(String),
}

impl Failure {
    pub fn of(error: object_store::Error) -> Failure {
        let mut cause = error.source();
        while let Some(at) = cause {
            if let Some(failure) = at.downcast_ref::<Failure>() {
                return failure.clone();
            }
            cause = at.source();
        }
        Failure::Refused(first_words(&error.to_string()))
    }

    /// Of an answer that is no success.
    pub fn of_answer(status: u16, body: &str) -> Failure {
        let code = code(body);
        match (status, code.as_str()) {
            (_, "NoSuchBucket") => Failure::NoBucket,
            (_, "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed")
            | (301 | 307, _) => Failure::OtherRegion,
            (404, _) => Failure::Absent,
            (412, _) => Failure::Precondition,
            (409, _) => Failure::Conflict,
            (416, _) => Failure::Refused("InvalidRange".to_owned()),
            (401 | 403, _) | (400, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
                Failure::Denied(if code.is_empty() { format!("HTTP {status}") } else { code })
            }
            (408 | 429 | 500.., _) | (400, "RequestTimeout") => {
                Failure::Unreachable(format!("HTTP {status} {code}").trim_end().to_owned())
            }
            _ => Failure::Refused(format!("HTTP {status} {code}").trim_end().to_owned()),
        }
    }
}

/// `<Code>…</Code>` of S3's error document.
fn code(body: &str) -> String {
    let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map_or("", |(code, _)| code);
    code.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
}

/// With its causes.
pub fn whole(error: &(dyn Error + 'static)) -> String {
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(at) = cause {
        words.push(at.to_string());
        cause = at.source();
    }
    first_words(&words.join(": "))
}

fn first_words(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_status_and_code() {
        let xml = |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        let denied = |code: &str| Failure::Denied(code.to_owned());
        let passing = |why: &str| Failure::Unreachable(why.to_owned());
        let refused = |why: &str| Failure::Refused(why.to_owned());
        for (status, body, wanted) in [
            (404, xml("NoSuchKey"), Failure::Absent),
            (404, String::new(), Failure::Absent),
            (404, xml("NoSuchBucket"), Failure::NoBucket),
            (301, xml("PermanentRedirect"), Failure::OtherRegion),
            (400, xml("AuthorizationHeaderMalformed"), Failure::OtherRegion),
            (412, xml("PreconditionFailed"), Failure::Precondition),
            (409, xml("ConditionalRequestConflict"), Failure::Conflict),
            (403, xml("AccessDenied"), denied("AccessDenied")),
            (403, String::new(), denied("HTTP 403")),
            (400, xml("ExpiredToken"), denied("ExpiredToken")),
            (503, xml("SlowDown"), passing("HTTP 503 SlowDown")),
            (500, "<html>".to_owned(), passing("HTTP 500")),
            (400, xml("InvalidArgument"), refused("HTTP 400 InvalidArgument")),
            (400, xml("Ev\u{1b}[31mil"), refused("HTTP 400 Ev31mil")),
        ] {
            assert_eq!(Failure::of_answer(status, &body), wanted, "{status} {body}");
        }
    }
}
