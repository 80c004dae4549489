//! What it costs when nobody waits: `cargo test --release -p causeway-flowcontrol cost -- --ignored --nocapture`.

use super::*;
use std::time::Instant;

#[test]
#[ignore = "a measurement"]
fn cost_of_a_request() {
    let dispatcher = Dispatcher::new(600);
    let groups = ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"].map(str::to_owned);
    let facts = Facts {
        user: "system:serviceaccount:shop:web",
        groups: &groups,
        verb: "get",
        resource: "pods",
        namespace: "shop",
        is_resource: true,
        ..Facts::default()
    };
    let runs = 1_000_000_u32;
    let measure = |what: &str, run: &dyn Fn()| {
        let start = Instant::now();
        for _ in 0..runs {
            run();
        }
        let each = start.elapsed() / runs;
        println!("{what}: {} ns", each.as_nanos());
        each
    };
    measure("classify", &|| drop(dispatcher.classify(&facts)));
    let each = measure("classify, admit and end", &|| {
        let asking = std::pin::pin!(dispatcher.admit(&facts, Width::one()));
        assert!(matches!(poll_once(asking), Poll::Ready(Ok(_))));
    });
    // The promise is 2 µs in a release build; this much is kept anywhere.
    assert!(each < Duration::from_micros(50), "{each:?}");
}
