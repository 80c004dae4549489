//! From packet to packet: hickory parses and sends, this decides. In: a request. Out: one response, from the zone, from
//! an upstream, or an error code that says which of the two failed.

use crate::forward::{Forwarded, Forwarder};
use crate::metrics::Metrics;
use crate::zone::{Answer, Zone};
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Aliases followed for one question.
const MAX_ALIASES: usize = 8;
/// What we can take in one UDP packet without fragments (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;

/// Answers requests.
pub struct Handler {
    /// The cluster's names.
    pub zone: Arc<Zone>,
    /// All other names.
    pub forwarder: Forwarder,
    /// False until the zone is complete: until then its names fail rather than not exist.
    pub ready: Arc<AtomicBool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// A response before it is put on the wire.
#[derive(Default)]
struct Reply {
    code: Option<ResponseCode>,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code: Some(code), ..Self::default() }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut to: R) -> ResponseInfo {
        let begin = std::time::Instant::now();
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code.unwrap_or(ResponseCode::NoError);
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        self.metrics.responses.with_label_values(&[&metadata.response_code.to_string()]).inc();
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            // hickory sizes the packet by this: what the client can take, within what the path can.
            edns.set_max_payload(asked.max_payload().clamp(512, UDP_PAYLOAD));
            edns.set_version(0);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            reply.answers.iter(),
            reply.authorities.iter(),
            std::iter::empty(),
            reply.additionals.iter(),
        );
        let sent = to.send_response(response).await;
        self.metrics.duration.observe(begin.elapsed().as_secs_f64());
        sent.unwrap_or_else(|error| {
            tracing::debug!(%error, client = %request.src(), "answer not sent");
            failed(&request.metadata)
        })
    }
}

/// What hickory wants to hear when nothing could be sent.
fn failed(asked: &Metadata) -> ResponseInfo {
    let mut metadata = Metadata::response_from_request(asked);
    metadata.response_code = ResponseCode::ServFail;
    ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        if request.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return Reply::code(ResponseCode::BADVERS);
        }
        if request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Reply::code(ResponseCode::FormErr) };
        let query = info.query.original();
        let kind = query.query_type();
        self.metrics.requests.with_label_values(&[&info.protocol.to_string(), type_label(kind)]).inc();
        match kind {
            RecordType::AXFR | RecordType::IXFR => return Reply::code(ResponseCode::Refused),
            RecordType::ANY => return Reply::code(ResponseCode::NotImp),
            _ if query.query_class() != DNSClass::IN => return Reply::code(ResponseCode::Refused),
            _ => {}
        }
        self.resolve(query.name(), kind).await
    }

    async fn resolve(&self, name: &Name, kind: RecordType) -> Reply {
        let mut reply = Reply::default();
        let mut name = name.clone();
        for _ in 0..MAX_ALIASES {
            let answer = self.zone.lookup(&name, kind);
            let ours = answer != Answer::NotOurs;
            if ours && !self.ready.load(Ordering::Acquire) {
                return Reply::code(ResponseCode::ServFail);
            }
            reply.authoritative |= ours;
            match answer {
                Answer::Found { answers, additionals } => {
                    reply.answers.extend(answers);
                    reply.additionals.extend(additionals);
                    return reply;
                }
                Answer::Alias { record, target } => {
                    reply.answers.push(*record);
                    if kind == RecordType::CNAME {
                        return reply;
                    }
                    name = target;
                }
                Answer::NoData => {
                    reply.authorities.push(self.zone.soa());
                    return reply;
                }
                Answer::NoName => {
                    // With an alias in the answer the name asked for does exist.
                    reply.code = reply.answers.is_empty().then_some(ResponseCode::NXDomain);
                    reply.authorities.push(self.zone.soa());
                    return reply;
                }
                Answer::NotOurs => return self.forward(reply, &name, kind).await,
            }
        }
        Reply::code(ResponseCode::ServFail)
    }

    async fn forward(&self, mut reply: Reply, name: &Name, kind: RecordType) -> Reply {
        let (result, code) = match self.forwarder.lookup(name, kind).await {
            Forwarded::Found(records) => {
                reply.answers.extend(records);
                ("found", None)
            }
            Forwarded::Nothing(code, soa) => {
                reply.authorities.extend(soa);
                ("nothing", Some(code))
            }
            Forwarded::Refused => ("refused", Some(ResponseCode::Refused)),
            Forwarded::Failed(why) => {
                tracing::debug!(%name, why, "no upstream answered");
                ("failed", Some(ResponseCode::ServFail))
            }
        };
        self.metrics.forwarded.with_label_values(&[result]).inc();
        // An alias of ours is an answer, even where its target is not to be had.
        reply.code = code.filter(|_| reply.answers.is_empty());
        reply
    }
}

/// A bounded set of label values, whatever is asked.
fn type_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::A => "A",
        RecordType::AAAA => "AAAA",
        RecordType::CNAME => "CNAME",
        RecordType::MX => "MX",
        RecordType::NS => "NS",
        RecordType::PTR => "PTR",
        RecordType::SOA => "SOA",
        RecordType::SRV => "SRV",
        RecordType::TXT => "TXT",
        _ => "other",
    }
}
