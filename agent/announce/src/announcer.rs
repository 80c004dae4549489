//! What the plan says is done: Leases written, addresses put on the uplink and taken off it, neighbours told.
//!
//! In: what is wanted, the Leases of addresses as watched. Out: one round at a time, and until when the loop may sleep
//! unless there is news: of a node that is followed, or of the uplink.

use crate::follow::Follow;
use crate::lease::{self, Leases};
use crate::link::Uplink;
use crate::model::Wanted;
use crate::plan::{Address, DEADLINE, Decision, Memory, Own, RENEW, Sight, Silent, Step, decide};
use crate::pulse::{Due, Pulse, next_wake};
use crate::run::AnnounceConfig;
use crate::view::{Signed, View};
use causeway_api::balancer::Pool;
use causeway_api::events::{EventType, Recorder};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, Error};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The neighbours are told again after these, for a frame may get lost.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// An address that the link refuses is offered to it so often, before others are let have it …
const OFFERS: u32 = 3;
/// … for this long.
const UNFIT: Duration = Duration::from_secs(60);
/// So many Leases are read or written at once.
const AT_ONCE: usize = 16;

/// An address to take or to forget, from whom, and the address' own Lease.
type Take = (IpAddr, Option<Silent>, Option<Arc<Lease>>);

/// What is on our link.
struct Here {
    service: (String, String),
    /// When its life was last lengthened.
    put: Instant,
}

pub(crate) struct Announcer {
    config: AnnounceConfig,
    uplink: Uplink,
    leases: Leases,
    follow: Follow,
    events: Recorder,
    wanted: BTreeMap<IpAddr, Wanted>,
    memory: Memory,
    view: View,
    pulse: Pulse,
    /// The version of our Lease after its last renewal.
    version: Option<String>,
    here: BTreeMap<IpAddr, Here>,
    /// Which addresses the link did not take: how often, and when last.
    refused: HashMap<IpAddr, (u32, Instant)>,
    /// When to tell the neighbours once more.
    again: Vec<(Instant, IpAddr)>,
    /// Something was to be done in this round and could not be.
    unfinished: bool,
    /// Something was done in this round.
    acted: bool,
}

impl Announcer {
    pub(crate) fn new(client: Client, config: AnnounceConfig, uplink: Uplink, leases: Leases) -> Self {
        Self {
            uplink,
            leases,
            follow: Follow::new(client.clone()),
            events: Recorder::new(client, "causeway-announce", Some(&config.node_name)),
            config,
            wanted: BTreeMap::new(),
            memory: Memory::default(),
            view: View::default(),
            pulse: Pulse::default(),
            version: None,
            here: BTreeMap::new(),
            refused: HashMap::new(),
            again: Vec::new(),
            unfinished: false,
            acted: false,
        }
    }

    pub(crate) fn pools(&self) -> &[Pool] {
        &self.config.pools
    }

    pub(crate) fn want(&mut self, wanted: BTreeMap<IpAddr, Wanted>) {
        self.wanted = wanted;
    }

    /// What a former process left on the link is not ours by right.
    pub(crate) async fn clean(&self) {
        match self.uplink.ours().await {
            Ok(left) => {
                for ip in left {
                    tracing::info!(%ip, "removing an announced address that was left over");
                    self.off(ip).await;
                }
            }
            Err(error) => tracing::warn!("addresses that were left over stay until their life ends: {error:#}"),
        }
    }

    /// Waits until something is due, or is news. Giving up the wait loses nothing.
    pub(crate) async fn news(&mut self, wake: Option<Instant>) {
        let due = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(due);
        loop {
            tokio::select! {
                () = &mut due => return,
                () = self.uplink.changed() => return,
                seen = self.follow.next() => {
                    // A renewal only puts off what is due.
                    if self.memory.alive.see(&seen.node, seen.version.into(), seen.at) {
                        return;
                    }
                }
            }
        }
    }

