//! What is not on the data path, from a bare HTTP/2 stream to tonic's services and back.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use http_body::{Body as _, Frame};
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

pub async fn serve(routes: Routes, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let request = request.map(|stream| Body::new(Received { stream, data_ended: false }));
    let answered = tokio::select! {
        answered = routes.oneshot(request) => answered,
        _ = poll_fn(|context| respond.poll_reset(context)) => return,
    };
    let (parts, body) = answered.unwrap_or_else(|never| match never {}).into_parts();
    let response = Response::from_parts(parts, ());
    let Ok(mut stream) = respond.send_response(response, body.is_end_stream()) else { return };
    if body.is_end_stream() {
        return;
    }
    // Fails when the caller has gone: there is nobody to tell.
    let _ = send(body, &mut stream).await;
}

async fn send(body: Body, stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    let mut body = std::pin::pin!(body);
    loop {
        let frame = tokio::select! {
            frame = poll_fn(|context| body.as_mut().poll_frame(context)) => frame,
            reason = poll_fn(|context| stream.poll_reset(context)) => return Err(reason?.into()),
        };
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => send_data(data, stream).await?,
                Err(frame) => {
                    return stream.send_trailers(frame.into_trailers().unwrap_or_default());
                }
            },
            Some(Err(_)) => {
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => return stream.send_trailers(HeaderMap::new()),
        }
    }
}

/// As the caller gives room for it.
async fn send_data(mut data: Bytes, stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(room) = poll_fn(|context| stream.poll_capacity(context)).await else {
            return Ok(());
        };
        let room = room?.min(data.len());
        stream.send_data(data.split_to(room), false)?;
    }
    Ok(())
}

/// A request's body as tonic reads one.
struct Received {
    stream: RecvStream,
    data_ended: bool,
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(context)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(io::Error::other(error))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
