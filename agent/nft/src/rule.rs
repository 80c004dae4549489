//! A rule under construction: a list of expressions over the kernel's sixteen registers of four bytes each.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`; registers are counted as the kernel counts them, from [`R0`].

use crate::{family::Family, wire::Attributes};

/// The packet is dropped.
pub const VERDICT_DROP: i32 = 0;
/// The packet passes this hook.
pub const VERDICT_ACCEPT: i32 = 1;
/// Into a chain, and back.
pub const VERDICT_JUMP: i32 = -3;
/// Into a chain for good.
pub const VERDICT_GOTO: i32 = -4;
/// Back to where the jump came from.
pub const VERDICT_RETURN: i32 = -5;

/// The first of sixteen registers of four bytes each.
pub const R0: u32 = 8;

/// The expressions of a rule.
#[derive(Debug, Default, Clone)]
pub struct Rule(pub Attributes);

impl Rule {
    /// Appends an expression.
    pub fn with(self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::default().text(1, name).nest(2, data);
        Self(self.0.nest(1, expression))
    }

    /// Loads a part of the packet; `base` 1 is the network, 2 the transport header.
    pub fn payload(self, base: u32, offset: u32, length: u32, to: u32) -> Self {
        self.with("payload", Attributes::default().number(1, to).number(2, base).number(3, offset).number(4, length))
    }

    /// Loads the source address.
    pub fn source(self, family: Family, to: u32) -> Self {
        let offset = if family == Family::V4 { 12 } else { 8 };
        self.payload(1, offset, family.length(), to)
    }

    /// Loads the destination address.
    pub fn destination(self, family: Family, to: u32) -> Self {
        let offset = if family == Family::V4 { 16 } else { 24 };
        self.payload(1, offset, family.length(), to)
    }

    /// Loads one of the packet's own facts, by the number of `enum nft_meta_keys`.
    pub fn meta(self, key: u32, to: u32) -> Self {
        self.with("meta", Attributes::default().number(1, to).number(2, key))
    }

    /// Loads the transport protocol.
    pub fn protocol(self, to: u32) -> Self {
        self.meta(16, to)
    }

    /// Loads the mark.
    pub fn mark(self, to: u32) -> Self {
        self.meta(3, to)
    }

    /// Destination address, protocol, port; returns the register after them.
    pub fn front(self, family: Family, to: u32) -> (Self, u32) {
        let next = to + family.length() / 4;
        (self.destination(family, to).protocol(next).port(next + 1), next + 2)
    }

    /// Loads the destination port.
    pub fn port(self, to: u32) -> Self {
        self.payload(2, 2, 2, to)
    }

    /// Destination address, protocol and port of the connection's first packet, before translation.
    pub fn original_front(self, family: Family, to: u32) -> Self {
        let ct = |to: u32, key: u32| Attributes::default().number(1, to).number(2, key).bytes(3, &[0]);
        let next = to + family.length() / 4;
        let address = if family == Family::V4 { 20 } else { 22 };
        self.with("ct", ct(to, address)).protocol(next).with("ct", ct(next + 1, 12))
    }

    /// Loads a fact of the connection, by the number of `enum nft_ct_keys`.
    pub fn connection(self, key: u32, to: u32) -> Self {
        self.with("ct", Attributes::default().number(1, to).number(2, key))
    }

    /// Keeps of a register only some bits.
    pub fn and(self, register: u32, mask: &[u8]) -> Self {
        self.bitwise(register, mask, &vec![0; mask.len()])
    }

    /// Sets bits of a register.
    pub fn or(self, register: u32, bits: u32) -> Self {
        self.bitwise(register, &(!bits).to_ne_bytes(), &bits.to_ne_bytes())
    }

