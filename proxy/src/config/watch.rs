//! Watches the API and drives the planner: one task, level-triggered, safe to lose events in.
//!
//! Changes are taken as they come and applied together: what arrives while a table is built waits for the next one,
//! and building never takes more than about a tenth of the time, however fast objects change.
//!
//! A change that is the first to name a Secret or ConfigMap waits until that is read, for a bounded time: so nobody is told
//! that a Secret is missing which only was not asked for yet, and no host is without its certificate meanwhile. What pods
//! there are is not held up by it.

use super::follow::Follower;
use super::named::Named;
use super::view::{Update, View};
use super::{Dirt, Planner};
use crate::gateway::view::Update as GatewayUpdate;
use causeway_api::watch::watch;
use causeway_informers::{Informers, Kind};
use futures::stream::{BoxStream, SelectAll, Stream, StreamExt};
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch as watch_channel;
use tokio_util::sync::CancellationToken;

/// The longest pause between two changes of the table under a storm of events.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Runs until shutdown. `synced` turns true when the first complete configuration is in force. `client` reads what is the
/// ingress' alone; what others on the node read too comes from its copies.
pub async fn run(
    client: Client,
    informers: Informers,
    node: Option<String>,
    mut planner: Planner,
    synced: watch_channel::Sender<bool>,
    shutdown: CancellationToken,
) {
    let with_gateways = planner.serves_gateways();
    let mut updates = updates(client.clone(), &informers, node.as_deref(), with_gateways);
    let named = Named::new(client);
    let mut follower = Follower::new(Box::new(move |which, how| named.updates(which, how)));
    let mut opened = planner.opened();
    let mut view = View::default();
    view.node = node.unwrap_or_default();
    // What is new, and what of it waits to be applied.
    let (mut new, mut dirt) = (Dirt::default(), Dirt::default());
    let (mut not_before, mut stale_since, mut held) = (Instant::now(), Instant::now(), None);
    loop {
        let apply_at = (!dirt.is_empty()).then(|| held.map_or(not_before, |held: Instant| held.max(not_before)));
        let wake = apply_at.into_iter().chain(follower.next_end()).min();
        let pause = wake.map(|at| at.saturating_duration_since(Instant::now())).unwrap_or_default();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            update = updates.next() => {
                let Some(update) = update else { return };
                let mut take = |update| {
                    follower.heard(&update);
                    new.merge(view.handle(update));
                };
                take(update);
                while let Some(Some(update)) = futures::FutureExt::now_or_never(updates.next()) {
                    take(update);
                }
            }
            Ok(()) = opened.changed() => new.front_reports = true,
            () = tokio::time::sleep(pause), if wake.is_some() => {}
        }
        if !view.synced() || (with_gateways && !view.gateways.synced()) {
            continue;
        }
        let start = Instant::now();
        if !new.is_empty() {
            if let Some(needed) = planner.needed(&view, &mut new) {
                follower.follow(&needed, start, &mut updates);
            }
            if dirt.is_empty() {
                stale_since = start;
            }
            dirt.merge(std::mem::take(&mut new));
        }
        follower.end(start, &mut view, &mut updates);
        held = follower.waits_until(start, stale_since, !*synced.borrow());
        if dirt.is_empty() || start < not_before {
            continue;
        }
        if held.is_some() {
            let services = std::mem::take(&mut dirt.services);
            planner.apply(&view, &Dirt { services, ..Dirt::default() });
            continue;
        }
        planner.apply(&view, &dirt);
        let took = start.elapsed();
        not_before = Instant::now() + (took * 10).min(MAX_PAUSE);
        tracing::debug!(
            ?took,
            all = dirt.routes,
            ingresses = dirt.ingresses.len(),
            services = dirt.services.len(),
            "configuration applied"
        );
        dirt = Dirt::default();
        synced.send_if_modified(|s| !std::mem::replace(s, true));
    }
}

fn updates(
    client: Client,
    informers: &Informers,
    node: Option<&str>,
    with_gateways: bool,
) -> SelectAll<BoxStream<'static, Update>> {
    let mut all = futures::stream::select_all([
        stream(Api::<IngressClass>::all(client.clone()), Update::Class),
        stream(Api::<Ingress>::all(client.clone()), Update::Ingress),
        shared(informers, |all| all.services().subscribe(), Update::Service),
        shared(informers, |all| all.slices().subscribe(), Update::Slice),
    ]);
    // Of other nodes nothing matters here.
    if let Some(node) = node {
        let name = node.to_owned();
        all.push(shared(informers, move |all| all.nodes().subscribe_to(&name), Update::Node));
    }
    if with_gateways {
        all.extend(gateway_updates(&client));
        let wrap = |event| Update::Gateway(Box::new(GatewayUpdate::Namespace(event)));
        all.push(shared(informers, |all| all.namespaces().subscribe(), wrap));
    }
    all
}

fn gateway_updates(client: &Client) -> Vec<BoxStream<'static, Update>> {
    fn of<K>(client: &Client, wrap: fn(Event<K>) -> GatewayUpdate) -> BoxStream<'static, Update>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let api = Api::<K>::all(client.clone());
        stream(api, move |event| Update::Gateway(Box::new(wrap(event))))
    }
    vec![
        of(client, GatewayUpdate::Class),
        of(client, |event| GatewayUpdate::Gateway(Box::new(event))),
        of(client, GatewayUpdate::ListenerSet),
        of(client, GatewayUpdate::Http),
        of(client, GatewayUpdate::Grpc),
        of(client, GatewayUpdate::Tls),
        of(client, GatewayUpdate::Tcp),
        of(client, GatewayUpdate::Udp),
        of(client, GatewayUpdate::Grant),
        of(client, GatewayUpdate::Policy),
    ]
}

/// Before a copy that has ended is asked for anew.
const AGAIN: Duration = Duration::from_secs(1);

/// Events of a copy that others on the node read too. It ends only with a panic, and is asked for anew then.
fn shared<K: Kind, S>(
    informers: &Informers,
    subscribe: impl Fn(&Informers) -> S + Send + 'static,
    wrap: impl Fn(Event<Arc<K>>) -> Update + Send + 'static,
) -> BoxStream<'static, Update>
where
    S: Stream<Item = Event<Arc<K>>> + Send + 'static,
{
    let informers = informers.clone();
    let subscribed =
        futures::stream::unfold((informers, subscribe, false), |(informers, subscribe, again)| async move {
            if again {
                tokio::time::sleep(AGAIN).await;
            }
            let events = subscribe(&informers);
            Some((events, (informers, subscribe, true)))
        });
    subscribed.flatten().map(wrap).boxed()
}

/// Events of one kind. A kind that the API does not have (yet) has no objects.
fn stream<K>(api: Api<K>, wrap: impl Fn(Event<K>) -> Update + Send + 'static) -> BoxStream<'static, Update>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    watch(api, watcher::Config::default())
        .modify(|object| object.meta_mut().managed_fields = None)
        .flat_map(move |event| {
            futures::stream::iter(match event {
                Ok(event) => vec![wrap(event)],
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => {
                    tracing::debug!(kind, "the API has no such kind; trying again");
                    vec![wrap(Event::Init), wrap(Event::InitDone)]
                }
                Err(error) => {
                    // The last good configuration stays in force.
                    tracing::warn!(%error, kind, "cannot watch; trying again");
                    Vec::new()
                }
            })
        })
        .boxed()
}