    /// Looks, decides, does it. Out: when to come again without news.
    pub(crate) async fn round(&mut self, told: &[Arc<Lease>]) -> Option<Instant> {
        (self.unfinished, self.acted) = (false, false);
        let up = self.uplink.look().await.unwrap_or_else(|error| {
            tracing::warn!("looking at the uplink: {error:#}");
            false
        });
        self.lapse().await;
        for seen in self.follow.ready() {
            self.memory.alive.see(&seen.node, seen.version.into(), seen.at);
        }
        let signed = self.view.look(told);
        let Decision { duty, follow, steps, due } = self.decide(up, &signed);
        self.follow.only(&follow);
        if duty && self.pulse.is_due(Instant::now()) {
            self.renew().await;
        }
        let (mut takes, mut forgets, mut releases) = (Vec::new(), Vec::new(), Vec::new());
        for (ip, step) in steps {
            let lease = signed.get(&ip).map(|(_, lease)| lease.clone());
            match step {
                Step::Rest { .. } => {}
                Step::Keep => self.keep(ip).await,
                Step::Drop => self.drop(ip).await,
                Step::Release => releases.push((ip, lease)),
                Step::Take { from } => takes.push((ip, from, lease)),
                Step::Forget { from } => forgets.push((ip, from, lease)),
            }
        }
        self.release(releases).await;
        let joins = !takes.is_empty();
        self.take(takes).await;
        self.forget(forgets).await;
        if up && !duty && !joins && self.here.is_empty() {
            self.withdraw().await;
        }
        self.repeat().await;
        let due = Due {
            duty,
            holds: !self.here.is_empty(),
            addresses: due.into_iter().chain(self.refused.values().map(|(_, last)| *last + UNFIT)).min(),
            again: self.again.iter().map(|(at, _)| *at).min(),
            unfinished: self.unfinished,
            acted: self.acted,
        };
        next_wake(due, &self.pulse, Instant::now())
    }

    fn decide(&mut self, up: bool, signed: &HashMap<IpAddr, Signed>) -> Decision {
        self.refused.retain(|_, (_, last)| last.elapsed() < UNFIT);
        // What the link does not take is left to others.
        let others = |ip: &IpAddr| {
            let mut wanted = self.wanted.get(ip).cloned()?;
            wanted.candidates.retain(|node| *node != self.config.node_name);
            Some((*ip, wanted))
        };
        let unfit = self.refused.iter().filter(|(_, (count, _))| *count >= OFFERS);
        let unfit: BTreeMap<IpAddr, Wanted> = unfit.filter_map(|(ip, _)| others(ip)).collect();
        let ips: BTreeSet<IpAddr> = self.wanted.keys().chain(signed.keys()).chain(self.here.keys()).copied().collect();
        let address = |ip: IpAddr| Address {
            ip,
            wanted: unfit.get(&ip).or_else(|| self.wanted.get(&ip)),
            lease: signed.get(&ip).map(|(holder, _)| holder.as_str()),
            has: self.here.contains_key(&ip),
        };
        let addresses: Vec<Address<'_>> = ips.into_iter().map(address).collect();
        let own = Own { node: &self.config.node_name, fit: up };
        decide(own, &addresses, &mut self.memory, Instant::now())
    }

    /// How long what we announce may stay.
    fn left(&self) -> Option<Duration> {
        self.pulse.left(Instant::now())
    }

    /// Before any renewal: what lapsed must be taken anew.
    async fn lapse(&mut self) {
        if self.left().is_none() && !self.here.is_empty() {
            tracing::warn!(
                addresses = self.here.len(),
                "the API server did not confirm for {DEADLINE:?} that this node is alive: it announces nothing until it does"
            );
            for ip in self.here.keys().copied().collect::<Vec<_>>() {
                self.drop(ip).await;
            }
        }
    }

    async fn renew(&mut self) {
        let begun = Instant::now();
        match self.leases.renew().await {
            Ok(version) => {
                // Too late an answer must not bring back what may be another's by now.
                self.lapse().await;
                self.version = Some(version);
                self.pulse.beat(begun, true);
            }
            Err(error) => {
                if !self.pulse.is_failing() {
                    tracing::warn!("saying that this node announces addresses: {error}; trying again");
                }
                self.version = None;
                self.pulse.beat(begun, false);
            }
        }
    }

