//! Between the SDK and the wire: no call that may change something is sent before the journal has it.

use std::sync::Arc;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::Intercept;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeTransmitInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpResponse, Metadata};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};

use super::Journal;
use super::record::Event;

/// A body as it is written down: AWS's own are some hundred bytes, 50 tags some kilobytes.
const REQUEST_CHARS_MAX: usize = 32 << 10;

#[derive(Debug, Clone)]
pub struct Journaled(pub Arc<Journal>);

/// The record of the attempt that is under way.
#[derive(Debug, Clone, Copy)]
struct Written(Option<u64>);

impl Storable for Written {
    type Storer = StoreReplace<Self>;
}

impl Intercept for Journaled {
    fn name(&self) -> &'static str {
        "Journaled"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some((service, call)) = operation(cfg) else {
            return Err("a call without a name is not made".into());
        };
        if !may_change(&call) {
            return Ok(());
        }
        let body = context.request().body().bytes().unwrap_or_default();
        let request = String::from_utf8_lossy(body).chars().take(REQUEST_CHARS_MAX).collect();
        let seq = self.0.before_call(Event::Call { service, call, request })?;
        cfg.interceptor_state().store_put(Written(Some(seq)));
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some(Written(Some(of))) = cfg.load::<Written>().copied() else { return Ok(()) };
        cfg.interceptor_state().store_put(Written(None));
        let Answer { status, code, request_id } = Answer::of(context.response());
        self.0.note(Event::Outcome { of, status, code, request_id });
        Ok(())
    }

    fn read_after_execution(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some((service, call)) = operation(cfg).filter(|(_, call)| !may_change(call)) else {
            return Ok(());
        };
        let Answer { status, code, request_id } = Answer::of(context.response());
        self.0.note(Event::Look { service, call, status, code, request_id });
        Ok(())
    }
}

/// What AWS said; nothing of it if there was no answer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    status: Option<u16>,
    code: Option<String>,
    request_id: Option<String>,
}

impl Answer {
    fn of(response: Option<&HttpResponse>) -> Answer {
        response.map_or_else(Answer::default, |response| Answer {
            status: Some(response.status().as_u16()),
            code: error_code(response),
            request_id: request_id(response),
        })
    }
}

fn operation(cfg: &ConfigBag) -> Option<(String, String)> {
    let metadata = cfg.load::<Metadata>()?;
    Some((metadata.service().to_owned(), metadata.name().to_owned()))
}

/// By AWS's own naming. A name that is not known to only look counts as one that changes.
fn may_change(call: &str) -> bool {
    !(call.starts_with("Describe") || call == "GetCallerIdentity")
}

fn request_id(response: &HttpResponse) -> Option<String> {
    let id = response.headers().get("x-amzn-requestid")?;
    Some(id.chars().filter(char::is_ascii_graphic).take(64).collect())
}

/// `<Code>…</Code>` of an error in AWS's Query protocol.
pub(in crate::account) fn error_code(response: &HttpResponse) -> Option<String> {
    if response.status().is_success() {
        return None;
    }
    let body = std::str::from_utf8(response.body().bytes()?).ok()?;
    let code = body.split_once("<Code>")?.1.split_once("</Code>")?.0;
    Some(code.chars().filter(char::is_ascii_alphanumeric).take(64).collect())
}
