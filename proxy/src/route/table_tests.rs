//! The table against its definition, and copies of it against fresh ones.

use super::*;
use crate::route::{Action, ObjectKey, path};
use proptest::prelude::*;
use std::time::{Duration, Instant};

fn route(name: &str) -> Arc<Route> {
    Arc::new(Route::plain(ObjectKey::new("t", name), Action::Unavailable("test".into())))
}

#[test]
fn wide_wildcards_and_rows_that_do_not_take_a_request() {
    let mut t = Table::with_wide_wildcards();
    let host = |h: &str| HostPattern::parse(Some(h)).unwrap();
    for (h, p, name) in [
        ("*.example", "/", "far"),
        ("*.a.example", "/", "near"),
        ("*.a.example", "/deep", "deep"),
        ("b.a.example", "/deep/er", "exact"),
    ] {
        t.insert(&host(h), &PathPattern::prefix(p).unwrap(), name);
    }
    let all = |t: &Table<&'static str>, h: &str, path: &str| {
        let mut seen = Vec::new();
        let none: Option<()> = t.find(Some(h), path.as_bytes(), &mut |row: &&'static str| {
            seen.push(*row);
            None
        });
        assert!(none.is_none());
        seen.join(" ")
    };
    assert_eq!(all(&t, "b.a.example", "/deep/er/x"), "exact deep near far");
    assert_eq!(all(&t, "x.y.a.example", "/deep"), "deep near far");
    assert_eq!(all(&t, "a.example", "/"), "far");
    assert_eq!(all(&t, "example", "/"), "");
    t.join(&host("*.example"), &PathPattern::prefix("/").unwrap(), "two", |old, new| {
        assert_eq!((*old, new), ("far", "two"));
        *old = "both";
    });
    assert_eq!(all(&t, "a.example", "/"), "both");
}

fn found(table: &Table, host: &str, path: &str) -> Option<String> {
    let path = path::canonical(path).unwrap();
    table.lookup((!host.is_empty()).then_some(host), &path).map(|r| r.owner.name.to_string())
}

#[test]
fn precedence() {
    let mut t = Table::default();
    let host = |h: &str| HostPattern::parse(Some(h)).unwrap();
    for (h, p, name) in [
        ("a.example", PathPattern::prefix("/"), "root"),
        ("a.example", PathPattern::prefix("/foo"), "foo"),
        ("a.example", PathPattern::exact("/foo"), "foo-exact"),
        ("a.example", PathPattern::prefix("/foo/bar/"), "foobar"),
        ("*.example", PathPattern::prefix("/w"), "wild"),
        ("", PathPattern::prefix("/any"), "any"),
        ("b.example", PathPattern::prefix("/only"), "b"),
    ] {
        t.insert(&host(h), &p.unwrap(), route(name));
    }
    for (h, p, want) in [
        ("a.example", "/", Some("root")),
        ("a.example", "/foo", Some("foo-exact")),
        ("a.example", "/foo/", Some("foo")),
        ("a.example", "/foo/bar", Some("foobar")),
        ("a.example", "/foo/bar/baz", Some("foobar")),
        ("a.example", "/foo/barbaz", Some("foo")),
        ("a.example", "/foobar", Some("root")),
        ("c.example", "/w/x", Some("wild")),
        ("d.c.example", "/w/x", None),
        ("example", "/w", None),
        ("b.example", "/only/x", Some("b")),
        // A rule for every host, or for a wildcard, still counts where a better host has no path for it.
        ("b.example", "/w", Some("wild")),
        ("b.example", "/any", Some("any")),
        ("", "/any/x", Some("any")),
        ("b.example", "/none", None),
    ] {
        assert_eq!(found(&t, h, p).as_deref(), want, "{h} {p}");
    }
    t.set_default(&host("b.example"), Some(route("b-default")));
    t.set_default(&HostPattern::Any, Some(route("default")));
    assert_eq!(found(&t, "b.example", "/none").as_deref(), Some("b-default"));
    assert_eq!(found(&t, "zzz", "/none").as_deref(), Some("default"));
    assert_eq!(found(&t, "b.example", "/any").as_deref(), Some("any"));
    assert_eq!(t.len(), 7);
    assert_eq!(t.rows().len(), 9);
}

fn hosts() -> impl Strategy<Value = HostPattern> {
    prop_oneof![
        Just(HostPattern::Any),
        "[ab](\\.[ab]){0,2}".prop_map(|h| HostPattern::parse(Some(&h)).unwrap()),
        "[ab](\\.[ab]){0,1}".prop_map(|h| HostPattern::parse(Some(&format!("*.{h}"))).unwrap()),
    ]
}

