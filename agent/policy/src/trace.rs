//! Walks a packet through a state as the kernel would: for tests.

use crate::{
    chains::{Match, Side, Then},
    model::Direction,
    plan::{Element, State},
};
use std::net::IpAddr;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Packet {
    pub from: IpAddr,
    pub to: IpAddr,
    pub protocol: u8,
    pub port: u16,
    /// For the node itself: the input hook instead of the forward hook.
    pub to_node: bool,
}

/// Whether it gets through.
pub fn passes(state: &State, packet: &Packet) -> bool {
    check(state, packet, Direction::Out, packet.from)
        && (packet.to_node || check(state, packet, Direction::In, packet.to))
}

fn check(state: &State, packet: &Packet, direction: Direction, ip: IpAddr) -> bool {
    let known = |ip| state.elements.contains(&Element::Pod(ip));
    if packet.from == packet.to && known(ip) {
        return true;
    }
    let chain = state.elements.iter().find_map(|e| match e {
        Element::Isolated(d, i, chain) if *d == direction && *i == ip => Some(chain),
        _ => None,
    });
    match chain {
        Some(chain) => walk(state, packet, chain, 0).unwrap_or(true),
        None => known(ip) || !in_ranges(state, ip),
    }
}

fn in_ranges(state: &State, ip: IpAddr) -> bool {
    let bounds = state.elements.iter().filter_map(|e| match e {
        Element::Bound(at, start) if at.is_ipv4() == ip.is_ipv4() && *at <= ip => Some((*at, *start)),
        _ => None,
    });
    bounds.max_by_key(|(at, _)| *at).is_some_and(|(_, start)| start)
}

/// None when the chain's end, or a return, is reached.
fn walk(state: &State, packet: &Packet, chain: &str, depth: usize) -> Option<bool> {
    assert!(depth < 8, "the kernel follows 16 jumps");
    for line in &state.chains[chain] {
        // Lines about the other family's addresses are not in this family's chain.
        if !line.matches.iter().all(|m| holds(state, packet, m)) {
            continue;
        }
        match &line.then {
            Then::Accept => return Some(true),
            Then::Drop => return Some(false),
            Then::Return => return None,
            Then::Jump(to) => {
                if let Some(verdict) = walk(state, packet, to, depth + 1) {
                    return Some(verdict);
                }
            }
        }
    }
    None
}

fn holds(state: &State, packet: &Packet, m: &Match) -> bool {
    let address = |side: &Side| if *side == Side::Source { packet.from } else { packet.to };
    match m {
        Match::Member(side, id) => state.elements.contains(&Element::Member(*id, address(side))),
        Match::Port(id) => state.elements.contains(&Element::Port(*id, packet.to, packet.protocol, packet.port)),
        Match::Net(side, net) => net.contains(&address(side)),
        Match::Protocol(p) => packet.protocol == *p,
        Match::Range(p, first, last) => packet.protocol == *p && (*first..=*last).contains(&packet.port),
    }
}
