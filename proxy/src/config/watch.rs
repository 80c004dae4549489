//! Watches the API and drives the planner: one task, level-triggered, safe to lose events in.
//!
//! Changes are taken as they come and applied together: what arrives while a table is built waits for the next one,
//! and building never takes more than about a tenth of the time, however fast objects change.

use super::asked::AUTH_KEY;
use super::view::{Update, View};
use super::{Dirt, Planner};
use crate::gateway::refs::CA_KEY;
use crate::gateway::view::Update as GatewayUpdate;
use causeway_api::watch::watch;
use causeway_informers::{Informers, Kind};
use futures::stream::{BoxStream, SelectAll, Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
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
    let mut updates = updates(client, &informers, node.as_deref(), with_gateways);
    let mut opened = planner.opened();
    let mut view = View::default();
    view.node = node.unwrap_or_default();
    let mut dirt = Dirt::default();
    let mut not_before = Instant::now();
    loop {
        let pause = not_before.saturating_duration_since(Instant::now());
        let synced_view = view.synced() && (!with_gateways || view.gateways.synced());
        let may_apply = !dirt.is_empty() && synced_view;
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            update = updates.next() => match update {
                Some(update) => {
                    dirt.merge(view.handle(update));
                    while let Some(Some(update)) = futures::FutureExt::now_or_never(updates.next()) {
                        dirt.merge(view.handle(update));
                    }
                }
                None => return,
            },
            Ok(()) = opened.changed() => dirt.front_reports = true,
            () = tokio::time::sleep(pause), if may_apply => {}
        }
        let synced_view = view.synced() && (!with_gateways || view.gateways.synced());
        if dirt.is_empty() || !synced_view || Instant::now() < not_before {
            continue;
        }
        let start = Instant::now();
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
    let tls_only = watcher::Config::default().fields("type=kubernetes.io/tls");
    let opaque = watcher::Config::default().fields("type=Opaque");
    let mut all = futures::stream::select_all([
        objects(Api::<IngressClass>::all(client.clone()), watcher::Config::default(), Update::Class),
        objects(Api::<Ingress>::all(client.clone()), watcher::Config::default(), Update::Ingress),
        shared(informers, |all| all.services().subscribe(), Update::Service),
        objects(Api::<Secret>::all(client.clone()), tls_only, Update::Secret),
        // Password files, which have no type of their own: of other Secrets nothing is kept.
        objects(Api::<Secret>::all(client.clone()), opaque, |event| Update::AuthSecret(only_password_files(event))),
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
        stream(api, watcher::Config::default(), move |event| Update::Gateway(Box::new(wrap(event))))
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
        // Of ConfigMaps without authorities nothing is kept.
        of::<ConfigMap>(client, |event| GatewayUpdate::ConfigMap(only_authorities(event))),
    ]
}

fn only_authorities(mut event: Event<ConfigMap>) -> Event<ConfigMap> {
    if let Event::Apply(map) | Event::InitApply(map) | Event::Delete(map) = &mut event {
        map.binary_data = None;
        if let Some(data) = &mut map.data {
            data.retain(|key, _| key == CA_KEY);
        }
    }
    event
}

fn only_password_files(mut event: Event<Secret>) -> Event<Secret> {
    if let Event::Apply(secret) | Event::InitApply(secret) | Event::Delete(secret) = &mut event
        && let Some(data) = &mut secret.data
    {
        data.retain(|key, _| key == AUTH_KEY);
    }
    event
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

fn objects<K>(api: Api<K>, config: watcher::Config, wrap: fn(Event<K>) -> Update) -> BoxStream<'static, Update>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    stream(api, config, wrap)
}

/// Events of one kind. A kind that the API does not have (yet) has no objects.
fn stream<K>(
    api: Api<K>,
    config: watcher::Config,
    wrap: impl Fn(Event<K>) -> Update + Send + 'static,
) -> BoxStream<'static, Update>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    watch(api, config)
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
