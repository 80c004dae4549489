//! Random clusters, asked twice: the index, and the words of the documentation read line by line.

use super::*;
use std::fmt::Write;

/// A small generator (splitmix64), so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 33).unwrap() % sides
    }

    fn one<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.roll(words.len())]
    }

    fn some<'a>(&mut self, words: &[&'a str], most: usize) -> Vec<&'a str> {
        // Empty now and then.
        let count = if self.roll(12) == 0 { 0 } else { 1 + self.roll(most) };
        (0..count).map(|_| self.one(words)).collect()
    }

    fn rule(&mut self) -> Value {
        let mut rule = json!({
            "verbs": self.some(&["get", "list", "*"], 2),
            "apiGroups": self.some(&["", "apps", "*"], 2),
            "resources": self.some(RESOURCES, 3),
        });
        if self.roll(3) == 0 {
            rule["resourceNames"] = self.some(&["a", "b"], 2).into();
        }
        if self.roll(3) == 0 {
            rule["nonResourceURLs"] = self.some(URLS, 2).into();
        }
        rule
    }

    fn rules(&mut self, most: usize) -> Vec<Value> {
        (0..self.roll(most + 1)).map(|_| self.rule()).collect()
    }

    fn objects(&mut self) -> Vec<(&'static str, Value)> {
        let mut out = Vec::new();
        for name in ["r0", "r1", "r2"] {
            out.push(("clusterroles", super::role("", name, &self.rules(2))));
            out.push(("roles", super::role(self.one(&["n0", "n1"]), name, &self.rules(2))));
        }
        let roles = ["ClusterRole:r0", "ClusterRole:r1", "ClusterRole:r2", "ClusterRole:gone", "Role:r0", "Role:r1"];
        for i in 0..3 + self.roll(6) {
            let namespace = self.one(&["", "n0", "n1"]);
            let subjects =
                ["User:u0", "User:u1", "Group:g0", "Group:u0", "ServiceAccount:bot", "ServiceAccount:n0/bot"];
            let binding = binding(namespace, &format!("b{i}"), self.one(&roles), &self.some(&subjects, 2));
            out.push((if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" }, binding));
        }
        out
    }
}

const RESOURCES: &[&str] = &["pods", "pods/log", "nodes", "*/log", "*"];
const URLS: &[&str] = &["/a", "/a/*", "/a*", "/b", "*"];

fn list<'a>(value: &'a Value, field: &str) -> Vec<&'a str> {
    value[field].as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect()
}

fn has(value: &Value, field: &str, word: &str) -> bool {
    list(value, field).contains(&word)
}

fn url_matches(pattern: &str, url: &str) -> bool {
    pattern == url || pattern.strip_suffix('*').is_some_and(|start| url.starts_with(start))
}

fn allows(rule: &Value, a: &Attributes) -> bool {
    let star = |field: &str, word: &str| has(rule, field, word) || has(rule, field, "*");
    if !a.path.is_empty() {
        return star("verbs", &a.verb) && list(rule, "nonResourceURLs").iter().any(|url| url_matches(url, &a.path));
    }
    let sub = !a.subresource.is_empty() && has(rule, "resources", &format!("*/{}", a.subresource));
    star("verbs", &a.verb)
        && star("apiGroups", &a.group)
        && (star("resources", &a.full_resource()) || sub)
        && (list(rule, "resourceNames").is_empty() || has(rule, "resourceNames", &a.name))
}

fn held(objects: &[(&str, Value)], user: &str, group: &str, namespace: &str) -> Vec<Value> {
    let mut out = Vec::new();
    for (_, binding) in objects.iter().filter(|(resource, _)| resource.ends_with("bindings")) {
        let place = binding["metadata"]["namespace"].as_str().unwrap();
        let is = |subject: &Value| match subject["kind"].as_str().unwrap() {
            "User" => subject["name"] == user,
            "Group" => subject["name"] == group,
            _ => {
                let home = subject["namespace"].as_str().unwrap_or(place);
                !home.is_empty() && user == format!("system:serviceaccount:{home}:bot")
            }
        };
        if !(place.is_empty() || place == namespace) || !binding["subjects"].as_array().unwrap().iter().any(is) {
            continue;
        }
        let role = &binding["roleRef"];
        let plural = if role["kind"] == "Role" { "roles" } else { "clusterroles" };
        let home = if role["kind"] == "Role" { place } else { "" };
        let found = objects.iter().find(|(resource, object)| {
            *resource == plural && object["metadata"]["name"] == role["name"] && object["metadata"]["namespace"] == home
        });
        out.extend(found.into_iter().flat_map(|(_, role)| role["rules"].as_array().unwrap().clone()));
    }
    out
}

