//! The protocol at its edges: pipelining, EDNS, types and classes that are no business of ours, and answers that are kept
//! and given again.

use super::fake::{Fake, Manner};
use super::support::{Dns, dig, start};
use causeway_dns::kept::{Kept, Plain};
use causeway_dns::server::{Origin, Transport};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

const PATIENCE: Duration = Duration::from_secs(10);

fn question(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

async fn by_udp(dns: &Dns, question: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns.addr).await.unwrap();
    socket.send(question).await.unwrap();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("no answer").unwrap();
    buffer[..length].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_on_one_connection_wait_for_nobody() {
    let slow = Fake::start(Manner::Late(Ipv4Addr::new(192, 0, 2, 1), Duration::from_millis(400))).await;
    let dns = start(vec![slow.addr]).await;
    let mut stream = TcpStream::connect(dns.addr).await.unwrap();
    // The slow one first, all in one segment, which ends within the last.
    let mut bytes = Vec::new();
    for (id, name) in [(1, "far.example.org."), (2, "web.shop.svc.cluster.local."), (3, "none.shop.svc.cluster.local.")]
    {
        let question = question(id, name, RecordType::A).to_vec().unwrap();
        bytes.extend(u16::try_from(question.len()).unwrap().to_be_bytes());
        bytes.extend(question);
    }
    let (begin, rest) = bytes.split_at(bytes.len() - 9);
    stream.write_all(begin).await.unwrap();
    let read = async |stream: &mut TcpStream| {
        let length = tokio::time::timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    };
    let second = read(&mut stream).await;
    assert_eq!((second.metadata.id, second.answers.len()), (2, 1));
    stream.write_all(rest).await.unwrap();
    let third = read(&mut stream).await;
    assert_eq!((third.metadata.id, third.metadata.response_code), (3, ResponseCode::NXDomain));
    // Who has said all still gets what is missing.
    stream.shutdown().await.unwrap();
    let first = read(&mut stream).await;
    assert_eq!((first.metadata.id, first.answers.len()), (1, 1));
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn edns_options_do_no_harm() {
    let dns = start(vec![]).await;
    for _ in 0..2 {
        let cookie =
            dig(&dns, "web.shop.svc.cluster.local A +cookie=0123456789abcdef +subnet=192.0.2.0/24 +nsid").await;
        assert!(cookie.contains("status: NOERROR") && cookie.contains("10.96.0.7"), "{cookie}");
        let signed = dig(&dns, "web.shop.svc.cluster.local A +dnssec +cdflag").await;
        assert!(signed.contains("flags: do") && signed.contains("flags: qr aa rd ra cd;"), "{signed}");
        assert!(signed.contains("ANSWER: 1") && !signed.contains("RRSIG"), "{signed}");
    }
    // Two OPT records are one too many.
    let mut twice = question(9, "web.shop.svc.cluster.local.", RecordType::A);
    twice.set_edns(Edns::new()).additionals.push(Record::from(&Edns::new()));
    let answer = Message::from_vec(&by_udp(&dns, &twice.to_vec().unwrap()).await).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_business_of_ours_is_said_so() {
    let dns = start(vec![]).await;
    let version = dig(&dns, "version.bind CH TXT").await;
    assert!(version.contains("status: REFUSED"), "{version}");
    let any = dig(&dns, "many.shop.svc.cluster.local ANY").await;
    assert!(any.contains("status: NOERROR") && any.contains("HINFO\t\"RFC8482\" \"\""), "{any}");
    assert!(any.contains("ANSWER: 1,"), "{any}");
    assert!(dig(&dns, "none.shop.svc.cluster.local ANY").await.contains("status: NXDOMAIN"));
    for transfer in ["AXFR", "IXFR=1"] {
        let refused = dig(&dns, &format!("cluster.local {transfer} +tcp")).await;
        assert!(refused.contains("Transfer failed") || refused.contains("REFUSED"), "{refused}");
    }
    for (opcode, name) in [(2u8, "status"), (4, "notify"), (5, "update"), (9, "unassigned")] {
        let mut packet = question(7, "web.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
        packet[2] |= opcode << 3;
        let answer = by_udp(&dns, &packet).await;
        assert_eq!((answer[0], answer[1], answer[3] & 0xf), (0, 7, 4), "{name} is not implemented");
        assert_eq!((answer[2] >> 3) & 0xf, opcode);
    }
    let mut other_class = question(8, "web.shop.svc.cluster.local.", RecordType::A);
    other_class.queries[0].set_query_class(DNSClass::HS);
    let answer = Message::from_vec(&by_udp(&dns, &other_class.to_vec().unwrap()).await).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}

/// What is asked, and how many times over: names of every kind, with their case, sizes and flags.
fn variety() -> Vec<Message> {
    use RecordType as T;
    let mut all = Vec::new();
    for (name, kind) in [
        ("web.shop.svc.cluster.local.", T::A),
        ("WEB.shop.svc.cluster.LOCAL.", T::A),
        ("web.shop.svc.cluster.local.", T::AAAA),
        ("both.shop.svc.cluster.local.", T::AAAA),
        ("_http._tcp.web.shop.svc.cluster.local.", T::SRV),
        ("_http._tcp.both.shop.svc.cluster.local.", T::SRV),
        ("_http._tcp.db.shop.svc.cluster.local.", T::SRV),
        ("db.shop.svc.cluster.local.", T::A),
        ("many.shop.svc.cluster.local.", T::A),
        ("db-2.db.shop.svc.cluster.local.", T::A),
        ("none.shop.svc.cluster.local.", T::A),
        ("inside.shop.svc.cluster.local.", T::A),
        ("10-1-2-3.shop.pod.cluster.local.", T::A),
        ("dns-version.cluster.local.", T::TXT),
        ("cluster.local.", T::SOA),
        ("7.0.96.10.in-addr.arpa.", T::PTR),
        ("9.0.96.10.in-addr.arpa.", T::PTR),
        ("www.example.org.", T::A),
    ] {
        for (payload, dnssec, flags) in [(None, false, true), (Some(4096), false, true), (Some(600), true, false)] {
            let mut message = question(0, name, kind);
            message.metadata.recursion_desired = flags;
            message.metadata.checking_disabled = !flags;
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload).set_dnssec_ok(dnssec);
                message.set_edns(edns);
            }
            all.push(message);
        }
    }
    all
}

/// Sections without their order, the rest as it is.
fn shape(packet: &[u8]) -> (String, String, BTreeSet<String>, BTreeSet<String>) {
    let message = Message::from_vec(packet).unwrap();
    let set = |records: &[Record]| records.iter().map(ToString::to_string).collect();
    let mut metadata = message.metadata;
    metadata.id = 0;
    let queries = message.queries.iter().map(|q| q.name().to_string()).collect();
    let (rest, edns) = ([message.authorities, message.additionals].concat(), format!("{:?}", message.edns));
    (format!("{metadata:?} {edns}"), queries, set(&message.answers), set(&rest))
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_answers_are_what_would_be_worked_out() {
    let dns = start(vec![]).await;
    // One socket keeps; the handler works out.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns.addr).await.unwrap();
    let (mut id, mut again) = (0u16, 0);
    for _ in 0..4 {
        for message in &mut variety() {
            id += 1;
            message.metadata.id = id;
            let packet = message.to_vec().unwrap();
            assert!(Plain::read(&packet).is_some(), "{message}");
            socket.send(&packet).await.unwrap();
            let mut buffer = [0; 4096];
            let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
            let origin = Origin { transport: Transport::Udp, client: Ipv4Addr::LOCALHOST.into(), at: Instant::now() };
            let answered = dns.handler.answer(&packet, origin).await.unwrap();
            if let (Some((stamp, label)), Some(plain)) = (answered.keep, Plain::read(&packet)) {
                let (mut own, mut out) = (Kept::default(), Vec::new());
                own.keep(&plain, &answered.bytes, stamp, label);
                again += usize::from(dns.handler.again(&mut own, &plain, &packet, origin, &mut out));
            }
            let worked_out = answered.bytes;
            assert_eq!(buffer[..2], packet[..2]);
            let (kept, fresh) = (shape(&buffer[..length]), shape(&worked_out));
            // Which of too many addresses are in is a matter of turns.
            if fresh.0.contains("truncation: true") {
                assert_eq!((kept.0, kept.1, kept.2.len()), (fresh.0, fresh.1, fresh.2.len()), "{message}");
            } else {
                assert_eq!(kept, fresh, "{message}");
            }
        }
    }
    // All but those that were cut, go elsewhere, or have records of several lengths.
    assert!(again > 4 * 30, "only {again} of {id} are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_answers_take_turns_and_end_with_a_change() {
    let dns = start(vec![]).await;
    let ask = async |name: &str| {
        Message::from_vec(&by_udp(&dns, &question(1, name, RecordType::A).to_vec().unwrap()).await).unwrap()
    };
    let mut firsts = BTreeSet::new();
    for _ in 0..12 {
        let answer = ask("db.shop.svc.cluster.local.").await;
        assert_eq!(answer.answers.iter().map(|r| r.data.to_string()).collect::<BTreeSet<_>>().len(), 3);
        firsts.insert(answer.answers[0].data.to_string());
    }
    assert_eq!(firsts.len(), 3);
    for i in 0..50u8 {
        let ips = [std::net::IpAddr::from([10, 96, 1, i])].into();
        let records = causeway_dns::model::Records::Cluster { ips, ports: [].into() };
        dns.zone.set(&super::support::key("shop", "web"), Some(records));
        for _ in 0..2 {
            assert_eq!(ask("web.shop.svc.cluster.local.").await.answers[0].data.to_string(), format!("10.96.1.{i}"));
        }
        dns.zone.set(&super::support::key("shop", "web"), None);
        for _ in 0..2 {
            assert_eq!(ask("web.shop.svc.cluster.local.").await.metadata.response_code, ResponseCode::NXDomain);
        }
    }
    // Many were given again, and all were counted.
    assert_eq!(dns.counted("coredns_dns_requests_total", "cluster.local."), 212.0);
    assert_eq!(dns.counted("coredns_dns_responses_total", "NXDOMAIN"), 100.0);
    assert_eq!(dns.counted("coredns_dns_request_duration_seconds_count", "cluster.local."), 212.0);
    assert_eq!(dns.counted("coredns_dns_response_size_bytes_count", "udp"), 212.0);
}
