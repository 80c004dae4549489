//! The fixed part of our tables: chains and rules that look everything up and never change with services.
//!
//! A new connection takes this way: `services` looks its destination up, twice (should the first look fall between two
//! generations of the maps), and the number found names a chain of `dispatch`: to refuse, to drop, or to pick a place at
//! random and translate to the endpoint that has it. What finds nothing but is a service address is refused or dropped.
//! `postrouting` gives another source address only to what could not find its way back otherwise.
//!
//! In: a family and the affinity time-outs in use. Out: requests that make table, sets, chains and rules from nothing.

use crate::{
    family::{Family, SetName, TABLE, message},
    plan::{DROP, ENDPOINT_EXTERNAL, EXACT, EXTERNAL, REFUSE, Timeouts, WIDE},
    wire::{Attributes, Request},
};
use causeway_nft::{
    rule::{R0, Rule, VERDICT_DROP, VERDICT_GOTO, VERDICT_JUMP, VERDICT_RETURN, verdict},
    table::Table,
};

/// To be raised when anything below changes: a table of another version is made anew.
pub const VERSION: u32 = 6;

/// What only our chains do.
trait Expressions: Sized {
    /// Looks the front in register 0 up, and goes to the chain that `dispatch` has for the number found. `found` is a
    /// register with three more after it.
    ///
    /// The number is the last part of what the map gives, and lands where a mark was loaded before. Debian's `nft`
    /// (1.0.6) knows no length for what a map gives and, should that be a key, ends with a failed assertion, also for
    /// everybody else on the machine who lists rules. This way it takes the number for the mark, and prints that.
    fn dispatch(self, set: SetName, found: u32) -> Self;

    /// Loads the client's address to `to` and after it the Service port that the front in register 0 belongs to. What
    /// the map gives starts with nothing of use, which the address covers; see [`Expressions::dispatch`] for why.
    fn client(self, family: Family, set: SetName, to: u32) -> Self;

    /// Remembers a client's endpoint for so many seconds from now, or forgets it. A map's statement names the
    /// register of the data even where it is not read.
    fn remember(self, key: u32, number: u32, seconds: Option<u32>) -> Self;
}

impl Expressions for Rule {
    fn dispatch(self, set: SetName, found: u32) -> Self {
        let number = found + 3;
        self.mark(number).look_up(set, R0, found).look_up(SetName::Dispatch, number, 0)
    }

    fn client(self, family: Family, set: SetName, to: u32) -> Self {
        let group = to + family.length() / 4;
        self.mark(group).mark(group + 1).look_up(set, R0, group - 1).source(family, to)
    }

    fn remember(self, key: u32, number: u32, seconds: Option<u32>) -> Self {
        const UPDATE: u32 = 1;
        const DELETE: u32 = 2;
        let operation = if seconds.is_some() { UPDATE } else { DELETE };
        let mut data = Attributes::default()
            .text(1, SetName::Affinity.name())
            .number(3, operation)
            .number(4, key)
            .number(5, number);
        if let Some(seconds) = seconds {
            data = data.bytes(6, &(u64::from(seconds) * 1000).to_be_bytes());
        }
        self.with("dynset", data)
    }
}

/// Everything from nothing: an older table of the name goes in the same transaction.
pub fn table(family: Family, timeouts: &Timeouts) -> Vec<Request> {
    let mut t = Table::new(family, TABLE);
    t.anew();
    for (id, set) in SetName::all().enumerate() {
        t.requests.push(set.create(family, id as u32 + 1));
    }
    for chain in ["refuse", "services", "new-source"] {
        t.chain(chain);
    }
    t.refuse();
    let ends = [dispatch(REFUSE, VERDICT_GOTO, Some("refuse")), dispatch(DROP, VERDICT_DROP, None)];
    t.dispatch(&ends);
    t.classes(timeouts, 0);
    t.services();
    t.masquerade();
    t.hooks();
    t.requests
}

/// The chains that time-outs need beyond the first `known` of them, beside what is there.
pub fn more(family: Family, timeouts: &Timeouts, known: usize) -> Vec<Request> {
    let mut t = Table::new(family, TABLE);
    t.classes(timeouts, known + 1);
    t.requests
}

fn dispatch(value: u32, code: i32, chain: Option<&str>) -> Attributes {
    let key = Attributes::default().bytes(1, &value.to_ne_bytes());
    Attributes::default().nest(1, key).nest(2, verdict(code, chain))
}

/// What our tables have.
trait Chains {
    fn refuse(&mut self);
    /// The chain for a class and a number of places; returns its element of `dispatch`.
    fn pick(&mut self, class: u32, places: u32, affinity: Option<u32>) -> Attributes;
    /// The chains of all classes of the time-outs from this one on; 0 is that of no affinity.
    fn classes(&mut self, timeouts: &Timeouts, first: usize);
    fn dispatch(&mut self, elements: &[Attributes]);
    fn services(&mut self);
    /// Fronts with limits do not take connections from everywhere.
    fn limit(&mut self, chain: &str);
    fn masquerade(&mut self);
    fn hooks(&mut self);
}

impl Chains for Table {
    fn refuse(&mut self) {
        self.rule("refuse", Rule::default().protocol(R0).compare(R0, &[6]).refuse(true, self.family));
        self.rule("refuse", Rule::default().refuse(false, self.family));
    }