const CALLERS: &[(&str, &str)] = &[
    ("u0", "g1"),
    ("u1", "g0"),
    ("u2", "u0"),
    ("system:serviceaccount:n0:bot", "g1"),
    ("system:serviceaccount:n1:bot", "x"),
];

#[test]
fn decisions_are_those_of_the_rules_read_one_by_one() {
    let mut dice = Dice(1);
    let (mut yes, mut no) = (0, 0);
    for round in 0..120 {
        let objects = dice.objects();
        let index = index(&objects);
        for (user, group) in CALLERS {
            for _ in 0..40 {
                let mut a = attributes(dice.one(&["get", "list"]), "", "", "", "");
                if dice.roll(4) == 0 {
                    a.path = dice.one(&["/a", "/a/b", "/ab", "/c"]).to_owned();
                } else {
                    let [verb, namespace] = [dice.one(&["get", "list"]), dice.one(&["", "n0", "n1"])];
                    let [group, resource] =
                        [dice.one(&["", "apps"]), dice.one(&["pods", "pods/log", "nodes", "x/log"])];
                    a = attributes(verb, namespace, group, resource, dice.one(&["", "a", "b"]));
                }
                let expected = held(&objects, user, group, &a.namespace).iter().any(|rule| allows(rule, &a));
                let found = ask(&index, user, &[group], &a);
                assert_eq!(allowed(&found), expected, "round {round}: {user} {group} {a:?} {found:?}\n{objects:#?}");
                *if expected { &mut yes } else { &mut no } += 1;
            }
        }
    }
    assert!(yes > 1000 && no > 1000, "{yes} {no}");
}

/// Whether one rule covers a single permission.
fn covers(own: &Value, single: &Value) -> bool {
    let within = |field: &str| list(single, field).iter().all(|word| has(own, field, word) || has(own, field, "*"));
    let sub =
        |resource: &str| resource.split_once('/').is_some_and(|(_, sub)| has(own, "resources", &format!("*/{sub}")));
    let urls = list(own, "nonResourceURLs");
    let narrowed = !list(own, "resourceNames").is_empty();
    within("verbs")
        && within("apiGroups")
        && (within("resources") || list(single, "resources").iter().all(|resource| sub(resource)))
        && list(single, "nonResourceURLs").iter().all(|url| urls.iter().any(|own| url_matches(own, url)))
        && (!narrowed || !list(single, "resourceNames").is_empty())
        && (!narrowed || list(single, "resourceNames").iter().all(|name| has(own, "resourceNames", name)))
}

fn singles(rule: &Value) -> Vec<Value> {
    let mut out = Vec::new();
    for verb in list(rule, "verbs") {
        for url in list(rule, "nonResourceURLs") {
            out.push(json!({ "verbs": [verb], "nonResourceURLs": [url] }));
        }
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                let names = list(rule, "resourceNames");
                let one = json!({ "verbs": [verb], "apiGroups": [group], "resources": [resource] });
                out.extend(names.iter().map(|name| {
                    let mut one = one.clone();
                    one["resourceNames"] = json!([name]);
                    one
                }));
                if names.is_empty() {
                    out.push(one);
                }
            }
        }
    }
    out
}

#[test]
fn what_is_missing_is_what_no_rule_covers() {
    let mut dice = Dice(2);
    let (mut all, mut part) = (0, 0);
    for round in 0..1500 {
        let (own, wanted) = (dice.rules(3), dice.rules(2));
        let index = index(&[
            ("clusterroles", super::role("", "r", &own)),
            ("clusterrolebindings", binding("", "b", "ClusterRole:r", &["User:u"])),
        ]);
        let mut expected: Vec<Value> = wanted.iter().flat_map(singles).collect();
        expected.retain(|single| !own.iter().any(|own| covers(own, single)));
        let found = index.uncovered(Subject { user: "u", groups: &[] }, "", &wanted);
        let found: Vec<Value> = found.iter().flat_map(|rule| singles(&rule.to_value())).collect();
        let sorted = |rules: &[Value]| {
            let mut lines: Vec<String> = rules.iter().map(|rule| Rule::parse(rule).unwrap().compact()).collect();
            lines.sort();
            lines.dedup();
            lines.iter().fold(String::new(), |mut text, line| {
                writeln!(text, "{line}").unwrap();
                text
            })
        };
        assert_eq!(sorted(&found), sorted(&expected), "round {round}: {own:#?} {wanted:#?}");
        *if expected.is_empty() { &mut all } else { &mut part } += 1;
    }
    assert!(all > 100 && part > 100, "{all} {part}");
}
