//! `aws-sim serve`: the wire front on a socket, and the driver that turns the model's effects into processes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, put};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

mod driver;
mod spawner;

use crate::config::Config;
use crate::policy::Judged;
use crate::{Hinted, clock};
use driver::Driver;

/// The largest call that makes sense is a create with 50 tags of 384 characters, encoded: well below this.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// How often time passes for the model when nobody calls.
const TICK: Duration = Duration::from_millis(50);

/// Runs until SIGTERM or SIGINT; then ends every instance.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    std::fs::create_dir_all(config.dir.join("instances"))
        .with_context(|| format!("create {}", config.dir.display()))?;
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        Hinted::new(
            format!("cannot listen on {}: {error}", config.listen),
            "stop the process that has the port, or set another `listen` in the configuration",
        )
    })?;
    let driver = Arc::new(Driver::new(&config)?);
    driver.probe().await?;
    let app = Router::new()
        .route("/_sim/judged", get(judged))
        .route("/_sim/health", get(async || "ok"))
        .route("/_sim/groups", get(groups))
        .route("/_sim/instances", get(instances))
        .route("/_sim/metrics", put(set_metric))
        .fallback(call)
        .with_state(driver.clone());
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    tracing::info!(endpoint = %format!("http://{}", config.listen), account = config.account, region = config.region, "simulated AWS listens");
    let ticking = tokio::spawn({
        let driver = driver.clone();
        async move { driver.run(TICK).await }
    });
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.abort();
    ticking.abort();
    let _ = ticking.await;
    tracing::info!("ending every instance");
    driver.end_all().await;
    Ok(())
}

async fn judged(State(driver): State<Arc<Driver>>) -> Json<Vec<Judged>> {
    Json(driver.judged())
}

async fn call(State(driver): State<Arc<Driver>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, REQUEST_BYTES_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let request = axum::http::Request::from_parts(parts, body);
    driver.call(&request, clock::now()).map(Body::from)
}

async fn groups(State(driver): State<Arc<Driver>>) -> Json<Vec<driver::GroupLine>> {
    Json(driver.groups())
}

/// What CloudWatch shall say of a metric from now on.
async fn set_metric(
    State(driver): State<Arc<Driver>>,
    Json(metric): Json<driver::MetricLine>,
) -> StatusCode {
    driver.set_metric(metric);
    StatusCode::NO_CONTENT
}

async fn instances(State(driver): State<Arc<Driver>>) -> Json<Vec<driver::InstanceLine>> {
    Json(driver.instances())
}
