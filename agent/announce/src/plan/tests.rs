//! Single decisions.

use super::*;

fn wanted(candidates: &[&str]) -> Wanted {
    Wanted {
        service: ("d".into(), "s".into()),
        uid: None,
        candidates: candidates.iter().map(|c| (*c).to_owned()).collect(),
    }
}

fn at(version: &str) -> Sight {
    Sight::At(version.to_owned())
}

const FIT: Own<'_> = Own { node: "a", fit: true };
const UNFIT: Own<'_> = Own { node: "a", fit: false };

fn ip() -> IpAddr {
    "10.9.0.1".parse().unwrap()
}

/// `holder`: `None` for no Lease.
fn address<'a>(wanted: Option<&'a Wanted>, holder: Option<&'a str>) -> Address<'a> {
    Address { ip: ip(), wanted, lease: holder, has: false }
}

fn ask(own: Own<'_>, candidates: &[&str], holder: &str, memory: &mut Memory, now: Instant) -> Step {
    step(own, &address(Some(&wanted(candidates)), Some(holder)), memory, now)
}

fn rest(until: Instant) -> Step {
    Step::Rest { until: Some(until) }
}

const TAKE: Step = Step::Take { from: None };
const ASLEEP: Step = Step::Rest { until: None };

#[test]
fn the_best_takes_a_free_one_and_the_next_after_a_while() {
    let t = Instant::now();
    assert_eq!(ask(FIT, &["a", "b"], "", &mut Memory::default(), t), TAKE);
    assert_eq!(ask(FIT, &["b"], "", &mut Memory::default(), t), ASLEEP);
    assert_eq!(ask(UNFIT, &["a"], "", &mut Memory::default(), t), ASLEEP);
    for (candidates, ahead) in [(&["b", "a"][..], 1), (&["b", "c", "a"], 2), (&["b", "c", "d", "a"], 3)] {
        let mut memory = Memory::default();
        assert_eq!(ask(FIT, candidates, "", &mut memory, t), rest(t + turn(ahead)));
        assert_eq!(ask(FIT, candidates, "", &mut memory, t + turn(ahead)), TAKE);
    }
    assert_eq!([0, 1, 2, 3, 5].map(turn), [0, 1, 2, 8, 20].map(Duration::from_secs));
    // The while begins anew when somebody had it in between.
    let mut memory = Memory::default();
    ask(FIT, &["b", "a"], "", &mut memory, t);
    ask(FIT, &["b", "a"], "b", &mut memory, t + TURN / 2);
    assert_eq!(ask(FIT, &["b", "a"], "", &mut memory, t + TURN), rest(t + TURN + TURN));
}

#[test]
fn who_is_seen_to_be_out_has_no_turn() {
    let (t, mut memory) = (Instant::now(), Memory::default());
    memory.alive.see("b", Sight::Gone, t);
    assert_eq!(ask(FIT, &["b", "a"], "", &mut memory, t), rest(t + TURN), "it may only have begun");
    assert!(!memory.alive.see("b", at("1"), t));
    assert_eq!(ask(FIT, &["b", "a"], "", &mut memory, t), rest(t + TURN));
    assert!(memory.alive.see("b", Sight::Gone, t), "it took its Lease away: that is news");
    assert_eq!(ask(FIT, &["b", "a"], "", &mut memory, t), TAKE);
    // Or silent for as long as a holder may be.
    let mut memory = Memory::default();
    memory.alive.see("b", at("1"), t);
    memory.alive.see("h", at("1"), t);
    let candidates = ["h", "b", "a"];
    let begin = t + LEASE;
    assert_eq!(ask(FIT, &candidates, "h", &mut memory, t), rest(begin));
    let from = Some(("h".to_owned(), at("1")));
    assert_eq!(ask(FIT, &candidates, "h", &mut memory, begin), Step::Take { from: from.clone() });
    memory.alive.see("b", at("2"), t + LEASE / 2);
    assert_eq!(ask(FIT, &candidates, "h", &mut memory, begin), rest(begin + TURN), "its turn is first");
    assert_eq!(ask(FIT, &candidates, "h", &mut memory, begin + TURN), Step::Take { from });
}

#[test]
fn a_silent_holder_is_taken_over_from_and_a_living_one_is_not() {
    let (t, mut memory, want) = (Instant::now(), Memory::default(), ["b", "a"]);
    memory.alive.see("b", at("1"), t);
    assert_eq!(ask(FIT, &want, "b", &mut memory, t + LEASE / 2), rest(t + LEASE));
    memory.alive.see("b", at("2"), t + LEASE / 2);
    let late = t + LEASE / 2 + LEASE;
    assert_eq!(ask(FIT, &want, "b", &mut memory, t + LEASE), rest(late), "it gave a sign of life");
    let from = Some(("b".to_owned(), at("2")));
    assert_eq!(ask(FIT, &want, "b", &mut memory, late), Step::Take { from });
    assert_eq!(ask(UNFIT, &want, "b", &mut memory, late), ASLEEP);
    // A holder that was never seen has its time too, for it may be our view that is young.
    assert_eq!(ask(FIT, &want, "z", &mut memory, late), rest(late + LEASE));
    // That nobody has looked is no sight of a Lease that is not there: the look before the take settles it.
    memory.alive.see("z", Sight::Gone, late);
    let from = Some(("z".to_owned(), Sight::Gone));
    assert_eq!(ask(FIT, &["a"], "z", &mut memory, late + LEASE), Step::Take { from });
    memory.alive.doubt("z");
    assert_eq!(ask(FIT, &["a"], "z", &mut memory, late + LEASE), rest(late + 2 * LEASE));
}

