//! Packets as they come from the network, through everything that reads them: `RUSTC_BOOTSTRAP=1 cargo fuzz run -s none
//! packet` in `dns/`, with a stable compiler; `cargo +nightly fuzz run packet` where there is another.
//! What it finds goes into `corpus/packet` under a name that says what it is; the tests run over it.
#![no_main]

use causeway_api::dns::DnsSettings;
use causeway_dns::kept::{Kept, Plain};
use causeway_dns::metrics::Metrics;
use causeway_dns::model::{Key, Records};
use causeway_dns::server::{Handler, Origin, Transport};
use causeway_dns::zone::Zone;
use libfuzzer_sys::fuzz_target;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().unwrap());

static HANDLER: LazyLock<Handler> = LazyLock::new(|| {
    let ranges = vec!["10.96.0.0/12".parse().unwrap()];
    let zone = Zone::new("cluster.local", ranges, Arc::default()).unwrap();
    let web = Records::Cluster { ips: [[10, 96, 0, 7].into()].into(), ports: [].into() };
    zone.set(&Key { namespace: "shop".into(), name: "web".into() }, Some(web));
    let metrics = Arc::new(Metrics::new("cluster.local").unwrap());
    let handler = Handler::new(Arc::new(zone), Arc::default(), metrics, &DnsSettings::default(), None).unwrap();
    handler.ready.store(true, Ordering::Release);
    handler
});

fuzz_target!(|packet: &[u8]| {
    let mut kept = Kept::default();
    for transport in [Transport::Tcp, Transport::Udp] {
        let origin = Origin { transport, client: [127, 0, 0, 1].into(), at: Instant::now() };
        let Some(answered) = RUNTIME.block_on(HANDLER.answer(packet, origin)) else { continue };
        assert!(answered.bytes.len() >= 12 && answered.bytes[..2] == packet[..2]);
        assert!(transport == Transport::Tcp || answered.bytes.len() <= 1232);
        if let (Some(plain), Some((stamp, label))) = (Plain::read(packet), answered.keep) {
            kept.keep(&plain, &answered.bytes, stamp, label);
            let mut out = Vec::new();
            HANDLER.again(&mut kept, &plain, packet, origin, &mut out);
        }
    }
    assert!(HANDLER.metrics.panics.get() == 0);
});
