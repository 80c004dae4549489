//! The requests that make one table: chains and rules, in order.

use crate::{
    family::{Family, message},
    rule::Rule,
    wire::{APPEND, Attributes, Request},
};

/// Requests under construction for one table of one family.
#[derive(Debug)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// What is to be done, in order.
    pub requests: Vec<Request>,
}

impl Table {
    /// Empty.
    pub fn new(family: Family, name: &'static str) -> Self {
        Self { family, name, requests: Vec::new() }
    }

    /// A table of that name, empty whether there was one or not.
    pub fn anew(&mut self) {
        let name = || Attributes::default().text(1, self.name);
        // To delete what may not be there, make it first.
        let make = || self.family.make(message::NEW_TABLE, name(), "the table");
        let delete = self.family.request(message::DEL_TABLE, 0, name(), "deleting the old table");
        let all = [make(), delete, make()];
        self.requests.extend(all);
    }

    /// A chain that others jump to.
    pub fn chain(&mut self, name: &str) {
        let attributes = Attributes::default().text(1, self.name).text(3, name);
        self.requests.push(self.family.make(message::NEW_CHAIN, attributes, format!("the chain {name}")));
    }

    /// A chain at a hook, by the number of `enum nf_inet_hooks`.
    pub fn base(&mut self, name: &str, kind: &str, hook: u32, priority: i32) {
        let hook = Attributes::default().number(1, hook).number(2, priority as u32);
        let attributes = Attributes::default().text(1, self.name).text(3, name).nest(4, hook).text(7, kind);
        self.requests.push(self.family.make(message::NEW_CHAIN, attributes, format!("the chain {name}")));
    }

    /// One more rule at the end of a chain.
    pub fn rule(&mut self, chain: &str, rule: Rule) {
        self.add_rule(chain, rule, Attributes::default());
    }

    /// The same with a comment, as `nft` shows it: at most 200 bytes.
    pub fn commented_rule(&mut self, chain: &str, rule: Rule, comment: &str) {
        const COMMENT: u8 = 0;
        let bytes = [&[COMMENT, comment.len() as u8 + 1], comment.as_bytes(), &[0]].concat();
        self.add_rule(chain, rule, Attributes::default().bytes(7, &bytes));
    }

    fn add_rule(&mut self, chain: &str, rule: Rule, more: Attributes) {
        let mut attributes = Attributes::default().text(1, self.name).text(2, chain).nest(4, rule.0);
        attributes.0.extend(more.0);
        let mut request = self.family.make(message::NEW_RULE, attributes, format!("a rule of the chain {chain}"));
        request.flags |= APPEND;
        self.requests.push(request);
    }
}
