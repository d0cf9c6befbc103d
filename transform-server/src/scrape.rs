//! `/metrics` for Prometheus, and nothing else, on an address of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::pool::Pool;

/// One or two scrapers, and a person beside them.
const SCRAPERS_MAX: usize = 16;
/// A scraper that takes longer than this to ask and be answered is cut.
const SCRAPE_MAX: Duration = Duration::from_secs(10);

/// Runs until it is dropped.
pub async fn serve(listener: TcpListener, pool: Arc<Pool>) {
    let places = Arc::new(Semaphore::new(SCRAPERS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: until others have let go of some.
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let pool = pool.clone();
        tokio::spawn(async move {
            let _place = place;
            let answer = service_fn(|request| {
                let response = respond(&request, &pool);
                async { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            let _ = timeout(SCRAPE_MAX, connection).await;
        });
    }
}

fn respond(request: &Request<Incoming>, pool: &Pool) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            pool.metrics.text(),
        ),
        _ => (StatusCode::NOT_FOUND, "text/plain", "GET /metrics is all there is\n".into()),
    };
    let body = Full::new(Bytes::from(text));
    let response = Response::builder().status(status).header(CONTENT_TYPE, kind);
    response.body(body).expect("these headers are valid")
}