    /// Our Lease goes when it is not needed any more. Not before it has lapsed: it may be needed again.
    async fn withdraw(&mut self) {
        if !self.pulse.is_left_over(Instant::now()) {
            return;
        }
        match self.leases.leave(self.version.take()).await {
            Ok(()) => self.pulse.gone(),
            // Gone, or not as it was: the next attempt looks first.
            Err(error) => {
                tracing::debug!("taking this node's Lease away: {error}");
                self.unfinished = true;
            }
        }
    }

    async fn keep(&mut self, ip: IpAddr) {
        let Some(left) = self.left() else { return };
        let (Some(here), Some(renewed)) = (self.here.get_mut(&ip), self.pulse.renewed()) else { return };
        // Once for every renewal.
        if here.put >= renewed && here.put.elapsed() < RENEW {
            return;
        }
        here.put = Instant::now();
        if let Err(error) = self.uplink.put(ip, left).await {
            tracing::warn!("{error:#}");
        }
    }

    /// Leaves only what belongs to nobody, or to a node whose Lease is now as it was when it was last seen.
    async fn still(&mut self, takes: Vec<Take>) -> Vec<Take> {
        let silent: HashMap<String, Sight> = takes.iter().filter_map(|(_, from, _)| from.clone()).collect();
        let leases = &self.leases;
        let looks = silent.into_iter().map(|(node, seen)| async move {
            let now = leases.look(&node).await.map(Sight::from);
            (node, seen, now)
        });
        let looks: Vec<_> = futures::stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        let mut still = BTreeSet::new();
        for (node, seen, now) in looks {
            match now {
                Ok(now) if now == seen => drop(still.insert(node)),
                Ok(now) => {
                    self.memory.alive.see(&node, now, Instant::now());
                    self.acted = true;
                }
                Err(error) => {
                    tracing::warn!("looking whether {node} is alive: {error}; trying again");
                    // All that only look now and then would come at once when the API server is back.
                    if !self.follow.is_followed(&node) {
                        self.memory.alive.doubt(&node);
                    }
                    self.unfinished = true;
                }
            }
        }
        takes.into_iter().filter(|(_, from, _)| from.as_ref().is_none_or(|(node, _)| still.contains(node))).collect()
    }

    /// Signs what is to come here, several at once, then puts it on the link.
    async fn take(&mut self, takes: Vec<Take>) {
        let mut takes = self.still(takes).await;
        let offered = takes.len();
        takes.retain(|(ip, ..)| self.refused.get(ip).is_none_or(|(_, last)| last.elapsed() >= RENEW));
        self.unfinished |= takes.len() < offered;
        if takes.is_empty() {
            return;
        }
        // Nobody announces without saying that it is alive.
        if self.left().is_none() && self.pulse.may_join(Instant::now()) {
            self.renew().await;
        }
        if self.left().is_none() {
            self.unfinished = true;
            return;
        }
        let (leases, node) = (&self.leases, &self.config.node_name);
        let signing = takes.into_iter().map(|(ip, from, lease)| async move {
            let outcome = leases.sign(ip, lease.as_deref(), node).await;
            (ip, from, lease, outcome)
        });
        let signed: Vec<_> = futures::stream::iter(signing).buffer_unordered(AT_ONCE).collect().await;
        let mut new = Vec::new();
        for (ip, from, before, outcome) in signed {
            match outcome {
                Ok(after) => {
                    self.view.wrote(ip, before.as_deref(), Some(after));
                    self.acted = true;
                    new.push((ip, from.map(|(node, _)| node)));
                }
                Err(error) => self.lost(ip, &error, "taking over"),
            }
        }
        for (ip, from) in &new {
            // Nothing is put there that may have to go again before it is known.
            let (Some(left), Some(wanted)) = (self.left(), self.wanted.get(ip)) else { continue };
            if let Err(error) = self.uplink.put(*ip, left).await {
                let refused = self.refused.entry(*ip).or_insert((0, Instant::now()));
                *refused = (refused.0 + 1, Instant::now());
                tracing::warn!(times = refused.0, "{error:#}");
                self.unfinished = true;
                continue;
            }
            self.refused.remove(ip);
            self.here.insert(*ip, Here { service: wanted.service.clone(), put: Instant::now() });
            tracing::info!(%ip, from = from.as_deref().unwrap_or(""), "announcing a load balancer's address");
            let now = Instant::now();
            self.again.extend(AGAIN.map(|after| (now + after, *ip)));
            self.report(ip, wanted);
        }
        self.tell(new.into_iter().map(|(ip, _)| ip).filter(|ip| self.here.contains_key(ip)).collect()).await;
    }

