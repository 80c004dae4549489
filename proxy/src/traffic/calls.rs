//! The short way of a request to a backend that speaks HTTP/2, and of the answer back. Both go at once, as gRPC's streams
//! ask for, in one task; neither gets further ahead of its reader than the windows of HTTP/2 let it.
//!
//! In: a request whose route has been found, and that says nothing about its connection. Out: its answer has been sent,
//! with trailers if there are any. What an endpoint has refused without a look at it is sent again, also where it is no
//! idempotent request, as long as its body can be repeated.

use super::alarm::Alarm;
use super::http::{HttpApp, RequestState};
use super::policy;
use super::sessions::{self, Place, Sessions};
use crate::route::upstream::BackendTls;
use bytes::Bytes;
use futures::FutureExt as _;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::uri::{Authority, Scheme};
use http::{Uri, Version, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::proxy::{ProxyHttp as _, Session};
use pingora::{BError, Error, ErrorType, Result};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Parts of an answer that are passed on together at most.
const TOGETHER: usize = 8;

/// Why a try has failed.
struct Failure {
    error: BError,
    /// The endpoint has not looked at the request.
    untouched: bool,
}

/// The way up: what has been read of the request and not been sent.
struct Up {
    stream: SendStream<Bytes>,
    part: Option<Bytes>,
    /// That is the last of it.
    last: bool,
    /// All has been sent.
    ended: bool,
    /// The backend takes no more of it.
    given_up: bool,
}

/// The way down.
enum Down {
    Head(ResponseFuture),
    Rest(RecvStream),
    Over,
}

/// What has happened on one of the ways.
enum Event {
    Answer(std::result::Result<HttpTask, h2::Error>),
    Sent(std::result::Result<(), h2::Error>),
    Part(Result<Option<Bytes>>),
    Silence,
}

impl HttpApp {
    /// Answers a request.
    pub(super) async fn call(&self, session: &mut Session, ctx: &mut RequestState) -> Result<()> {
        session.as_downstream_mut().enable_retry_buffering();
        loop {
            match self.one_call(session, ctx).await {
                Ok(()) => return Ok(()),
                Err(error) if error.retry() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One try at one endpoint.
    async fn one_call(&self, session: &mut Session, ctx: &mut RequestState) -> Result<()> {
        let endpoint = self.choose(session, ctx)?;
        let terms: Option<Arc<BackendTls>> = ctx.upstream().and_then(|u| u.key.tls().cloned());
        let (time, idle) = (self.connect_timeout(ctx), self.limits().upstream_idle);
        let mut place = match Sessions::place(&endpoint, terms.as_deref(), time, idle).await {
            Ok(place) => place,
            Err(error) => return Err(self.not_connected(error, ctx)),
        };
        endpoint.succeeded();
        let scheme = if terms.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let request = self.head(session, scheme, ctx).await?;
        let mut alarm = place.alarm.take().unwrap_or_else(|| Alarm::new(time));
        let ended = self.both_ways(session, &place, request, &mut alarm, ctx).await;
        place.alarm = Some(alarm);
        ended.map_err(|Failure { error, untouched }| {
            if untouched {
                return self.refused(session, error, ctx);
            }
            self.broken(&endpoint.address, session, error, ctx, place.reused)
        })
    }

    /// The head that a backend is sent.
    async fn head(&self, session: &mut Session, scheme: Scheme, ctx: &mut RequestState) -> Result<http::Request<()>> {
        let mut request = session.req_header().clone();
        request.set_version(Version::HTTP_2);
        request.remove_header(&header::CONNECTION);
        self.upstream_request_filter(session, &mut request, ctx).await?;
        let authority = match request.remove_header(&header::HOST) {
            Some(host) => Authority::try_from(host.as_bytes()).ok(),
            None => request.uri.authority().cloned(),
        };
        let no_uri = || Error::explain(ErrorType::InvalidHTTPHeader, "the request's target").into_down();
        let authority = authority.ok_or_else(no_uri)?;
        let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
        request.set_uri(uri.map_err(|_| no_uri())?);
        Ok(http::Request::from_parts(request.into(), ()))
    }

    /// Sends the request and passes the answer on, each as it comes.
    async fn both_ways(
        &self,
        session: &mut Session,
        place: &Place,
        request: http::Request<()>,
        alarm: &mut Alarm,
        ctx: &mut RequestState,
    ) -> std::result::Result<(), Failure> {
        let client = session.as_downstream_mut();
        let empty = client.is_body_empty();
        let (answer, stream) = place.send(request, empty).await.map_err(|error| Failure {
            untouched: error.is_io() || error.is_go_away(),
            error: Error::because(ErrorType::H2Error, "sending the request", error).into_up(),
        })?;
        let mut up = Up { stream, part: None, last: false, ended: empty, given_up: false };
        let mut down = Down::Head(answer);
        if let Some(first) = client.get_retry_buffer() {
            up.push(Some(first), client.is_body_done());
        }
        let (reading, writing) = self.silence(ctx);
        loop {
            let (waiting, ended) = (up.part.is_some(), up.ended);
            alarm.set(if waiting { writing } else { reading });
            let client = session.as_downstream_mut();
            let event = tokio::select! {
                biased;
                task = poll_fn(|cx| down.poll_next(cx)) => Event::Answer(task),
                sent = poll_fn(|cx| up.poll_send(cx)), if waiting => Event::Sent(sent),
                // A client that goes takes its request with it.
                part = client.read_body_or_idle(ended), if !waiting && !up.given_up => Event::Part(part),
                () = poll_fn(|cx| alarm.poll(cx)) => Event::Silence,
            };
            match event {
                Event::Answer(task) => {
                    let task = task.inspect_err(|error| place.note(error))?;
                    if self.pass_on(session, task, &mut down, ctx).await? {
                        break;
                    }
                }
                Event::Sent(Ok(())) => {}
                // It may have its answer ready without the rest, or says with that why it has none.
                Event::Sent(Err(_)) => up.give_up(),
                Event::Part(part) => {
                    let part = part.map_err(|e| e.into_down())?;
                    if ended {
                        let more = Error::explain(ErrorType::ConnectionClosed, "more than the request came");
                        return Err(more.into_down().into());
                    }
                    policy::count_body(ctx, part.as_ref().map_or(0, Bytes::len))?;
                    let last = session.as_downstream_mut().is_body_done();
                    up.push(part, last);
                }
                Event::Silence if waiting => {
                    place.retire();
                    return Err(Error::explain(ErrorType::WriteTimedout, "sending the request's body")
                        .into_up()
                        .into());
                }
                Event::Silence => {
                    if ended {
                        // It may hang as a whole. Otherwise it may wait for the client.
                        place.retire();
                    }
                    return Err(Error::explain(ErrorType::ReadTimedout, "waiting for the answer").into_up().into());
                }
            }
        }
        session.as_downstream_mut().finish_body().await.map_err(|e| e.into_down().into())
    }

    /// Passes on a part of the answer, and what is there behind it. True: that was all.
    async fn pass_on(
        &self,
        session: &mut Session,
        task: HttpTask,
        down: &mut Down,
        ctx: &mut RequestState,
    ) -> Result<bool> {
        let mut tasks = Vec::with_capacity(3);
        let mut next = Some(task);
        let (mut ended, mut bytes) = (false, 0);
        while let Some(task) = next {
            ended = task.is_end();
            match &task {
                HttpTask::Header(answer, _)
                    if answer.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() =>
                {
                    let error = Error::explain(ErrorType::InvalidHTTPHeader, "the answer has two lengths");
                    return Err(error.into_up());
                }
                HttpTask::Body(Some(part), _) => bytes += part.len(),
                _ => {}
            }
            tasks.push(self.filtered(session, task, ctx).await?);
            next = if ended || tasks.len() == TOGETHER {
                None
            } else {
                // Without the budget of the task, which would make it seem that there is nothing.
                let more = tokio::task::unconstrained(poll_fn(|cx| down.poll_next(cx))).now_or_never();
                more.map(|task| task.unwrap_or_else(|error| HttpTask::Failed(broken_off(error))))
            };
        }
        let done = session.write_response_tasks(tasks).await?;
        down.taken(bytes);
        Ok(done || ended)
    }
}

impl Up {
    /// The next part of the body; none is its end.
    fn push(&mut self, part: Option<Bytes>, last: bool) {
        self.last = last || part.is_none();
        self.part = part.or(Some(Bytes::new())).filter(|part| self.last || !part.is_empty());
    }

    fn give_up(&mut self) {
        (self.part, self.given_up) = (None, true);
    }

    /// Sends the part as the backend's window has room for it. Ready once all of it is on its way.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), h2::Error>> {
        while let Some(part) = &mut self.part {
            let mut room = 0;
            if !part.is_empty() {
                self.stream.reserve_capacity(part.len());
                room = match self.stream.capacity() {
                    0 => match ready!(self.stream.poll_capacity(cx)) {
                        Some(room) => room?,
                        None => return Poll::Ready(Err(h2::Reason::CANCEL.into())),
                    },
                    room => room,
                };
            }
            let now = part.split_to(room.min(part.len()));
            let all = part.is_empty();
            self.stream.send_data(now, all && self.last)?;
            if all {
                (self.part, self.ended) = (None, self.last);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Down {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<HttpTask, h2::Error>> {
        let task = match self {
            Self::Head(answer) => {
                let (head, mut rest) = ready!(Pin::new(answer).poll(cx))?.into_parts();
                let ended = is_over(&mut rest, cx)?;
                *self = if ended { Self::Over } else { Self::Rest(rest) };
                let mut head = ResponseHeader::from(head);
                // Pingora writes it as what the client speaks.
                head.set_version(Version::HTTP_11);
                HttpTask::Header(Box::new(head), ended)
            }
            Self::Rest(rest) => match ready!(rest.poll_data(cx)) {
                Some(part) => {
                    let part = part?;
                    let ended = is_over(rest, cx)?;
                    HttpTask::Body(Some(part), ended)
                }
                None => {
                    let trailers = ready!(rest.poll_trailers(cx))?;
                    HttpTask::Trailer(trailers.map(Box::new))
                }
            },
            Self::Over => HttpTask::Done,
        };
        Poll::Ready(Ok(task))
    }

    /// So many bytes of the body have found a reader: the backend may send as many more.
    fn taken(&mut self, bytes: usize) {
        if let Self::Rest(rest) = self
            && bytes > 0
            && let Err(error) = rest.flow_control().release_capacity(bytes)
        {
            tracing::trace!(%error, "nothing more comes");
        }
    }
}

/// Nothing comes behind what has come, and it did not break off there.
fn is_over(rest: &mut RecvStream, cx: &mut Context<'_>) -> std::result::Result<bool, h2::Error> {
    if !rest.is_end_stream() {
        return Ok(false);
    }
    match rest.poll_data(cx) {
        Poll::Ready(None) => Ok(true),
        Poll::Ready(Some(Err(error))) => Err(error),
        Poll::Ready(Some(Ok(_))) | Poll::Pending => Ok(false),
    }
}

fn broken_off(error: h2::Error) -> BError {
    let kind = if error.is_io() { ErrorType::ReadError } else { ErrorType::H2Error };
    Error::because(kind, "reading the answer", error).into_up()
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self { untouched: sessions::is_untouched(&error), error: broken_off(error) }
    }
}

impl From<BError> for Failure {
    fn from(error: BError) -> Self {
        Self { error, untouched: false }
    }
}
