//! Netfilter's netlink messages: building, sending as one atomic batch, reading dumps. One synchronous socket that
//! belongs to the namespace in which it was opened.
//!
//! In: messages as bytes. Out: the kernel's verdict, or the payloads of a dump. Attributes are type-length-value with
//! four-byte padding; numbers inside nftables attributes are big-endian.

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
        sockopt::{RcvBufForce, ReceiveTimeout, SndBufForce},
    },
    sys::time::TimeVal,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    sync::{Arc, LazyLock},
};

/// `NFNL_SUBSYS_NFTABLES`.
pub const NFTABLES: u16 = 10;
/// `NFNL_SUBSYS_CTNETLINK`.
pub const CONNTRACK: u16 = 1;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;
const DUMP_INTERRUPTED: u16 = 0x10;
const NESTED: u16 = 0x8000;
const HEADER: usize = 20;

/// Why the kernel's tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket itself failed.
    #[error("netfilter socket, while {0}: {1}")]
    Socket(&'static str, Errno),
    /// The kernel refused a message; nothing of the batch was done.
    #[error("the kernel refused {what}: {errno}")]
    Refused {
        /// Which message.
        what: String,
        /// The reason.
        errno: Errno,
    },
}

impl WireError {
    /// The kernel's reason.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Socket(_, errno) | Self::Refused { errno, .. } => *errno,
        }
    }
}

/// Attributes under construction.
#[derive(Debug, Default, Clone)]
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    /// Appends raw bytes.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a big-endian number.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Appends a zero-terminated string.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// Appends attributes inside an attribute.
    pub fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// The attributes of a message or a nest: (type without flags, value).
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of a type.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v)
}

/// A big-endian number of four bytes.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// A request: subsystem, message, family, flags, attributes, and what it is about in words.
#[derive(Debug, Clone)]
pub struct Request {
    /// Subsystem in the upper, message in the lower byte.
    pub kind: u16,
    /// `NFPROTO_…`.
    pub family: u8,
    /// Beyond `NLM_F_REQUEST`.
    pub flags: u16,
    /// The rest.
    pub attributes: Attributes,
    /// For errors.
    pub what: String,
}

impl Request {
    fn write(&self, out: &mut Vec<u8>, flags: u16, sequence: u32, resource: u16) {
        let length = HEADER + self.attributes.0.len();
        out.extend((length as u32).to_ne_bytes());
        out.extend(self.kind.to_ne_bytes());
        out.extend((REQUEST | self.flags | flags).to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend(0_u32.to_ne_bytes());
        out.extend([self.family, 0]);
        out.extend(resource.to_be_bytes());
        out.extend(&self.attributes.0);
    }
}

/// A socket to netfilter.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// How many transactions this process has done in the socket's namespace. Held while one is done, so that it and
    /// the kernel's own count are never seen apart.
    pub(crate) commits: Arc<Mutex<u32>>,
    sequence: u32,
    send_buffer: usize,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, WireError> {
        let failed = |what| move |e| WireError::Socket(what, e);
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(failed("opening it"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("binding it"))?;
        setsockopt(&fd, RcvBufForce, &(4 << 20)).map_err(failed("growing its buffer"))?;
        // The kernel answers within the call; waiting longer would be waiting for ever.
        setsockopt(&fd, ReceiveTimeout, &TimeVal::new(10, 0)).map_err(failed("setting its time-out"))?;
        let commits = commits_here().map_err(failed("finding its network namespace"))?;
        Ok(Self { fd, commits, sequence: 1, send_buffer: 0 })
    }

    /// Does all requests of one subsystem as one transaction, or none.
    pub fn transaction(&mut self, requests: &[Request]) -> Result<(), WireError> {
        if requests.is_empty() {
            return Ok(());
        }
        self.drain();
        let first = self.sequence;
        let mut out = Vec::with_capacity(requests.iter().map(|r| r.attributes.0.len() + HEADER).sum::<usize>() + 40);
        let frame =
            |kind| Request { kind, family: 0, flags: 0, attributes: Attributes::default(), what: String::new() };
        frame(BATCH_BEGIN).write(&mut out, 0, first, NFTABLES);
        for (i, request) in requests.iter().enumerate() {
            let flags = if i + 1 == requests.len() { ACK } else { 0 };
            request.write(&mut out, flags, first + 1 + i as u32, 0);
        }
        let last = first + requests.len() as u32;
        frame(BATCH_END).write(&mut out, 0, last + 1, NFTABLES);
        self.sequence = last + 2;
        let commits = self.commits.clone();
        let mut commits = commits.lock();
        self.send(&out)?;
        self.verdict(first, last, requests)?;
        *commits = commits.wrapping_add(1);
        Ok(())
    }

    /// Does one request outside of a transaction.
    pub fn single(&mut self, request: &Request) -> Result<(), WireError> {
        self.drain();
        let sequence = self.next();
        let mut out = Vec::new();
        request.write(&mut out, ACK, sequence, 0);
        self.send(&out)?;
        self.verdict(sequence - 1, sequence, std::slice::from_ref(request))
    }

    /// Asks and collects the answers' attributes, of a dump or of a single object.
    pub fn ask(&mut self, request: &Request, dump: bool) -> Result<Vec<Vec<u8>>, WireError> {
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            self.drain();
            let sequence = self.next();
            let mut out = Vec::new();
            request.write(&mut out, if dump { DUMP } else { ACK }, sequence, 0);
            self.send(&out)?;
            if let Some(answers) = self.collect(sequence, request)? {
                return Ok(answers);
            }
        }
        Err(WireError::Refused {
            what: format!("{}: it changes too fast to be read", request.what),
            errno: Errno::EINTR,
        })
    }

