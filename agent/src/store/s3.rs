//! An account store in a bucket of S3. Requests run on a thread of their own; who asks waits for the answer, within a bound
//! (docs/decisions/0014). A write whose answer was lost is told from somebody else's by its bytes.

use std::future::Future;
use std::ops::Range;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use aws_credential_types::provider::SharedCredentialsProvider;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    RetryConfig, UpdateVersion,
};
use outstation_protocol::ids::Region;
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::time::{sleep, timeout};

use self::failure::Failure;
use super::{Entry, Object, Read, StoreError, Version};
use crate::clock;

mod connector;
mod failure;

/// S3 answers within some 50 ms; a segment of 4 MiB takes longer.
const ATTEMPT_MAX: Duration = Duration::from_secs(3);
/// Of all attempts of a call together.
const CALL_MAX: Duration = Duration::from_secs(8);
/// Before the second attempt; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(100);
/// After a call got no answer, further ones fail at once for so long: tasks must not wait one after the other.
const DOWN: Duration = Duration::from_secs(1);
/// A thousand objects each.
const PAGES_MAX: usize = 1000;
const KEYS_OF_A_PAGE: usize = 1000;

/// How a bucket is reached.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Of the bucket; without one it is the environment's.
    pub region: Option<String>,
    /// Instead of AWS's own, for what only speaks like S3.
    pub endpoint: Option<String>,
    /// Without any it is the SDK's chain of providers: environment, profile, the instance's role.
    pub credentials: Option<SharedCredentialsProvider>,
}

impl Access {
    pub fn of_environment(region: Option<&Region>) -> Access {
        let endpoint = std::env::var("AWS_ENDPOINT_URL_S3").ok().filter(|url| !url.is_empty());
        Access { region: region.map(ToString::to_string), endpoint, credentials: None }
    }
}

#[derive(Debug)]
pub struct S3 {
    bucket: String,
    prefix: String,
    region: String,
    client: std::sync::Arc<AmazonS3>,
    /// Until when nobody is asked, and why.
    down: Mutex<Option<(Instant, String)>>,
    thread: Thread,
}

/// The runtime on which requests run. Given up in the background: it may be dropped by a task of another runtime.
#[derive(Debug)]
struct Thread(Option<Runtime>);

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Thread {
    fn start() -> Result<Thread, StoreError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("account-store")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| StoreError::Client { why: error.to_string() })?;
        Ok(Thread(Some(runtime)))
    }

    /// None if there is no answer within the bound.
    fn run<T: Send + 'static>(
        &self,
        at_most: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, answer) = mpsc::sync_channel(1);
        let runtime = self.0.as_ref().expect("taken in drop alone");
        runtime.spawn(async move {
            // Nobody listens any more: whoever asked has given up.
            let _ = sender.send(work.await);
        });
        waiting(|| answer.recv_timeout(at_most).ok())
    }
}

/// A worker that waits here hands its other tasks over first; without that, agents of few cores would stand still.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
        Ok(_) | Err(_) => wait(),
    }
}