fn paths() -> impl Strategy<Value = PathPattern> {
    ("(/[ab]{1,2}){0,3}/?", 0..3).prop_map(|(p, kind)| {
        let p = if p.is_empty() { "/".to_owned() } else { p };
        match kind {
            0 => PathPattern::exact(&p).unwrap(),
            1 => PathPattern::prefix(&p).unwrap(),
            // Lengths differ where expressions do, so that the order is the definition's.
            _ => PathPattern::regex(&format!("{p}.{{{},}}$", p.bytes().filter(|b| *b == b'a').count())).unwrap(),
        }
    })
}

/// The definition, said plainly: of all rules that match, the best host, then exact, then the longest.
fn reference<'a>(
    rules: &'a [(HostPattern, PathPattern)],
    host: &str,
    path: &[u8],
) -> Option<&'a (HostPattern, PathPattern)> {
    rules.iter().filter(|(h, p)| h.matches(host) && p.matches(path)).max_by_key(|(h, p)| {
        let host_rank = match h {
            HostPattern::Exact(_) => 2,
            HostPattern::Wildcard(_) => 1,
            HostPattern::Any => 0,
        };
        match p {
            PathPattern::Exact(p) => (host_rank, 2, p.len()),
            PathPattern::Regex(t) => (host_rank, 1, t.len()),
            PathPattern::Prefix(p) => (host_rank, 0, p.len()),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn agrees_with_the_definition(
        rules in prop::collection::vec((hosts(), paths()), 0..24),
        requests in prop::collection::vec(("[ab](\\.[ab]){0,3}", "(/[ab]{1,2}){0,4}/?"), 1..24),
    ) {
        let mut table = Table::default();
        for (i, (h, p)) in rules.iter().enumerate() {
            // The first of equal rules wins, as the model sees to it.
            if rules[..i].iter().all(|r| r != &(h.clone(), p.clone())) {
                table.insert(h, p, route(&format!("{h} {p}")));
            }
        }
        for (host, path) in requests {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            let path = path::canonical(&path).unwrap();
            let want = reference(&rules, &host, &path).map(|(h, p)| format!("{h} {p}"));
            let got = table.lookup(Some(&host), &path).map(|r| r.owner.name.to_string());
            prop_assert_eq!(got, want);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Rules come and go; copies that were taken meanwhile stay as they were.
    #[test]
    fn a_changed_copy_is_what_a_fresh_table_would_be(
        steps in prop::collection::vec((hosts(), prop::option::weighted(0.8, paths()), any::<bool>()), 0..40),
    ) {
        let mut table = Table::default();
        let mut now = std::collections::BTreeMap::new();
        let mut taken: Vec<(Table, Vec<String>)> = Vec::new();
        let text = |table: &Table| -> Vec<String> {
            table.rows().into_iter().map(|(h, p, r)| format!("{h} {p} {}", r.owner)).collect()
        };
        for (number, (host, path, add)) in steps.into_iter().enumerate() {
            taken.push((table.clone(), text(&table)));
            let row = add.then(|| route(&number.to_string()));
            match (&path, row.clone()) {
                (Some(path), Some(row)) => table.insert(&host, path, row),
                (Some(path), None) => table.remove(&host, path),
                (None, row) => table.set_default(&host, row),
            }
            match row {
                Some(row) => now.insert((host, path), row),
                None => now.remove(&(host, path)),
            };
            let mut fresh = Table::default();
            for ((host, path), row) in &now {
                match path {
                    Some(path) => fresh.insert(host, path, Arc::clone(row)),
                    None => fresh.set_default(host, Some(Arc::clone(row))),
                }
            }
            prop_assert_eq!(text(&table), text(&fresh));
            prop_assert_eq!(table.len(), now.keys().filter(|(_, p)| p.is_some()).count());
            prop_assert_eq!((table.exact.size(), table.wildcard.size()), (fresh.exact.size(), fresh.wildcard.size()));
        }
        for (table, before) in taken {
            prop_assert_eq!(text(&table), before);
        }
    }
}

fn lookup_time(routes: usize) -> Duration {
    let mut table = Table::default();
    for i in 0..routes {
        let host = HostPattern::parse(Some(&format!("host-{i}.example.org"))).unwrap();
        table.insert(&host, &PathPattern::prefix("/api/v1").unwrap(), route("r"));
    }
    // The same 10 requests for both sizes, so that the processor's caches hold both alike.
    let requests: Vec<String> = (0..10).map(|i| format!("host-{i}.example.org")).collect();
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..200 {
            for host in &requests {
                let hit = table.lookup(Some(std::hint::black_box(host)), b"/api/v1/things");
                assert!(std::hint::black_box(hit).is_some());
            }
        }
        best = best.min(start.elapsed());
    }
    best
}

#[test]
fn lookup_does_not_grow_with_the_table() {
    let (small, large) = (lookup_time(10), lookup_time(100_000));
    println!("2000 lookups: 10 routes {small:?}, 100k routes {large:?}");
    assert!(large < small * 10, "10 routes: {small:?}, 100k routes: {large:?}");
}