    /// None when the dump was torn by a change and must be asked for again.
    fn collect(&mut self, sequence: u32, request: &Request) -> Result<Option<Vec<Vec<u8>>>, WireError> {
        let mut answers = Vec::new();
        let mut torn = false;
        let mut buffer = vec![0; 1 << 18];
        loop {
            let length = self.receive(&mut buffer)?;
            for message in messages(&buffer[..length]).filter(|m| m.sequence == sequence) {
                torn |= message.flags & DUMP_INTERRUPTED != 0;
                match message.kind {
                    NLMSG_DONE => return Ok((!torn).then_some(answers)),
                    NLMSG_ERROR => match message.error() {
                        Errno::UnknownErrno => return Ok(Some(answers)),
                        Errno::EINTR => return Ok(None),
                        errno => return Err(WireError::Refused { what: request.what.clone(), errno }),
                    },
                    _ => answers.push(message.body.get(4..).unwrap_or_default().to_vec()),
                }
            }
        }
    }

    /// Reads answers until that of the last request. The kernel reports the failed ones only, and those that ask.
    fn verdict(&mut self, begin: u32, last: u32, requests: &[Request]) -> Result<(), WireError> {
        let mut refused: Option<WireError> = None;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = match self.receive(&mut buffer) {
                Err(_) if refused.is_some() => return refused.map_or(Ok(()), Err),
                other => other?,
            };
            for message in messages(&buffer[..length]) {
                if message.kind != NLMSG_ERROR || !(begin..=last).contains(&message.sequence) {
                    continue;
                }
                let errno = message.error();
                if errno != Errno::UnknownErrno && refused.is_none() {
                    let index = (message.sequence as usize).wrapping_sub(begin as usize + 1);
                    let what = requests.get(index).map_or_else(|| "the transaction".to_owned(), |r| r.what.clone());
                    refused = Some(WireError::Refused { what, errno });
                    // After the refusal of a whole transaction nothing else is sure to come.
                    if message.sequence == begin {
                        return refused.map_or(Ok(()), Err);
                    }
                }
                if message.sequence == last {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        // A transaction is one datagram, whatever its size.
        let needed = (bytes.len() + 4096).max(1 << 20);
        if self.send_buffer < needed {
            setsockopt(&self.fd, SndBufForce, &needed).map_err(|e| WireError::Socket("growing its buffer", e))?;
            self.send_buffer = needed;
        }
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map_err(|e| WireError::Socket("sending", e))?;
        Ok(())
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, WireError> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => return other.map_err(|e| WireError::Socket("receiving", e)),
            }
        }
    }

    /// Throws away what an earlier, failed exchange left.
    fn drain(&self) {
        let mut buffer = [0; 4096];
        while let Ok(_) | Err(Errno::ENOBUFS) = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {}
    }
}

/// The count of the calling thread's network namespace.
fn commits_here() -> Result<Arc<Mutex<u32>>, Errno> {
    // Entries stay: only the count's changes matter, also should a later namespace get a number again.
    static OF_NAMESPACE: LazyLock<Mutex<HashMap<u64, Arc<Mutex<u32>>>>> = LazyLock::new(Mutex::default);
    let namespace = std::fs::metadata("/proc/thread-self/ns/net")
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or_default()))?
        .ino();
    Ok(OF_NAMESPACE.lock().entry(namespace).or_default().clone())
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl Message<'_> {
    /// `UnknownErrno` (zero) is success.
    fn error(&self) -> Errno {
        let code = self.body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
        Errno::from_raw(-code)
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
        let length = word(0)? as usize;
        let both = word(4)?.to_ne_bytes();
        let message = Message {
            kind: u16::from_ne_bytes([both[0], both[1]]),
            flags: u16::from_ne_bytes([both[2], both[3]]),
            sequence: word(8)?,
            body: bytes.get(16..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_and_garbage_does_not_panic() {
        let built = Attributes::default().text(1, "abc").number(2, 7).nest(3, Attributes::default().bytes(4, &[9]));
        assert_eq!(built.0.len() % 4, 0);
        assert_eq!(attribute(&built.0, 1), Some(&b"abc\0"[..]));
        assert_eq!(attribute(&built.0, 2).and_then(number), Some(7));
        assert_eq!(attribute(attribute(&built.0, 3).unwrap(), 4), Some(&[9][..]));
        for end in 0..built.0.len() {
            let _ = attributes(&built.0[..end]).count() + messages(&built.0[..end]).count();
        }
        assert_eq!(attributes(&[0, 0, 0, 0, 0, 0]).count(), 0);
    }
}
