//! The calls: one line per endpoint, one driver method each.
//!
//! A call that may take long runs in a task of its own. hyper drops a handler whose connection broke, and
//! half a mount must not be dropped: the task goes on, is told that nobody waits any more, and undoes
//! what it did.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use http::{Method, StatusCode, Uri};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::driver::{Caller, PluginError, Scope, Volume, VolumeDriver};
use super::listen::Line;
use super::protocol::{self, Activated, Answer, CreateRequest, MountRequest, NameRequest};

/// How long a driver may take. The engine stops waiting a little later, and then shows "context deadline
/// exceeded" where our words could stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// `Create` and `Mount`.
    pub long: Duration,
    /// All other calls.
    pub short: Duration,
}

impl Deadlines {
    /// For a plugin that listens on a socket: the engine waits 120 s and 60 s.
    pub const SOCKET: Self = Self {
        long: Duration::from_secs(115),
        short: Duration::from_secs(57),
    };

    /// For a managed plugin: the engine waits 30 s for everything.
    pub const MANAGED: Self = Self {
        long: Duration::from_secs(28),
        short: Duration::from_secs(28),
    };
}

/// What a call costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Answered from memory, whatever else goes on.
    Lookup,
    /// May wait for a store, within the engine's shorter limit.
    Short,
    /// May wait for a store, within the engine's longer limit.
    Long,
}

/// The call whose every answer but a volume means to the engine that there is none: it then forgets the labels and
/// options of that volume for good. Its retry after a broken connection, which does not say which volume is meant, is
/// broken off as well: of that the engine concludes nothing.
const GET: &str = "VolumeDriver.Get";

/// Options and names are short; this is for mistakes and malice.
const MAX_BODY: usize = 1 << 20;

/// Bytes of a body that is too long that are read only to be forgotten.
const MAX_DISCARDED: usize = 64 << 20;

/// A body comes in one piece with its header; this is for peers that stall.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// Calls other than lookups that are worked on at once; further ones wait for a place within their
/// deadline.
const MAX_CALLS: usize = 512;

/// The engine's side of a driver, ready to be served. Calls in hand are in `tasks`, also those whose
/// connection broke.
pub fn router<D: VolumeDriver>(driver: Arc<D>, deadlines: Deadlines, tasks: TaskTracker) -> Router {
    let places = Arc::new(Semaphore::new(MAX_CALLS));
    let server = Server {
        driver,
        tasks,
        places,
        deadlines,
    };
    let endpoints = [
        server.asking("Plugin.Activate", activate),
        server.asking("VolumeDriver.Capabilities", capabilities),
        server.asking("VolumeDriver.List", list),
        server.calling(GET, Pace::Lookup, get),
        server.calling("VolumeDriver.Path", Pace::Lookup, path),
        server.calling("VolumeDriver.Create", Pace::Long, create),
        server.calling("VolumeDriver.Remove", Pace::Short, remove),
        server.calling("VolumeDriver.Mount", Pace::Long, mount),
        server.calling("VolumeDriver.Unmount", Pace::Short, unmount),
    ];
    endpoints
        .into_iter()
        .fold(Router::new(), |router, (call, method)| {
            router.route(&format!("/{call}"), method)
        })
        .fallback(async |uri: Uri| {
            let text = format!("a volume driver has no call {:?}", uri.path());
            protocol::refuse(StatusCode::NOT_FOUND, &text)
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let text = format!("{} takes POST, not {method}", uri.path());
            protocol::refuse(StatusCode::METHOD_NOT_ALLOWED, &text)
        })
}

async fn activate<D: VolumeDriver>(_: Arc<D>) -> Result<Activated, PluginError> {
    Ok(Activated)
}

async fn capabilities<D: VolumeDriver>(d: Arc<D>) -> Result<Scope, PluginError> {
    Ok(d.scope())
}

async fn list<D: VolumeDriver>(d: Arc<D>) -> Result<Vec<Volume>, PluginError> {
    d.list().await
}

async fn get<D: VolumeDriver>(d: Arc<D>, q: NameRequest, _: Caller) -> Result<Volume, PluginError> {
    d.get(&q.name).await
}

async fn path<D: VolumeDriver>(
    d: Arc<D>,
    q: NameRequest,
    _: Caller,
) -> Result<PathBuf, PluginError> {
    d.path(&q.name).await
}

async fn create<D: VolumeDriver>(
    d: Arc<D>,
    q: CreateRequest,
    _: Caller,
) -> Result<(), PluginError> {
    d.create(&q.name, q.opts.unwrap_or_default()).await
}

async fn remove<D: VolumeDriver>(d: Arc<D>, q: NameRequest, _: Caller) -> Result<(), PluginError> {
    d.remove(&q.name).await
}

async fn mount<D: VolumeDriver>(
    d: Arc<D>,
    q: MountRequest,
    caller: Caller,
) -> Result<PathBuf, PluginError> {
    let mounted = d.mount(&q.name, &q.id, &caller).await;
    if mounted.is_ok() && caller.has_gone() {
        // The engine sends no Unmount for a Mount whose answer it did not get.
        if let Err(error) = d.unmount(&q.name, &q.id).await {
            tracing::warn!(volume = q.name, %error, "the mount nobody waited for could not be undone");
        }
    }
    mounted
}