#[test]
fn what_is_ours_is_kept_given_up_or_written_anew() {
    let (t, mut memory, want) = (Instant::now(), Memory::default(), wanted(&["b", "a"]));
    memory.alive.see("b", at("1"), t);
    let mut has = |own, wanted: Option<&Wanted>, holder: &str| {
        step(own, &Address { has: true, ..address(wanted, Some(holder)) }, &mut memory, t)
    };
    assert_eq!(has(FIT, Some(&want), "a"), Step::Keep, "a better one does not take it away");
    assert_eq!(has(FIT, Some(&want), "b"), Step::Drop);
    assert_eq!(has(FIT, Some(&wanted(&["b"])), "a"), Step::Release);
    assert_eq!(has(FIT, None, "a"), Step::Release);
    assert_eq!(has(UNFIT, Some(&want), "a"), Step::Release);
    assert_eq!(has(FIT, Some(&want), ""), Step::Drop);
    assert_eq!(ask(FIT, &["b", "a"], "a", &mut memory, t), TAKE);
}

#[test]
fn what_nobody_wants_or_holds_is_forgotten() {
    let (t, mut memory) = (Instant::now(), Memory::default());
    let lot = Duration::from_millis(40) * u32::from(model::lot(ip(), "a"));
    assert_eq!(step(FIT, &address(None, Some("")), &mut memory, t), rest(t + lot), "all take turns");
    assert_eq!(step(FIT, &address(None, Some("")), &mut memory, t + lot), Step::Forget { from: None });
    assert_eq!(step(UNFIT, &address(None, Some("")), &mut memory, t + lot), ASLEEP);
    memory.alive.see("z", at("1"), t);
    let late = t + LEASE + lot;
    assert_eq!(step(FIT, &address(None, Some("z")), &mut memory, t), rest(late));
    let from = Some(("z".to_owned(), at("1")));
    assert_eq!(step(FIT, &address(None, Some("z")), &mut memory, late), Step::Forget { from });
    assert_eq!(step(FIT, &address(None, None), &mut memory, late), ASLEEP);
}

#[test]
fn who_holds_or_stands_by_renews_and_only_who_stands_by_follows() {
    let t = Instant::now();
    let want = wanted(&["n1", "n2", "n3", "n4", "n5"]);
    let role = |node: &str, holder: &str, fit: bool| {
        let own = Own { node, fit };
        let decision = decide(own, &[address(Some(&want), Some(holder))], &mut Memory::default(), t);
        (decision.duty, decision.follow.into_iter().collect::<Vec<_>>().join(" "))
    };
    let is = |duty: bool, follow: &str| (duty, follow.to_owned());
    assert_eq!(role("n1", "n1", true), is(true, ""));
    assert_eq!(role("n2", "n1", true), is(true, "n1"));
    assert_eq!(role("n3", "n1", true), is(true, "n1 n2"));
    assert_eq!(role("n4", "n1", true), is(false, ""));
    assert_eq!(role("n5", "n1", true), is(false, ""));
    // Another one holds it: the two best stand by.
    assert_eq!(role("n1", "n4", true), is(true, "n4"));
    assert_eq!(role("n2", "n4", true), is(true, "n1 n4"));
    assert_eq!(role("n3", "n4", true), is(false, ""));
    assert_eq!(role("n4", "n4", true), is(true, ""));
    // Nobody does.
    assert_eq!(role("n1", "", true), is(true, ""));
    assert_eq!(role("n2", "", true), is(true, "n1"));
    assert_eq!(role("n3", "", true), is(false, ""));
    // Who cannot announce does not say that it could, and still sees what goes on.
    assert_eq!(role("n2", "n1", false), is(false, "n1"));
    assert_eq!(role("n1", "n1", false), is(false, ""));
    // Neither candidate nor holder.
    assert_eq!(role("x", "n1", true), is(false, ""));
}

#[test]
fn a_decision_is_about_all_and_due_at_the_first() {
    let (t, mut memory) = (Instant::now(), Memory::default());
    let (first, second) = (wanted(&["b", "a"]), wanted(&["c", "a"]));
    memory.alive.see("b", at("1"), t - Duration::from_secs(1));
    memory.alive.see("c", at("1"), t);
    memory.alive.see("gone", at("1"), t);
    let other = Address { ip: "10.9.0.2".parse().unwrap(), ..address(Some(&second), Some("c")) };
    let decision = decide(FIT, &[address(Some(&first), Some("b")), other], &mut memory, t);
    assert_eq!(decision.due, Some(t + LEASE - Duration::from_secs(1)));
    assert_eq!(decision.steps.len(), 2);
    assert_eq!(decision.follow, ["b".to_owned(), "c".to_owned()].into());
    assert_eq!(memory.alive.sight("gone", t), (Sight::Never, t), "nobody follows it");
}
