//! What pods send to others than pods comes from their node's address: for nodes between which, and beyond which, nobody
//! knows the way back to a pod.
//!
//! In: the node's pod ranges and the cluster's. Out: a table of nftables with one rule for each of the node's ranges;
//! none where nothing is to be masqueraded. Between pods no address is ever translated.

use crate::{NetNs, NetworkError, Result, netns::kernel};
use causeway_nft::{
    family::{Family, message},
    rule::{R0, Rule},
    table::Table,
    wire::{Attributes, Request, Socket, WireError},
};
use ipnet::IpNet;
use parking_lot::Mutex;
use std::{net::IpAddr, sync::Arc};

/// The table's name, in the families `ip` and `ip6`.
const TABLE: &str = "causeway-pods";
const POSTROUTING: u32 = 4;
/// `srcnat`, where kube-proxy translates sources too.
const PRIORITY: i32 = 100;

/// The kernel's rules, and what we know of them.
#[derive(Debug, Clone)]
pub(crate) struct Masquerade(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    socket: Socket,
    /// What was put in force last, and how the kernel tells of it.
    last: Option<(Ranges, Present)>,
}

/// The structure of both tables, as far as they are there.
type Present = [Option<Vec<Vec<u8>>>; 2];

/// Whose packets are translated, and on the way to whom they are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// The node's pods; none: nothing is translated.
    pub own: Vec<IpNet>,
    /// All pods of the cluster.
    pub cluster: Vec<IpNet>,
}

impl Masquerade {
    /// Of a namespace; `None` for the caller's.
    pub fn open(netns: Option<&NetNs>) -> Result<Self> {
        let socket = match netns {
            Some(netns) => netns.run(Socket::open).map_err(|e| kernel("opening a netfilter socket", e))?,
            None => Socket::open(),
        };
        let socket = socket.map_err(failed)?;
        Ok(Self(Arc::new(Mutex::new(State { socket, last: None }))))
    }

    /// Makes the rules these; also mends what others did to them. Returns how many tables changed.
    pub async fn sync(&self, wanted: Ranges) -> Result<usize> {
        let state = self.0.clone();
        // A transaction of nftables may wait for all processors.
        let done = tokio::task::spawn_blocking(move || state.lock().sync(wanted)).await;
        done.map_err(|e| kernel("programming the pods' source addresses", e))?.map_err(failed)
    }
}

impl State {
    fn sync(&mut self, wanted: Ranges) -> Result<usize, WireError> {
        let present = self.present()?;
        if self.last.as_ref().is_some_and(|(ranges, seen)| *ranges == wanted && *seen == present) {
            return Ok(0);
        }
        self.socket.transaction(&requests(&wanted))?;
        let now = self.present()?;
        let changed = now.iter().zip(&present).filter(|(now, before)| now != before).count();
        self.last = Some((wanted, now));
        Ok(changed)
    }

    fn present(&mut self) -> Result<Present, WireError> {
        Ok([self.socket.structure(Family::V4, TABLE)?, self.socket.structure(Family::V6, TABLE)?])
    }
}

/// Everything anew, in one transaction. Pure.
fn requests(wanted: &Ranges) -> Vec<Request> {
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut table = Table::new(family, TABLE);
        table.anew();
        let of = |range: &&IpNet| Family::of(&range.addr()) == family;
        let own: Vec<&IpNet> = wanted.own.iter().filter(of).collect();
        if own.is_empty() {
            let name = Attributes::default().text(1, TABLE);
            table.requests.push(family.request(message::DEL_TABLE, 0, name, "deleting the table"));
        } else {
            table.base("postrouting", "nat", POSTROUTING, PRIORITY);
        }
        for range in own {
            let mut rule = Rule::default().source(family, R0);
            rule = masked(rule, range).compare(R0, &bytes(range.network()));
            for pods in wanted.cluster.iter().filter(of) {
                rule = masked(rule.destination(family, R0), pods).differs(R0, &bytes(pods.network()));
            }
            table.rule("postrouting", rule.masquerade());
        }
        all.extend(table.requests);
    }
    all
}

fn masked(rule: Rule, range: &IpNet) -> Rule {
    rule.and(R0, &bytes(range.netmask()))
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn failed(error: WireError) -> NetworkError {
    kernel("programming the pods' source addresses", error)
}
