//! For tests: an HTTP server that knows nothing, in the place of STS or instance metadata.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outstation_protocol::evidence::{self, Audience, Purpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

pub const INSTANCE: &str = "i-0123456789abcdef0";

/// What a whole test may wait for; generous, because it passes only when something is broken.
const DEADLINE: Duration = Duration::from_secs(30);

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect(what)
}

/// Answers each request with what `answer` makes of its text: status line, body.
pub struct StubHttp {
    pub url: String,
    /// Every request, whole.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl StubHttp {
    pub async fn start(
        mut answer: impl FnMut(&str) -> (&'static str, String) + Send + 'static,
    ) -> StubHttp {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                // The only body that anybody sends here is the one of GetCallerIdentity.
                let whole = |request: &[u8]| {
                    request.ends_with(evidence::BODY.as_bytes())
                        || (request.ends_with(b"\r\n\r\n") && !request.starts_with(b"POST"))
                };
                while !whole(&request) {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let (status, body) = answer(&request);
                log.lock().expect("no panic").push(request);
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: text/xml\r\n\
                     location: http://127.0.0.1:1/\r\ncontent-length: {}\r\n\
                     connection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        StubHttp { url, asked }
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// What STS says of an instance of the role `outstation-node`.
pub fn identity_xml(session: &str) -> String {
    format!(
        r#"<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<GetCallerIdentityResult><Arn>arn:aws:sts::123456789012:assumed-role/outstation-node/{session}</Arn>
<UserId>AROAABCDEFGHIJKLMNOPQ:{session}</UserId><Account>123456789012</Account>
</GetCallerIdentityResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata>
</GetCallerIdentityResponse>"#
    )
}

/// Instance metadata as far as the link and the supervisor ask it. `lifecycle` is what it says
/// of the future.
pub async fn stub_imds(lifecycle: Arc<Mutex<&'static str>>) -> StubHttp {
    StubHttp::start(move |request| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let path = path.strip_prefix("/latest/").unwrap_or_default();
        let body = match path {
            "api/token" => "token",
            "meta-data/autoscaling/target-lifecycle-state" => *lifecycle.lock().expect("no panic"),
            "meta-data/iam/security-credentials" => "outstation-node",
            "meta-data/iam/security-credentials/outstation-node" => {
                r#"{"Code":"Success","AccessKeyId":"ASIAABCDEFGHIJ234567","SecretAccessKey":"s",
                "Token":"t","Expiration":"2026-11-22T12:00:00Z"}"#
            }
            _ => return ("404 Not Found", String::new()),
        };
        ("200 OK", body.to_owned())
    })
    .await
}

pub fn audience() -> Audience {
    Audience {
        purpose: Purpose::NodeLink,
        tenant: "dev".try_into().expect("valid"),
        account: "123456789012".try_into().expect("valid"),
        region: "eu-central-1".try_into().expect("valid"),
    }
}
