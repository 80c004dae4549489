//! From packet to packet: hickory parses and writes, this decides. In: a question. Out: one response, from the zone, from
//! an upstream, or an error code that says which of the two failed.

use crate::forward::{Forwarded, Forwarder};
use crate::metrics::Metrics;
use crate::zone::{Answer, Zone};
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Aliases followed for one question.
const MAX_ALIASES: usize = 8;
/// What goes in one UDP packet without fragments (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// What goes in one UDP packet to a client that does not say (RFC 1035).
const UDP_CLASSIC: u16 = 512;
/// The size of an OPT record without options.
const OPT_LENGTH: u16 = 11;
/// The size of a header.
const HEADER_LENGTH: usize = 12;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One packet, its answer bounded.
    Udp,
    /// A connection.
    Tcp,
}

/// Answers questions.
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

impl Handler {
    /// Answers a packet; what is no question at all gets no answer.
    pub async fn answer(&self, packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let begin = std::time::Instant::now();
        let question = match Message::from_vec(packet) {
            Ok(question) => question,
            Err(_) => return self.malformed(packet),
        };
        if question.metadata.message_type != MessageType::Query {
            // Two servers that answer answers would go on for ever.
            return None;
        }
        let reply = self.reply(&question, transport).await;
        let mut metadata = Metadata::response_from_request(&question.metadata);
        metadata.response_code = reply.code.unwrap_or(ResponseCode::NoError);
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        self.metrics.responses.with_label_values(&[code_label(metadata.response_code)]).inc();
        let mut response = Message::new(question.metadata.id, MessageType::Response, question.metadata.op_code);
        response.metadata = metadata;
        response.answers = reply.answers;
        response.authorities = reply.authorities;
        response.additionals = reply.additionals;
        let limit = match (transport, &question.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(UDP_CLASSIC, UDP_PAYLOAD),
            (Transport::Udp, None) => UDP_CLASSIC,
        };
        response.edns = question.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD);
            edns
        });
        response.queries = question.queries;
        let bytes = encode(response, limit);
        self.metrics.duration.observe(begin.elapsed().as_secs_f64());
        bytes
    }

    /// What cannot be read is told so by its number, if it claims to be a question.
    fn malformed(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let header: &[u8; HEADER_LENGTH] = packet.first_chunk()?;
        if header[2] & 0x80 != 0 {
            return None;
        }
        self.metrics.responses.with_label_values(&[code_label(ResponseCode::FormErr)]).inc();
        let op_code = OpCode::from_u8((header[2] >> 3) & 0x0f);
        Message::error_msg(u16::from_be_bytes([header[0], header[1]]), op_code, ResponseCode::FormErr).to_vec().ok()
    }

    async fn reply(&self, question: &Message, transport: Transport) -> Reply {
        if question.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return Reply::code(ResponseCode::BADVERS);
        }
        if question.metadata.op_code != OpCode::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        let [query] = question.queries.as_slice() else { return Reply::code(ResponseCode::FormErr) };
        let kind = query.query_type();
        let protocol = if transport == Transport::Udp { "udp" } else { "tcp" };
        self.metrics.requests.with_label_values(&[protocol, type_label(kind)]).inc();
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
                    reply.authorities.push(self.zone.soa_of(&name));
                    return reply;
                }
                Answer::NoName => {
                    // After aliases too the code is that of the last name (RFC 6604).
                    reply.code = Some(ResponseCode::NXDomain);
                    reply.authorities.push(self.zone.soa_of(&name));
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
            // An alias of ours is an answer, even where nobody knows its target.
            Forwarded::Refused => ("refused", reply.answers.is_empty().then_some(ResponseCode::Refused)),
            Forwarded::Failed => ("failed", Some(ResponseCode::ServFail)),
        };
        self.metrics.forwarded.with_label_values(&[result]).inc();
        reply.code = code;
        reply
    }
}

/// Writes a response in at most `limit` bytes. What is cut keeps as many answers as fit, for clients that cannot ask
/// again by TCP, and its OPT record.
fn encode(mut response: Message, limit: u16) -> Option<Vec<u8>> {
    let first = emit(&response, limit)?;
    if !is_truncated(&first) || response.edns.is_none() {
        return Some(first);
    }
    let edns = response.edns.take();
    let shorter = emit(&response, limit - OPT_LENGTH)?;
    let fitting = u16::from_be_bytes([*shorter.get(6)?, *shorter.get(7)?]);
    response.answers.truncate(fitting.into());
    response.authorities.clear();
    response.additionals.clear();
    response.metadata.truncation = true;
    response.edns = edns;
    emit(&response, limit)
}

fn emit(response: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(UDP_CLASSIC.into());
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    match response.emit(&mut encoder) {
        Ok(()) => Some(bytes),
        Err(error) => {
            tracing::warn!(%error, "a DNS answer cannot be written");
            let metadata = &response.metadata;
            Message::error_msg(metadata.id, metadata.op_code, ResponseCode::ServFail).to_vec().ok()
        }
    }
}

fn is_truncated(packet: &[u8]) -> bool {
    packet.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// CoreDNS' words.
fn code_label(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::BADVERS => "BADVERS",
        _ => "other",
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