async fn unmount<D: VolumeDriver>(
    d: Arc<D>,
    q: MountRequest,
    _: Caller,
) -> Result<(), PluginError> {
    d.unmount(&q.name, &q.id).await
}

/// What every call needs.
#[derive(Debug)]
struct Server<D> {
    driver: Arc<D>,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    deadlines: Deadlines,
}

impl<D> Clone for Server<D> {
    fn clone(&self) -> Self {
        Self {
            driver: Arc::clone(&self.driver),
            tasks: self.tasks.clone(),
            places: Arc::clone(&self.places),
            deadlines: self.deadlines,
        }
    }
}

impl<D: VolumeDriver> Server<D> {
    /// An endpoint that names no volume: its body does not matter. It is read nevertheless: the answer ends
    /// the connection, and a peer that is still writing would be told that rather than the answer.
    fn asking<A, W, F>(&self, call: &'static str, work: W) -> (&'static str, MethodRouter)
    where
        A: Answer + Send,
        W: Fn(Arc<D>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<A, PluginError>> + Send,
    {
        let driver = Arc::clone(&self.driver);
        (
            call,
            post(async move |body: Body| {
                let _ = read(call, body).await;
                protocol::answer(work(driver).await)
            }),
        )
    }

    /// An endpoint that names a volume.
    fn calling<Q, A, W, F>(
        &self,
        call: &'static str,
        pace: Pace,
        work: W,
    ) -> (&'static str, MethodRouter)
    where
        Q: DeserializeOwned + Send + 'static,
        A: Answer + Send + 'static,
        W: Fn(Arc<D>, Q, Caller) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<A, PluginError>> + Send + 'static,
    {
        let server = self.clone();
        let method = post(async move |request: Request| {
            let line = request.extensions().get::<ConnectInfo<Line>>().cloned();
            let body = match read(call, request.into_body()).await {
                Ok(body) => body,
                Err(refusal) => return refusal,
            };
            if let Some(ConnectInfo(line)) = line
                && call == GET
                && protocol::is_retry(&body)
            {
                line.break_off();
            }
            match protocol::parse(call, &body) {
                Ok(request) => {
                    server
                        .run(call, pace, |d, caller| work(d, request, caller))
                        .await
                }
                Err(error) => protocol::refuse(StatusCode::BAD_REQUEST, &error.to_string()),
            }
        });
        (call, method)
    }

    /// Works on a call until it is done, its deadline has come or its caller has hung up; in the last two
    /// cases the work goes on without anybody waiting.
    async fn run<A, F>(
        self,
        call: &'static str,
        pace: Pace,
        work: impl FnOnce(Arc<D>, Caller) -> F,
    ) -> Response
    where
        A: Answer + Send + 'static,
        F: Future<Output = Result<A, PluginError>> + Send + 'static,
    {
        let token = CancellationToken::new();
        let work = work(Arc::clone(&self.driver), Caller::new(token.clone()));
        // hyper drops this future, and the guard with it, when the connection breaks.
        let waiting = token.drop_guard();
        let places = (pace != Pace::Lookup).then_some(self.places);
        let limit = if pace == Pace::Long {
            self.deadlines.long
        } else {
            self.deadlines.short
        };
        let task = self.tasks.spawn(async move {
            let _place = match places {
                Some(places) => places.acquire_owned().await.ok(),
                None => None,
            };
            work.await
        });
        let outcome = timeout(limit, task).await;
        if let Ok(Ok(done)) = outcome {
            waiting.disarm();
            if let Err(error) = &done {
                tracing::debug!(call, %error, "answered with an error");
            }
            return protocol::answer(done);
        }
        match outcome {
            Ok(_) => {
                tracing::error!(call, "the volume driver panicked");
                let text =
                    format!("the volume driver broke down in {call}; its log has the details");
                protocol::refuse(StatusCode::INTERNAL_SERVER_ERROR, &text)
            }
            Err(_) => {
                tracing::warn!(call, ?limit, "not done in time");
                let text = format!(
                    "{call} was not done after {} s and is given up",
                    limit.as_secs()
                );
                protocol::refuse(StatusCode::GATEWAY_TIMEOUT, &text)
            }
        }
    }
}

/// A call's whole body. What is too long is read to its end nevertheless, within reason: an answer to a
/// peer that is still writing gets lost.
async fn read(call: &str, body: Body) -> Result<Bytes, Response> {
    let refuse = |status, what: &str| protocol::refuse(status, &format!("{call} came with {what}"));
    let collected = timeout(BODY_DEADLINE, async {
        let mut frames = body.into_data_stream();
        let (mut kept, mut length) = (BytesMut::new(), 0_usize);
        while let Some(frame) = frames.try_next().await? {
            length += frame.len();
            if length <= MAX_BODY {
                kept.extend_from_slice(&frame);
            } else if length <= MAX_DISCARDED {
                kept.clear();
            } else {
                break;
            }
        }
        Ok::<_, axum::Error>((kept.freeze(), length))
    });
    match collected.await {
        Ok(Ok((bytes, ..=MAX_BODY))) => Ok(bytes),
        Ok(Ok(_)) => Err(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("more than {MAX_BODY} bytes"),
        )),
        Ok(Err(err)) => Err(refuse(
            StatusCode::BAD_REQUEST,
            &format!("a body that cannot be read: {err}"),
        )),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            "a body that does not end",
        )),
    }
}
