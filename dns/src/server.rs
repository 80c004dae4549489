//! From packet to packet: hickory parses and writes, this decides. In: a question. Out: one response, from the zone, from
//! an upstream, or an error code that says which of the two failed.

use crate::autopath;
use crate::cache::Question;
use crate::forward::{Forwarded, Forwarder, aged};
use crate::kept::{Kept, Plain};
use crate::metrics::{Metrics, Tally, ZoneLabel, code_index, type_index};
use crate::pods::Pods;
use crate::wire::{self, UDP_PAYLOAD};
use crate::zone::{Answer, Stamp, Zone, cname};
use arc_swap::ArcSwap;
use causeway_api::dns::DnsSettings;
use futures::FutureExt;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio::runtime::Handle;

/// Aliases followed for one question.
const MAX_ALIASES: usize = 8;

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One packet, its answer bounded.
    Udp,
    /// A connection.
    Tcp,
}

/// Where a question came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// How.
    pub transport: Transport,
    /// From whom.
    pub client: IpAddr,
    /// When.
    pub at: Instant,
}

/// An answer on its way.
#[derive(Debug)]
pub struct Answered {
    /// The packet.
    pub bytes: Vec<u8>,
    /// It may be given again, for as long as the zone is as it was; with its labels for metrics.
    pub keep: Option<(Stamp, (u8, u8))>,
}

/// Answers questions.
pub struct Handler {
    /// The cluster's names.
    pub zone: Arc<Zone>,
    /// Who asks.
    pub pods: Arc<Pods>,
    /// False until the zone is complete: until then its names fail rather than not exist.
    pub ready: Arc<AtomicBool>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    live: ArcSwap<Live>,
}

/// What the settings say, swapped whole.
struct Live {
    forwarder: Arc<Forwarder>,
    autopath: bool,
}

/// A response before it is put on the wire.
#[derive(Default)]
struct Reply {
    code: Option<ResponseCode>,
    authoritative: bool,
    authentic: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    additionals: Vec<Record>,
    keep: Option<Stamp>,
}

/// What a question asks for besides a name and a type.
#[derive(Clone, Copy)]
struct Wish {
    kind: RecordType,
    dnssec: bool,
    unchecked: bool,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self { code: Some(code), ..Self::default() }
    }

    fn is_nxdomain(&self) -> bool {
        self.code == Some(ResponseCode::NXDomain)
    }
}

impl Handler {
    /// A handler of a zone that is not complete yet. `forward_on` is where upstreams are asked, `None` for the caller's
    /// runtime.
    pub fn new(
        zone: Arc<Zone>,
        pods: Arc<Pods>,
        metrics: Arc<Metrics>,
        settings: &DnsSettings,
        forward_on: Option<Handle>,
    ) -> Result<Self, String> {
        let forwarder = Arc::new(Forwarder::new(settings, forward_on, metrics.clone())?);
        zone.configure(settings);
        let live = ArcSwap::from_pointee(Live { forwarder, autopath: settings.autopath });
        Ok(Self { zone, pods, ready: Arc::default(), metrics, live })
    }

    /// Takes over other settings; questions under way end as they began. On an error everything stays.
    pub fn configure(&self, settings: &DnsSettings, forward_on: Option<Handle>) -> Result<(), String> {
        let forwarder = Arc::new(Forwarder::new(settings, forward_on, self.metrics.clone())?);
        self.live.store(Arc::new(Live { forwarder, autopath: settings.autopath }));
        self.zone.configure(settings);
        Ok(())
    }

    /// The counters as text.
    pub fn render(&self) -> String {
        self.metrics.cached(self.live.load().forwarder.cache().len());
        self.metrics.render()
    }

    /// Answers a plain question from what is kept, into `out`.
    pub fn again(&self, kept: &mut Kept, plain: &Plain, packet: &[u8], origin: Origin, out: &mut Vec<u8>) -> bool {
        let limit = wire::limit(plain.opt.map(|o| o.payload));
        let current = |stamp| self.zone.is_current(stamp);
        let Some((zone, code)) = kept.answer(plain, packet, (limit, UDP_PAYLOAD), current, out) else { return false };
        let kind = type_index(RecordType::from(plain.kind()));
        let zone = [ZoneLabel::Cluster, ZoneLabel::Reverse4, ZoneLabel::Reverse6][usize::from(zone.min(2))];
        self.tally(zone, origin, kind, code, (packet.len(), out.len()));
        true
    }

