//! Tables of nftables, as they stand in the netlink requests that make them. In: requests. Out: chains of rules by name,
//! and sets in which keys are looked up as the kernel does it.

use causeway_services::{
    family::message,
    wire::{Request, attribute, attributes, number},
};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Set {
    pub key_length: usize,
    pub flags: u32,
    /// Key, its end in a set of ranges of several parts, data.
    pub elements: BTreeMap<Vec<u8>, Element>,
}

#[derive(Debug, Clone)]
pub struct Element {
    pub is_end: bool,
    pub end: Option<Vec<u8>>,
    pub data: Data,
}

#[derive(Debug, Clone)]
pub enum Data {
    None,
    Value(Vec<u8>),
    Verdict(i32, String),
}

#[derive(Debug)]
pub struct Base {
    pub name: String,
    pub kind: String,
    pub hook: u32,
    pub priority: i32,
}

/// A rule: the names of its expressions and their attributes.
pub type Expressions = Vec<(String, Vec<u8>)>;

#[derive(Debug, Default)]
pub struct Table {
    pub bases: Vec<Base>,
    pub chains: BTreeMap<String, Vec<Expressions>>,
    pub sets: BTreeMap<String, Set>,
}

pub fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes.unwrap_or_else(|| panic!("a name is missing"));
    String::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes).to_vec()).unwrap()
}

pub fn value(bytes: &[u8], kind: u16) -> u32 {
    attribute(bytes, kind).and_then(number).unwrap_or_default()
}

pub fn verdict(data: &[u8]) -> Option<(i32, String)> {
    let verdict = attribute(data, 2)?;
    let chain = attribute(verdict, 2).map(|c| text(Some(c))).unwrap_or_default();
    Some((value(verdict, 1) as i32, chain))
}

/// What these requests make, one after the other, by family.
pub fn made_by(requests: Vec<Request>) -> BTreeMap<u8, Table> {
    let mut tables: BTreeMap<u8, Table> = BTreeMap::new();
    for request in requests {
        let (table, a) = (tables.entry(request.family).or_default(), &request.attributes.0);
        match request.kind & 0xff {
            message::NEW_TABLE => {}
            message::DEL_TABLE => *table = Table::default(),
            message::NEW_CHAIN => {
                let name = text(attribute(a, 3));
                if let Some(hook) = attribute(a, 4) {
                    let (hook, priority) = (value(hook, 1), value(hook, 2) as i32);
                    table.bases.push(Base { name: name.clone(), kind: text(attribute(a, 7)), hook, priority });
                }
                assert!(table.chains.insert(name, Vec::new()).is_none());
            }
            message::NEW_RULE => {
                let expressions = attributes(attribute(a, 4).unwrap());
                let rule =
                    expressions.map(|(_, e)| (text(attribute(e, 1)), attribute(e, 2).unwrap_or_default().to_vec()));
                table.chains.get_mut(&text(attribute(a, 2))).unwrap().push(rule.collect());
            }
            message::NEW_SET => {
                let set = Set { key_length: value(a, 5) as usize, flags: value(a, 3), elements: BTreeMap::new() };
                table.sets.insert(text(attribute(a, 2)), set);
            }
            message::NEW_ELEMENTS => {
                let set = table.sets.get_mut(&text(attribute(a, 2))).unwrap();
                for (_, element) in attributes(attribute(a, 3).unwrap()) {
                    set.add(element);
                }
            }
            other => panic!("the tracer does not know the request {other}"),
        }
    }
    for table in tables.values_mut() {
        table.bases.sort_by_key(|base| base.priority);
    }
    tables
}

impl Set {
    fn add(&mut self, element: &[u8]) {
        let part = |kind| attribute(element, kind).and_then(|v| attribute(v, 1)).map(<[u8]>::to_vec);
        let data = match attribute(element, 2) {
            None => Data::None,
            Some(data) => match (verdict(data), attribute(data, 1)) {
                (Some((code, chain)), _) => Data::Verdict(code, chain),
                (None, Some(value)) => Data::Value(value.to_vec()),
                (None, None) => panic!("an element with strange data"),
            },
        };
        let one = Element { is_end: value(element, 3) & 1 != 0, end: part(10), data };
        let key = part(1).unwrap();
        // Where one range ends and the next starts, the start counts.
        if !one.is_end || !self.elements.contains_key(&key) {
            self.elements.insert(key, one);
        }
    }

    pub fn find(&self, key: &[u8]) -> Option<&Element> {
        const INTERVAL: u32 = 0x4;
        if self.flags & INTERVAL == 0 {
            return self.elements.get(key);
        }
        if self.elements.values().any(|e| e.end.is_some()) {
            // Ranges of several parts: each part lies in its own range.
            let inside = |start: &[u8], end: &[u8]| {
                key.chunks(4).zip(start.chunks(4)).zip(end.chunks(4)).all(|((k, s), e)| s <= k && k <= e)
            };
            let mut all = self.elements.iter().filter(|(s, e)| inside(s, e.end.as_ref().unwrap_or(s)));
            return all.next().map(|(_, e)| e);
        }
        let (_, last) = self.elements.range(..=key.to_vec()).next_back()?;
        (!last.is_end).then_some(last)
    }
}
