//! The simulated AWS's own paths: what it has, beside what AWS would say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::iam::Judged;

const TIMEOUT: Duration = Duration::from_secs(5);
/// A hundred instances at 500 bytes each, with room.
const ANSWER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// An instance, as `/_sim/instances` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct SimInstance {
    pub instance_id: String,
    pub group: String,
    pub address: String,
    /// As seen from here; killing it is the death of the instance.
    pub launcher_pid: Option<u32>,
    pub lifecycle_state: String,
}

/// A group, as `/_sim/groups` tells it.
#[derive(Debug, Clone, Deserialize)]
pub struct SimGroup {
    pub name: String,
    pub desired: u32,
    /// Those that are leaving included.
    pub instances: u32,
}

/// Where it listens. Each question is a connection of its own.
#[derive(Debug, Clone, Copy)]
pub struct Sim(SocketAddr);

impl Sim {
    pub fn at(address: SocketAddr) -> Sim {
        Sim(address)
    }

    pub async fn is_up(&self) -> bool {
        get(self.0, "/_sim/health").await.is_ok()
    }

    pub async fn judged(&self) -> anyhow::Result<Vec<Judged>> {
        let body = get(self.0, "/_sim/judged").await?;
        serde_json::from_slice(&body).context("read how calls were judged")
    }

    pub async fn groups(&self) -> anyhow::Result<Vec<SimGroup>> {
        let body = get(self.0, "/_sim/groups").await?;
        serde_json::from_slice(&body).context("read the simulated groups")
    }

    pub async fn instances(&self) -> anyhow::Result<Vec<SimInstance>> {
        let body = get(self.0, "/_sim/instances").await?;
        serde_json::from_slice(&body).context("read the simulated instances")
    }

    /// Work of a group from now on, shared by its instances; `None`: CloudWatch has no data.
    pub async fn set_cpu_total(&self, asg_name: &str, percent: Option<f64>) -> anyhow::Result<()> {
        let metric = CpuTotal {
            namespace: "AWS/EC2",
            name: "CPUUtilization",
            dimensions: [("AutoScalingGroupName", asg_name.to_owned())].into(),
            total: percent,
        };
        let json = serde_json::to_string(&metric).context("write the metric")?;
        ask(self.0, "PUT", "/_sim/metrics", &json).await.map(drop)
    }
}

/// The CPU that CloudWatch shows for an AutoScaling group: of all its instances together, in percent.
#[derive(Debug, Serialize)]
struct CpuTotal {
    namespace: &'static str,
    name: &'static str,
    dimensions: BTreeMap<&'static str, String>,
    total: Option<f64>,
}

async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    ask(address, "GET", path, "").await
}

/// One request: HTTP/1.0, one answer, connection closed.
async fn ask(address: SocketAddr, method: &str, path: &str, json: &str) -> anyhow::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        // HTTP/1.0: the answer is never in chunks and ends with the connection.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
            json.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange)
        .await
        .context("the simulated AWS did not answer within 5 s")?
        .context("ask the simulated AWS")?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("half an answer")?;
    let status = String::from_utf8_lossy(&answer[..end]);
    let status = status.split(' ').nth(1).unwrap_or("none");
    anyhow::ensure!(
        ["200", "204"].contains(&status),
        "the simulated AWS answers {path} with status {status}"
    );
    Ok(answer[end + 4..].to_vec())
}
