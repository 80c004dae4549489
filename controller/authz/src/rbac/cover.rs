//! Whether somebody's rules cover other rules: nobody may hand on what they do not hold.
//!
//! A wanted rule is broken down into single permissions (one verb, one group, one resource, one name; or one verb
//! and one URL), and each must be covered by one rule of the caller.

use super::rule::{Rule, prefix_of};
use super::words::Words;
use serde_json::Value;

/// So many single permissions are looked at in one question.
const MAX_SINGLE: usize = 20_000;

/// One permission.
#[derive(Clone, Copy)]
enum Single<'a> {
    Resource { verb: &'a str, group: &'a str, resource: &'a str, name: Option<&'a str> },
    Url { verb: &'a str, url: &'a str },
}

/// The rules that `held` do not cover, put together again where they differ in the verb only.
pub(super) fn uncovered(held: &[&Rule], wanted: &[Value]) -> Vec<Rule> {
    let mut missing = Vec::new();
    let mut left = MAX_SINGLE;
    for value in wanted {
        let Some(rule) = Rule::parse(value) else {
            missing.extend(everything().into_iter().filter(|all| !held.iter().any(|own| covers_whole(own, all))));
            continue;
        };
        // The common case, for the price of one comparison; and the only one for what is too long to break down.
        if held.iter().any(|own| covers_whole(own, &rule)) {
            continue;
        }
        let singles = count(&rule);
        if singles > left {
            missing.push(rule);
            continue;
        }
        left -= singles;
        break_down(&rule, |single| {
            if !held.iter().any(|own| covers(own, single)) {
                missing.extend(single.to_rule());
            }
        });
    }
    compact(missing)
}

/// What only a cluster administrator has.
pub(super) fn everything() -> Vec<Rule> {
    let all = || Words::new(&["*"]).unwrap_or_default();
    vec![
        Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
        Rule { verbs: all(), urls: all(), ..Rule::default() },
    ]
}

fn count(rule: &Rule) -> usize {
    let resources = [rule.groups.len(), rule.resources.len(), rule.names.len().max(1)];
    let resources = resources.iter().fold(1usize, |all, n| all.saturating_mul(*n));
    resources.saturating_add(rule.urls.len()).saturating_mul(rule.verbs.len())
}

fn break_down<'a>(rule: &'a Rule, mut visit: impl FnMut(Single<'a>)) {
    for verb in rule.verbs.iter() {
        for group in rule.groups.iter() {
            for resource in rule.resources.iter() {
                if rule.names.is_empty() {
                    visit(Single::Resource { verb, group, resource, name: None });
                }
                for name in rule.names.iter() {
                    visit(Single::Resource { verb, group, resource, name: Some(name) });
                }
            }
        }
        for url in rule.urls.iter() {
            visit(Single::Url { verb, url });
        }
    }
}

fn covers(own: &Rule, single: Single<'_>) -> bool {
    match single {
        Single::Resource { verb, group, resource, name } => {
            own.verbs.allows(verb)
                && own.groups.allows(group)
                && covers_resource(own, resource)
                && (own.names.is_empty() || name.is_some_and(|name| own.names.contains(name)))
        }
        // Names of resources narrow a rule as a whole.
        Single::Url { verb, url } => own.names.is_empty() && own.verbs.allows(verb) && covers_url(own, url),
    }
}

fn covers_resource(own: &Rule, resource: &str) -> bool {
    own.resources.allows(resource)
        || resource.split_once('/').is_some_and(|(_, sub)| own.resources.contains(&format!("*/{sub}")))
}

fn covers_url(own: &Rule, url: &str) -> bool {
    own.urls.iter().any(|own| own == url || prefix_of(own, url))
}

/// Every single permission of the rule is covered by this one.
fn covers_whole(own: &Rule, rule: &Rule) -> bool {
    let asks_resources = !rule.groups.is_empty() && !rule.resources.is_empty();
    let names = own.names.is_empty() || !rule.names.is_empty() && rule.names.iter().all(|n| own.names.contains(n));
    let resources = || {
        rule.groups.iter().all(|group| own.groups.allows(group))
            && rule.resources.iter().all(|resource| covers_resource(own, resource))
            && names
    };
    let urls = || own.names.is_empty() && rule.urls.iter().all(|url| covers_url(own, url));
    rule.verbs.iter().all(|verb| own.verbs.allows(verb))
        && (!asks_resources || resources())
        && (rule.urls.is_empty() || urls())
}

impl Single<'_> {
    fn to_rule(self) -> Option<Rule> {
        Some(match self {
            Self::Url { verb, url } => {
                Rule { verbs: Words::new(&[verb])?, urls: Words::new(&[url])?, ..Rule::default() }
            }
            Self::Resource { verb, group, resource, name } => Rule {
                verbs: Words::new(&[verb])?,
                groups: Words::new(&[group])?,
                resources: Words::new(&[resource])?,
                names: Words::new(&Vec::from_iter(name))?,
                ..Rule::default()
            },
        })
    }
}

/// Puts rules together that are for one resource of one group (with at most one name) and differ in their verbs.
fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut places = std::collections::HashMap::new();
    let mut out: Vec<(Rule, Vec<String>)> = Vec::new();
    for rule in rules {
        let simple =
            rule.groups.len() == 1 && rule.resources.len() == 1 && rule.names.len() < 2 && rule.urls.is_empty();
        let first = |words: &Words| words.iter().next().map(str::to_owned);
        let key = (first(&rule.groups), first(&rule.resources), first(&rule.names));
        let verbs: Vec<String> = rule.verbs.iter().map(str::to_owned).collect();
        if !simple {
            out.push((rule, verbs));
            continue;
        }
        match places.get(&key).and_then(|place: &usize| out.get_mut(*place)) {
            Some((_, known)) => known.extend(verbs),
            None => {
                places.insert(key, out.len());
                out.push((rule, verbs));
            }
        }
    }
    let with_verbs = |(rule, verbs): (Rule, Vec<String>)| {
        let verbs: Vec<&str> = verbs.iter().map(String::as_str).collect();
        Rule { verbs: Words::new(&verbs).unwrap_or_default(), ..rule }
    };
    out.into_iter().map(with_verbs).collect()
}