    /// A write about an address that did not succeed.
    fn lost(&mut self, ip: IpAddr, error: &Error, what: &str) {
        self.view.doubt(ip);
        // The watch may have shown already what we lost to, or may yet.
        self.unfinished = true;
        if !lease::is_race(error) {
            tracing::warn!("{what} the address {ip}: {error}; trying again");
        }
    }

    async fn tell(&self, addresses: Vec<IpAddr>) {
        if !addresses.is_empty()
            && let Err(error) = self.uplink.tell(addresses).await
        {
            tracing::warn!("{error:#}; neighbours will ask by themselves");
        }
    }

    async fn repeat(&mut self) {
        let now = Instant::now();
        let due: Vec<IpAddr> = self.again.iter().filter(|(at, _)| *at <= now).map(|(_, ip)| *ip).collect();
        self.again.retain(|(at, _)| *at > now);
        self.tell(due.into_iter().filter(|ip| self.here.contains_key(ip)).collect()).await;
    }

    fn report(&self, ip: &IpAddr, wanted: &Wanted) {
        let (namespace, name) = &wanted.service;
        let service = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: wanted.uid.clone(),
            ..ObjectReference::default()
        };
        let message = format!("announcing {ip} from node {}", Value::from(self.config.node_name.as_str()));
        self.events.record_ref(service, EventType::Normal, "AnnouncingAddress", message);
    }

    async fn off(&self, ip: IpAddr) {
        if let Err(error) = self.uplink.remove(ip).await {
            tracing::warn!("{error:#}; its life ends by itself");
        }
    }

    async fn drop(&mut self, ip: IpAddr) {
        self.off(ip).await;
        if let Some(here) = self.here.remove(&ip) {
            tracing::info!(%ip, service = here.service.1, "no longer announcing a load balancer's address");
        }
    }

    /// Off the link first, all of them, then the names: at no moment is one another's while it is still here.
    async fn release(&mut self, releases: Vec<(IpAddr, Option<Arc<Lease>>)>) {
        for (ip, _) in &releases {
            self.drop(*ip).await;
        }
        let (leases, wanted) = (&self.leases, &self.wanted);
        let signing = releases.into_iter().filter_map(|(ip, lease)| Some((ip, lease?))).map(|(ip, lease)| async move {
            let done = match wanted.contains_key(&ip) {
                true => leases.sign(ip, Some(&lease), "").await.map(Some),
                false => leases.forget(ip, &lease).await.map(|()| None),
            };
            (ip, lease, done)
        });
        let signed: Vec<_> = futures::stream::iter(signing).buffer_unordered(AT_ONCE).collect().await;
        for (ip, lease, done) in signed {
            match done {
                Ok(after) => {
                    self.view.wrote(ip, Some(&lease), after);
                    self.acted = true;
                }
                Err(error) => self.lost(ip, &error, "giving up"),
            }
        }
    }

    /// The Lease of an address that nobody wants or holds any more goes.
    async fn forget(&mut self, forgets: Vec<Take>) {
        for (ip, _, lease) in self.still(forgets).await {
            let Some(lease) = lease else { continue };
            match self.leases.forget(ip, &lease).await {
                Ok(()) => self.view.wrote(ip, Some(&lease), None),
                Err(error) => self.lost(ip, &error, "forgetting"),
            }
        }
    }

    /// Gives everything up, so that others take it without waiting.
    pub(crate) async fn leave(&mut self, told: &[Arc<Lease>]) {
        self.clean().await;
        let all = self.view.look(told).into_iter();
        let ours = all.filter(|(_, (holder, _))| *holder == self.config.node_name);
        self.release(ours.map(|(ip, (_, lease))| (ip, Some(lease))).collect()).await;
        if let Err(error) = self.leases.leave(None).await {
            tracing::debug!("taking this node's Lease away: {error}");
        }
    }
}