    fn pick(&mut self, class: u32, places: u32, affinity: Option<u32>) -> Attributes {
        let family = self.family;
        let name = format!("pick-{class}-{places}");
        self.chain(&name);
        let offset = if class % 2 == 1 { EXTERNAL } else { 0 };
        match affinity {
            None => {
                let (rule, place) = Rule::default().front(family, R0);
                let rule = rule.random(places, offset, place).look_up(SetName::Endpoints, R0, R0);
                self.rule(&name, rule.translate(family, R0));
            }
            Some(seconds) => {
                // Front and the endpoint's number stand side by side, and so do client and Service port, for each key
                // is a stretch of them. What a map gives covers the port, which is loaded again; see `dispatch` for why.
                let is_external = class % 2 == 1;
                let (rule, id) = Rule::default().front(family, R0);
                let (port, client) = (id - 1, id + 1);
                let set = if is_external { SetName::External } else { SetName::Services };
                let rule = rule.client(family, set, client);
                // Sixteen registers are few: the endpoint takes those of the client, which is looked up no more.
                let translate = |rule: Rule| {
                    let rule = if is_external { rule.or(id, ENDPOINT_EXTERNAL) } else { rule };
                    rule.look_up(SetName::Sticky, R0, client).translate(family, client)
                };
                let known = rule.clone().mark(id).look_up(SetName::Affinity, client, port).port(port);
                // Only an endpoint that is still there keeps its clients; others go on to the next rule.
                self.rule(&name, translate(known.remember(client, port, Some(seconds))));
                let fresh = rule.random(places, offset, id).look_up(SetName::Ids, R0, port).port(port);
                // An entry whose endpoint is gone is not overwritten by an update.
                let fresh = fresh.remember(client, port, None).remember(client, port, Some(seconds));
                self.rule(&name, translate(fresh));
                // Should there be no room for one more client.
                let (rule, place) = Rule::default().front(family, R0);
                let rule = rule.random(places, offset, place).look_up(SetName::Endpoints, R0, R0);
                self.rule(&name, rule.translate(family, R0));
            }
        }
        dispatch(class << 16 | places, VERDICT_JUMP, Some(&name))
    }

    fn classes(&mut self, timeouts: &Timeouts, first: usize) {
        let mut dispatch = Vec::new();
        for index in first..=timeouts.0.len() {
            let affinity = index.checked_sub(1).map(|i| timeouts.0[i]);
            for class in [index as u32 * 2, index as u32 * 2 + 1] {
                dispatch.extend((1..=EXACT).chain(WIDE).map(|places| self.pick(class, places, affinity)));
            }
        }
        self.dispatch(&dispatch);
    }

    fn dispatch(&mut self, elements: &[Attributes]) {
        for chunk in elements.chunks(256) {
            let list = chunk.iter().fold(Attributes::default(), |list, e| list.nest(1, e.clone()));
            let name = SetName::Dispatch.name();
            let attributes = Attributes::default().text(1, TABLE).text(2, name).nest(3, list);
            self.requests.push(self.family.make(message::NEW_ELEMENTS, attributes, "elements of dispatch"));
        }
    }

    fn services(&mut self) {
        let family = self.family;
        for _ in 0..2 {
            let (rule, number) = Rule::default().front(family, R0);
            self.rule("services", rule.dispatch(SetName::Services, number));
        }
        let to = Rule::default().destination(family, R0);
        self.rule("services", to.clone().if_in(SetName::ClusterIps, R0).verdict(VERDICT_GOTO, Some("refuse")));
        self.rule("services", to.if_in(SetName::Ranges, R0).drop());
    }

    fn limit(&mut self, chain: &str) {
        let (rule, next) = Rule::default().front(self.family, R0);
        let limited = rule.if_in(SetName::Limited, R0).source(self.family, next);
        self.rule(chain, limited.unless_in(SetName::Sources, R0).drop());
    }

    fn masquerade(&mut self) {
        let family = self.family;
        let width = family.length() / 4;
        let both = Rule::default().source(family, R0).destination(family, R0 + width);
        self.rule("new-source", both.if_in(SetName::Hairpin, R0).masquerade());
        // Answers to and from this node's own come by here anyway.
        let own = |rule: Rule| rule.if_in(SetName::Local, R0).verdict(VERDICT_RETURN, None);
        self.rule("new-source", own(Rule::default().source(family, R0)));
        self.rule("new-source", own(Rule::default().destination(family, R0)));
        self.rule("new-source", Rule::default().masquerade());
    }

    fn hooks(&mut self) {
        let family = self.family;
        self.base("prerouting", "nat", 0, -100);
        self.limit("prerouting");
        for _ in 0..2 {
            let (rule, number) = Rule::default().source(family, R0).unless_in(SetName::Pods, R0).front(family, R0);
            self.rule("prerouting", rule.dispatch(SetName::External, number));
        }
        self.rule("prerouting", Rule::default().jump("services"));
        self.base("output", "nat", 3, -100);
        self.limit("output");
        self.rule("output", Rule::default().jump("services"));
        self.base("postrouting", "nat", 4, 100);
        // Only what is ours: another program's translations are its own.
        for set in [SetName::Services, SetName::External] {
            let to = R0 + family.length() / 4 + 2;
            let ours = Rule::default().original_front(family, R0).look_up(set, R0, to);
            self.rule("postrouting", ours.verdict(VERDICT_GOTO, Some("new-source")));
        }
        // What connection tracking finds invalid is not translated, and must not wander about with a service address.
        self.base("forward", "filter", 2, 0);
        self.rule("forward", Rule::default().destination(family, R0).if_in(SetName::Ranges, R0).drop());
        self.base("filter-output", "filter", 3, 0);
        self.rule("filter-output", Rule::default().destination(family, R0).if_in(SetName::Ranges, R0).drop());
    }
}
