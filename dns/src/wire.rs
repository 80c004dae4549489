//! Packets at their edges: what is looked at before hickory parses, and how answers are cut to size. In: bytes, messages.
//! Out: bytes. No more is spent on a packet than it is long.

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// What goes in one UDP packet without fragments (DNS flag day 2020).
pub const UDP_PAYLOAD: u16 = 1232;
/// What goes in one UDP packet to a client that does not say (RFC 1035).
const UDP_CLASSIC: u16 = 512;
/// The longest question that is read; an honest one has a few hundred bytes.
pub const MAX_QUESTION: usize = 4096;
/// Additional records that a question may have: OPT, a signature, and some to spare.
const MAX_ADDITIONALS: u16 = 4;
/// The size of an OPT record without options.
const OPT_LENGTH: u16 = 11;
/// The size of a header.
const HEADER: usize = 12;

/// The number and the kind of a question; `None` for what is an answer, or too short for anything.
pub fn identity(packet: &[u8]) -> Option<(u16, OpCode)> {
    let header: &[u8; HEADER] = packet.first_chunk()?;
    if header[2] & 0x80 != 0 {
        return None;
    }
    Some((u16::from_be_bytes([header[0], header[1]]), OpCode::from_u8((header[2] >> 3) & 0x0f)))
}

/// Refuses by its header alone what no question has, before memory is taken for what it announces.
pub fn check(packet: &[u8]) -> Result<(), ResponseCode> {
    let header: &[u8; HEADER] = packet.first_chunk().ok_or(ResponseCode::FormErr)?;
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if (header[2] >> 3) & 0x0f != 0 {
        return Err(ResponseCode::NotImp);
    }
    // A question about changes (IXFR) has an authority.
    let plausible = count(4) == 1 && count(6) == 0 && count(8) <= 1 && count(10) <= MAX_ADDITIONALS;
    if plausible && packet.len() <= MAX_QUESTION { Ok(()) } else { Err(ResponseCode::FormErr) }
}

/// How long an answer by UDP may be, by what the client says about its buffer.
pub fn limit(payload: Option<u16>) -> u16 {
    payload.map_or(UDP_CLASSIC, |said| said.clamp(UDP_CLASSIC, UDP_PAYLOAD))
}

/// An answer that is only a code.
pub fn error(id: u16, op_code: OpCode, code: ResponseCode) -> Option<Vec<u8>> {
    Message::error_msg(id, op_code, code).to_vec().ok()
}

/// Writes a response in at most `limit` bytes. Additional records, which nobody has asked for, go first and silently. What
/// is cut keeps as many answers as fit, for clients that cannot ask again by TCP, and its OPT record.
pub fn encode(mut response: Message, limit: u16) -> Option<Vec<u8>> {
    let first = emit(&response, limit)?;
    if !is_truncated(&first) {
        return Some(first);
    }
    if !response.additionals.is_empty() {
        response.additionals.clear();
        let without = emit(&response, limit)?;
        if !is_truncated(&without) {
            return Some(without);
        }
    }
    let Some(edns) = response.edns.take() else { return emit(&response, limit) };
    let shorter = emit(&response, limit - OPT_LENGTH)?;
    let fitting = u16::from_be_bytes([*shorter.get(6)?, *shorter.get(7)?]);
    response.answers.truncate(fitting.into());
    response.authorities.clear();
    response.metadata.truncation = true;
    response.edns = Some(edns);
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
            self::error(metadata.id, metadata.op_code, ResponseCode::ServFail)
        }
    }
}

fn is_truncated(packet: &[u8]) -> bool {
    packet.get(2).is_some_and(|flags| flags & 0x02 != 0)
}