    /// A register, and `mask`, exclusive or `flip`.
    fn bitwise(self, register: u32, mask: &[u8], flip: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, register)
            .number(2, register)
            .number(3, mask.len() as u32)
            .nest(4, Attributes::default().bytes(1, mask))
            .nest(5, Attributes::default().bytes(1, flip));
        self.with("bitwise", data)
    }

    /// Goes on only when a register starts with this.
    pub fn compare(self, register: u32, value: &[u8]) -> Self {
        self.comparison(register, 0, value)
    }

    /// Goes on only when a register does not start with this.
    pub fn differs(self, register: u32, value: &[u8]) -> Self {
        self.comparison(register, 1, value)
    }

    /// Goes on only when a register is not below this.
    pub fn at_least(self, register: u32, value: &[u8]) -> Self {
        self.comparison(register, 5, value)
    }

    /// Goes on only when a register is not above this.
    pub fn at_most(self, register: u32, value: &[u8]) -> Self {
        self.comparison(register, 3, value)
    }

    /// Puts a value into registers.
    pub fn constant(self, register: u32, value: &[u8]) -> Self {
        let value = Attributes::default().bytes(1, value);
        self.with("immediate", Attributes::default().number(1, register).nest(2, value))
    }

    fn comparison(self, register: u32, operation: u32, value: &[u8]) -> Self {
        let value = Attributes::default().bytes(1, value);
        self.with("cmp", Attributes::default().number(1, register).number(2, operation).nest(3, value))
    }

    /// Goes on only when the set has what the registers hold.
    pub fn if_in(self, set: impl AsRef<str>, register: u32) -> Self {
        self.with("lookup", Attributes::default().text(1, set.as_ref()).number(2, register))
    }

    /// Goes on only when the set has it not.
    pub fn unless_in(self, set: impl AsRef<str>, register: u32) -> Self {
        self.with("lookup", Attributes::default().text(1, set.as_ref()).number(2, register).number(5, 1))
    }

    /// Goes on only when the map has it, with the value in `to`; 0 means that the value is a verdict.
    pub fn look_up(self, map: impl AsRef<str>, register: u32, to: u32) -> Self {
        self.with("lookup", Attributes::default().text(1, map.as_ref()).number(2, register).number(3, to))
    }

    /// Loads a random number.
    pub fn random(self, modulus: u32, offset: u32, to: u32) -> Self {
        self.with("numgen", Attributes::default().number(1, to).number(2, modulus).number(3, 1).number(4, offset))
    }

    /// Gives the connection the destination that stands in the registers: address, port.
    pub fn translate(self, family: Family, register: u32) -> Self {
        let port = register + family.length() / 4;
        let family = u32::from(family.number());
        self.with("nat", Attributes::default().number(1, 1).number(2, family).number(3, register).number(5, port))
    }

    /// Gives the connection the source address of the way out.
    pub fn masquerade(self) -> Self {
        self.with("masq", Attributes::default())
    }

    /// Answers with a TCP reset or with "port unreachable".
    pub fn refuse(self, tcp: bool, family: Family) -> Self {
        let code = if family == Family::V4 { 3 } else { 4 };
        let (kind, code) = if tcp { (1, 0) } else { (0, code) };
        self.with("reject", Attributes::default().number(1, kind).bytes(2, &[code]))
    }

    /// Ends with a verdict.
    pub fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.with("immediate", Attributes::default().number(1, 0).nest(2, verdict(code, chain)))
    }

    /// Into a chain, and back.
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(VERDICT_JUMP, Some(chain))
    }

    /// Drops the packet.
    pub fn drop(self) -> Self {
        self.verdict(VERDICT_DROP, None)
    }

    /// Lets the packet pass.
    pub fn accept(self) -> Self {
        self.verdict(VERDICT_ACCEPT, None)
    }
}

/// A verdict as data, of a rule or of a map's element.
pub fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    let mut inner = Attributes::default().number(1, code as u32);
    if let Some(chain) = chain {
        inner = inner.text(2, chain);
    }
    Attributes::default().nest(2, inner)
}