    /// Answers a packet; what is no question at all gets no answer.
    pub async fn answer(&self, packet: &[u8], origin: Origin) -> Option<Answered> {
        let answer = AssertUnwindSafe(self.respond(packet, origin)).catch_unwind().await;
        answer.unwrap_or_else(|_| {
            self.metrics.panics.inc();
            let (id, op_code) = wire::identity(packet)?;
            Some(Answered { bytes: wire::error(id, op_code, ResponseCode::ServFail)?, keep: None })
        })
    }

    async fn respond(&self, packet: &[u8], origin: Origin) -> Option<Answered> {
        // Two servers that answer answers would go on for ever.
        let (id, op_code) = wire::identity(packet)?;
        let question =
            match wire::check(packet).and_then(|()| Message::from_vec(packet).map_err(|_| ResponseCode::FormErr)) {
                Ok(question) => question,
                // What cannot be read is told so by its number.
                Err(code) => {
                    let bytes = wire::error(id, op_code, code)?;
                    self.tally(
                        ZoneLabel::Dropped,
                        origin,
                        type_index(RecordType::ZERO),
                        code_index(code),
                        (packet.len(), bytes.len()),
                    );
                    return Some(Answered { bytes, keep: None });
                }
            };
        let Reply { code, authoritative, authentic, answers, authorities, additionals, keep } =
            self.reply(&question, origin).await;
        let mut metadata = Metadata::response_from_request(&question.metadata);
        metadata.response_code = code.unwrap_or(ResponseCode::NoError);
        metadata.authoritative = authoritative;
        metadata.authentic_data = authentic;
        metadata.recursion_available = true;
        let mut response = Message::new(id, MessageType::Response, op_code);
        response.metadata = metadata;
        response.answers = answers;
        response.authorities = authorities;
        response.additionals = additionals;
        let asked = question.edns.as_ref();
        let limit = match origin.transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => wire::limit(asked.map(Edns::max_payload)),
        };
        response.edns = asked.map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let query = question.queries.first();
        let kind = type_index(query.map_or(RecordType::ZERO, |q| q.query_type()));
        let zone = query.map_or(ZoneLabel::Dropped, |q| self.zone_label(q.name()));
        response.queries = question.queries;
        let bytes = wire::encode(response, limit)?;
        let code = code_index(metadata.response_code);
        self.tally(zone, origin, kind, code, (packet.len(), bytes.len()));
        Some(Answered { bytes, keep: keep.map(|stamp| (stamp, (zone as u8, code))) })
    }

    fn tally(&self, zone: ZoneLabel, origin: Origin, kind: u8, code: u8, sizes: (usize, usize)) {
        let (tcp, v6) = (origin.transport == Transport::Tcp, origin.client.to_canonical().is_ipv6());
        self.metrics.tally(&Tally { zone, tcp, v6, kind, code, sizes, took: origin.at.elapsed() });
    }

    fn zone_label(&self, name: &Name) -> ZoneLabel {
        match name.iter().rev().take(2).collect::<Vec<_>>().as_slice() {
            _ if self.zone.domain().zone_of(name) => ZoneLabel::Cluster,
            [arpa, family] if arpa.eq_ignore_ascii_case(b"arpa") && family.eq_ignore_ascii_case(b"in-addr") => {
                ZoneLabel::Reverse4
            }
            [arpa, family] if arpa.eq_ignore_ascii_case(b"arpa") && family.eq_ignore_ascii_case(b"ip6") => {
                ZoneLabel::Reverse6
            }
            _ => ZoneLabel::Root,
        }
    }

    async fn reply(&self, question: &Message, origin: Origin) -> Reply {
        if question.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return Reply::code(ResponseCode::BADVERS);
        }
        if question.metadata.op_code != OpCode::Query {
            return Reply::code(ResponseCode::NotImp);
        }
        let [query] = question.queries.as_slice() else { return Reply::code(ResponseCode::FormErr) };
        let kind = query.query_type();
        match kind {
            RecordType::AXFR | RecordType::IXFR => return Reply::code(ResponseCode::Refused),
            _ if query.query_class() != DNSClass::IN => return Reply::code(ResponseCode::Refused),
            _ => {}
        }
        let dnssec = question.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok);
        let wish = Wish { kind, dnssec, unchecked: question.metadata.checking_disabled };
        let live = self.live.load_full();
        let reply = self.resolve(&live, query.name(), wish).await;
        if live.autopath && reply.is_nxdomain() && matches!(kind, RecordType::A | RecordType::AAAA) {
            return match self.complete(&live, query.name(), wish, origin.client).await {
                Some(completed) => completed,
                // Others may be answered otherwise.
                None => Reply { keep: None, ..reply },
            };
        }
        reply
    }

    /// The answer to the rest of the search path of who asks, if there is one.
    async fn complete(&self, live: &Live, name: &Name, wish: Wish, client: IpAddr) -> Option<Reply> {
        let namespace = self.pods.namespace_of(client)?;
        for next in autopath::next(name, &namespace, self.zone.domain()) {
            let mut reply = self.resolve(live, &next, wish).await;
            if reply.code.is_some_and(|code| code != ResponseCode::NoError) {
                continue;
            }
            let ttl = reply.answers.iter().map(|r| r.ttl).min().unwrap_or_else(|| self.zone.ttl());
            reply.answers.insert(0, cname(name, &next, ttl));
            reply.keep = None;
            self.metrics.autopath.inc();
            return Some(reply);
        }
        None
    }

    async fn resolve(&self, live: &Live, name: &Name, wish: Wish) -> Reply {
        let mut reply = Reply::default();
        let mut name = name.clone();
        for hop in 0..MAX_ALIASES {
            // Taken before the look-up: a change between the two spoils the answer rather than being missed.
            let stamp = |positive| (hop == 0).then(|| self.zone.stamp(&name, positive));
            let (positive, negative) = (stamp(true), stamp(false));
            let answer = self.zone.lookup(&name, wish.kind);
            let ours = answer != Answer::NotOurs;
            if ours && !self.ready.load(Ordering::Acquire) {
                return Reply::code(ResponseCode::ServFail);
            }
            reply.authoritative |= ours;
            match answer {
                Answer::Found { answers, additionals } => {
                    reply.answers.extend(answers);
                    reply.additionals.extend(additionals);
                    reply.keep = positive;
                    return reply;
                }
                Answer::Alias { record, target } => {
                    reply.answers.push(*record);
                    if matches!(wish.kind, RecordType::CNAME | RecordType::ANY) {
                        return reply;
                    }
                    name = target;
                }
                Answer::NoData => {
                    reply.authorities.push(self.zone.soa_of(&name));
                    reply.keep = negative;
                    return reply;
                }
                Answer::NoName => {
                    // After aliases too the code is that of the last name (RFC 6604).
                    reply.code = Some(ResponseCode::NXDomain);
                    reply.authorities.push(self.zone.soa_of(&name));
                    reply.keep = negative;
                    return reply;
                }
                Answer::NotKnown => return Reply::code(ResponseCode::ServFail),
                Answer::NotOurs => return self.forward(live, reply, &name, wish).await,
            }
        }
        Reply::code(ResponseCode::ServFail)
    }

    async fn forward(&self, live: &Live, mut reply: Reply, name: &Name, wish: Wish) -> Reply {
        let Wish { kind, dnssec, unchecked } = wish;
        let question = Question { name: name.to_lowercase(), kind, dnssec, unchecked };
        let (outcome, age) = match live.forwarder.lookup(&question).await {
            Forwarded::Said(outcome, age) => (outcome, Some(age)),
            Forwarded::Stale(outcome) => (outcome, None),
            // An alias of ours is an answer, even where nobody knows its target.
            Forwarded::Refused => {
                reply.code = reply.answers.is_empty().then_some(ResponseCode::Refused);
                return reply;
            }
            Forwarded::Failed => return Reply { code: Some(ResponseCode::ServFail), ..reply },
        };
        let mut answers = aged(&outcome.answers, age);
        for record in answers.iter_mut().filter(|r| r.name == *name) {
            record.name = name.clone();
        }
        reply.authentic = outcome.authentic && reply.answers.is_empty();
        reply.answers.extend(answers);
        reply.authorities.extend(aged(&outcome.authorities, age));
        reply.additionals.extend(aged(&outcome.additionals, age));
        reply.code = Some(outcome.code);
        reply
    }
}