impl S3 {
    pub fn open(bucket: &str, prefix: &str, access: Access) -> Result<S3, StoreError> {
        let thread = Thread::start()?;
        let Access { region, endpoint, credentials } = access;
        let sdk = thread.run(CALL_MAX, connector::sdk(region, credentials));
        let failed = |why: String| StoreError::Client { why };
        let sdk = sdk
            .ok_or_else(|| failed("the environment's configuration is not to be had".to_owned()))?;
        let region = sdk.region().map_or_else(|| "us-east-1".to_owned(), ToString::to_string);
        let http = connector::Http::new().map_err(|error| failed(error.to_string()))?;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(&region)
            .with_credentials(std::sync::Arc::new(connector::Credentials::of(&sdk)))
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            // Here a retry has to know whether the attempt before may have been carried out.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_http_connector(http);
        let china =
            region.starts_with("cn-").then(|| format!("https://s3.{region}.amazonaws.com.cn"));
        if let Some(endpoint) = endpoint.or(china) {
            builder = builder.with_endpoint(endpoint);
        }
        let client = builder.build().map_err(|error| failed(error.to_string()))?;
        Ok(S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            region,
            client: std::sync::Arc::new(client),
            down: Mutex::default(),
            thread,
        })
    }

    pub fn name(&self, key: &str) -> String {
        format!("s3://{}/{}{key}", self.bucket, self.prefix)
    }

    fn path(&self, key: &str) -> Path {
        Path::from(format!("{}{key}", self.prefix))
    }

    /// One answer, asked for as often as may help within the bound.
    fn ask<T, F>(
        &self,
        what: &What<'_>,
        attempt: impl Fn() -> F + Send + Sync + 'static,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        self.ask_knowing(attempt).map_err(|(failure, _)| self.error(what, failure))
    }

    /// The same for what changes something: with a failure comes whether an attempt before it may have been carried out.
    fn ask_knowing<T, F>(
        &self,
        attempt: impl Fn() -> F + Send + Sync + 'static,
    ) -> Result<T, (Failure, bool)>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        if let Some(why) = self.is_down() {
            return Err((Failure::Unreachable(why), false));
        }
        let repeated = async move {
            let (start, mut pause, mut unsure) = (clock::now(), PAUSE, false);
            loop {
                let left = CALL_MAX.saturating_sub(clock::now() - start);
                let failure = match timeout(ATTEMPT_MAX.min(left), attempt()).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::Unreachable(format!("no answer within {ATTEMPT_MAX:?}")),
                };
                let again = match &failure {
                    Failure::Unreachable(_) => {
                        unsure = true;
                        true
                    }
                    Failure::Conflict => true,
                    _ => false,
                };
                if !again || clock::now() + pause >= start + CALL_MAX {
                    return Err((failure, unsure));
                }
                sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
                pause *= 2;
            }
        };
        let no_answer = || Err((Failure::Unreachable("no answer".to_owned()), true));
        let asked = self.thread.run(CALL_MAX + ATTEMPT_MAX, repeated).unwrap_or_else(no_answer);
        if let Err((Failure::Unreachable(why), _)) = &asked {
            *self.down.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((clock::now() + DOWN, why.clone()));
        }
        asked
    }

    fn is_down(&self) -> Option<String> {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, why) = down.as_ref()?;
        (clock::now() < *until).then(|| why.clone())
    }

    fn error(&self, what: &What<'_>, failure: Failure) -> StoreError {
        let (action, object) = (what.action, self.name(what.key));
        match failure {
            Failure::Absent => StoreError::Refused { action, object, code: "NoSuchKey".to_owned() },
            Failure::Precondition => StoreError::Moved,
            Failure::Conflict => {
                let why = "others write there at the same time".to_owned();
                StoreError::Unreachable { action, object, why }
            }
            Failure::NoBucket => StoreError::NoBucket { bucket: self.bucket.clone() },
            Failure::OtherRegion => {
                StoreError::OtherRegion { bucket: self.bucket.clone(), region: self.region.clone() }
            }
            Failure::Denied(code) => {
                StoreError::Denied { action, object, code, allowed: what.allowed }
            }
            Failure::Unreachable(why) => StoreError::Unreachable { action, object, why },
            Failure::Refused(code) => StoreError::Refused { action, object, code },
        }
    }

    /// That the bucket is there and can be listed.
    pub fn check(&self) -> Result<(), StoreError> {
        self.page(
            "state/",
            PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() },
        )
        .map(drop)
    }

    pub fn get(
        &self,
        key: &str,
        bytes_max: u64,
        known: Option<&Version>,
    ) -> Result<Read, StoreError> {
        let what = What { action: "read", key, allowed: "s3:GetObject" };
        let (client, path) = (self.client.clone(), self.path(key));
        let known = known.map(|Version(etag)| etag.clone());
        let answer = self.ask_knowing(move || {
            let (client, path, known) = (client.clone(), path.clone(), known.clone());
            async move {
                let options = GetOptions { if_none_match: known, ..GetOptions::default() };
                let found = match client.get_opts(&path, options).await {
                    Err(object_store::Error::NotModified { .. }) => return Ok(Got::Same),
                    found => found.map_err(Failure::of)?,
                };
                if found.meta.size > bytes_max {
                    return Ok(Got::TooLarge);
                }
                let version = etag(found.meta.e_tag.clone())?;
                let bytes = found.bytes().await.map_err(Failure::of)?.to_vec();
                Ok(Got::Object(Object { bytes, version }))
            }
        });
        match answer {
            Ok(Got::Same) => Ok(Read::Same),
            Ok(Got::TooLarge) => Err(StoreError::TooLarge { bytes_max }),
            Ok(Got::Object(object)) => Ok(Read::Object(object)),
            Err((Failure::Absent, _)) => Ok(Read::Absent),
            Err((Failure::Denied(code), _)) => match self.is_absent(key) {
                true => Ok(Read::Absent),
                false => Err(self.error(&what, Failure::Denied(code))),
            },
            Err((failure, _)) => Err(self.error(&what, failure)),
        }
    }

    /// What is not there S3 denies to whoever may not list the whole bucket. The listing of what this role may list tells.
    fn is_absent(&self, key: &str) -> bool {
        let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        let wanted = self.path(key);
        // The key itself sorts before all others that begin with it.
        self.page(key, options)
            .is_ok_and(|page| page.result.objects.iter().all(|object| object.location != wanted))
    }

    pub fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        let what = What { action: "read", key, allowed: "s3:GetObject" };
        let (client, path) = (self.client.clone(), self.path(key));
        let answer = self.ask_knowing(move || {
            let (client, path) = (client.clone(), path.clone());
            async move { client.head(&path).await.map(|meta| meta.size).map_err(Failure::of) }
        });
        match answer {
            Ok(size) => Ok(Some(size)),
            Err((Failure::Absent, _)) => Ok(None),
            Err((Failure::Denied(_), _)) if self.is_absent(key) => Ok(None),
            Err((failure, _)) => Err(self.error(&what, failure)),
        }
    }

    pub fn read_at(&self, key: &str, offset: u64, len: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let what = What { action: "read", key, allowed: "s3:GetObject" };
        let (client, path) = (self.client.clone(), self.path(key));
        let wanted: Range<u64> = offset..offset.saturating_add(len);
        let answer = self.ask_knowing(move || {
            let (client, path, wanted) = (client.clone(), path.clone(), wanted.clone());
            async move {
                let range = Some(GetRange::Bounded(wanted));
                let options = GetOptions { range, ..GetOptions::default() };
                let found = client.get_opts(&path, options).await.map_err(Failure::of)?;
                Ok(found.bytes().await.map_err(Failure::of)?.to_vec())
            }
        });
        match answer {
            Ok(bytes) => Ok(Some(bytes)),
            Err((Failure::Absent, _)) => Ok(None),
            // 416: nothing is behind the end.
            Err((Failure::Refused(code), _)) if code == "InvalidRange" => Ok(Some(Vec::new())),
            Err((Failure::Denied(_), _)) if self.is_absent(key) => Ok(None),
            Err((failure, _)) => Err(self.error(&what, failure)),
        }
    }

    fn page(
        &self,
        prefix: &str,
        options: PaginatedListOptions,
    ) -> Result<object_store::list::PaginatedListResult, StoreError> {
        let what = What { action: "list", key: prefix, allowed: "s3:ListBucket" };
        let (client, full) = (self.client.clone(), format!("{}{prefix}", self.prefix));
        self.ask(&what, move || {
            let (client, full, options) = (client.clone(), full.clone(), options.clone());
            async move { client.list_paginated(Some(&full), options).await.map_err(Failure::of) }
        })
    }

    /// All pages, each within the bound of a call.
    fn pages(
        &self,
        prefix: &str,
        after: Option<&str>,
        mut each: impl FnMut(object_store::ListResult),
    ) -> Result<(), StoreError> {
        let mut token = None;
        for _ in 0..PAGES_MAX {
            let options = PaginatedListOptions {
                offset: after.map(|after| format!("{}{prefix}/{after}", self.prefix)),
                delimiter: Some("/".into()),
                max_keys: Some(KEYS_OF_A_PAGE),
                page_token: token,
                ..PaginatedListOptions::default()
            };
            let page = self.page(&format!("{prefix}/"), options)?;
            each(page.result);
            token = page.page_token;
            if token.is_none() {
                return Ok(());
            }
        }
        Err(StoreError::TooMany { entries_max: PAGES_MAX * KEYS_OF_A_PAGE })
    }

    pub fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        self.pages(prefix, after, |page| {
            for object in page.objects {
                if let (Some(name), Some(etag)) = (object.location.filename(), object.e_tag) {
                    entries.push(Entry { name: name.to_owned(), version: Version(etag) });
                }
            }
        })?;
        Ok(entries)
    }

    pub fn prefixes(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        self.pages(prefix, None, |page| {
            let below = page.common_prefixes;
            names.extend(below.iter().filter_map(|path| Some(path.filename()?.to_owned())));
        })?;
        Ok(names)
    }

    pub fn create(&self, key: &str, bytes: &[u8]) -> Result<Version, StoreError> {
        match self.put(key, bytes, None) {
            Err(StoreError::Moved) => Err(StoreError::Exists),
            written => written,
        }
    }

    pub fn swap(
        &self,
        key: &str,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        self.put(key, bytes, expected)
    }

    fn put(
        &self,
        key: &str,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let what = What { action: "write", key, allowed: "s3:PutObject" };
        let (client, path) = (self.client.clone(), self.path(key));
        let mode = match expected {
            None => PutMode::Create,
            Some(Version(etag)) => {
                PutMode::Update(UpdateVersion { e_tag: Some(etag.clone()), version: None })
            }
        };
        let payload = PutPayload::from(bytes.to_vec());
        let answer = self.ask_knowing(move || {
            let (client, path, payload) = (client.clone(), path.clone(), payload.clone());
            let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
            async move {
                let put = client.put_opts(&path, payload, options).await.map_err(Failure::of)?;
                etag(put.e_tag)
            }
        });
        match answer {
            Ok(version) => Ok(version),
            // What was to be replaced is gone.
            Err((Failure::Absent, _)) => Err(StoreError::Moved),
            // The answer to an attempt of ours may have got lost: then what is there is ours.
            Err((Failure::Precondition, true)) => match self.get(key, bytes.len() as u64, None) {
                Ok(Read::Object(found)) if found.bytes == bytes => Ok(found.version),
                Ok(_) | Err(StoreError::TooLarge { .. }) => Err(StoreError::Moved),
                Err(error) => Err(error),
            },
            Err((failure, _)) => Err(self.error(&what, failure)),
        }
    }
}

/// What is asked for, as errors tell it.
struct What<'a> {
    action: &'static str,
    key: &'a str,
    allowed: &'static str,
}

enum Got {
    Same,
    TooLarge,
    Object(Object),
}

fn etag(etag: Option<String>) -> Result<Version, Failure> {
    etag.map(Version).ok_or_else(|| Failure::Refused("an answer without ETag".to_owned()))
}
