//! ConfigMaps, Secrets, claims and volumes that pods mention. In: their names, from a pod's operations. Out: the objects as
//! they are now, and a ring at the pod's [`Inbox`] when one of them has changed.
//!
//! What a pod's volumes are made of is followed by name, as the node's right allows: one watch an object ([`follow`]),
//! however many pods of this node name it ([`table`]); it ends with the last of them. So a quiet node asks for nothing.
//! What is needed once, as the environment at a container's start, is asked for once.

mod follow;
mod source;
mod table;
#[cfg(test)]
mod tests;

use crate::env::Sources;
use crate::inbox::Inbox;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use source::FromApi;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Weak};
use table::{Handle, Table};

/// A kind of object that pods mention.
pub trait Kind: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    /// For messages.
    const WHAT: &'static str;
    /// It lives in a namespace.
    const NAMESPACED: bool = true;

    /// Where its objects are.
    fn api(client: Client, namespace: &str) -> Api<Self>;
    /// It never changes any more, so nobody has to look.
    fn immutable(&self) -> bool {
        false
    }
    /// All of this kind that this node follows.
    fn table(all: &Objects) -> &Arc<Table<Self>>;
    /// Those that one pod follows.
    fn held(held: &mut Held) -> &mut HashMap<String, Arc<Handle<Self>>>;
}

/// All objects that are followed for this node's pods.
pub struct Objects {
    config_maps: Arc<Table<ConfigMap>>,
    secrets: Arc<Table<Secret>>,
    claims: Arc<Table<PersistentVolumeClaim>>,
    volumes: Arc<Table<PersistentVolume>>,
}

impl Objects {
    /// Read through `client`; nothing is read yet.
    pub fn new(client: Client) -> Self {
        let api = FromApi::new(client);
        Self {
            config_maps: Table::new(Arc::new(api.clone())),
            secrets: Table::new(Arc::new(api.clone())),
            claims: Table::new(Arc::new(api.clone())),
            volumes: Table::new(Arc::new(api)),
        }
    }
}

/// What one pod follows.
#[derive(Default)]
pub struct Held {
    /// The pod has ended; an operation that is still under way must not follow anything anew.
    closed: bool,
    config_maps: HashMap<String, Arc<Handle<ConfigMap>>>,
    secrets: HashMap<String, Arc<Handle<Secret>>>,
    claims: HashMap<String, Arc<Handle<PersistentVolumeClaim>>>,
    volumes: HashMap<String, Arc<Handle<PersistentVolume>>>,
}

/// The objects that one pod mentions.
pub struct PodObjects {
    all: Arc<Objects>,
    /// Weak: by who has an inbox is told whether its worker is still there.
    inbox: Weak<Inbox>,
    namespace: String,
    held: Mutex<Held>,
}

impl PodObjects {
    /// For a pod of `namespace`, told through `inbox`; nothing is followed yet.
    pub fn new(all: Arc<Objects>, inbox: &Arc<Inbox>, namespace: &str) -> Self {
        Self { all, inbox: Arc::downgrade(inbox), namespace: namespace.to_owned(), held: Mutex::default() }
    }

    /// An object, `None` when there is none. It is followed from now on: after the first time this asks nobody.
    pub async fn read<K: Kind>(&self, name: &str) -> Result<Option<Arc<K>>, String> {
        self.hold::<K>(name)?.read().await
    }

    /// An object that is needed once, `None` when there is none. Only one that is missing is followed: whoever needs it
    /// comes again, and should hear when it is there.
    pub async fn once<K: Kind>(&self, name: &str) -> Result<Option<Arc<K>>, String> {
        let held = K::held(&mut self.held.lock()).get(name).cloned();
        if let Some(handle) = held {
            return handle.read().await;
        }
        let found = K::table(&self.all).source.get(self.place::<K>(), name).await?;
        if found.is_none() {
            self.hold::<K>(name)?;
        }
        Ok(found.map(Arc::new))
    }

    /// All that an environment is made of.
    pub async fn sources(&self, (maps, secrets): (BTreeSet<String>, BTreeSet<String>)) -> Result<Sources, String> {
        let mut all = Sources::default();
        for name in maps {
            let found = self.once::<ConfigMap>(&name).await?;
            all.config_maps.insert(name, found.map(Arc::unwrap_or_clone));
        }
        for name in secrets {
            let found = self.once::<Secret>(&name).await?;
            all.secrets.insert(name, found.map(Arc::unwrap_or_clone));
        }
        Ok(all)
    }

    /// The volumes are made: where a claim leads does not change any more.
    pub fn settled(&self) {
        let mut held = self.held.lock();
        held.claims.clear();
        held.volumes.clear();
    }

    /// The pod has ended and needs nothing any more.
    pub fn close(&self) {
        *self.held.lock() = Held { closed: true, ..Held::default() };
    }

    fn hold<K: Kind>(&self, name: &str) -> Result<Arc<Handle<K>>, String> {
        let mut held = self.held.lock();
        if held.closed {
            return Err(format!("failed to read {} \"{name}\": the pod has ended", K::WHAT));
        }
        let known = K::held(&mut held);
        if let Some(handle) = known.get(name) {
            return Ok(handle.clone());
        }
        let handle = Arc::new(K::table(&self.all).hold(self.place::<K>(), name, self.inbox.clone()));
        known.insert(name.to_owned(), handle.clone());
        Ok(handle)
    }

    fn place<K: Kind>(&self) -> &str {
        if K::NAMESPACED { &self.namespace } else { "" }
    }
}

/// Reads a Secret once; `None` when there is none.
pub async fn secret(client: &Client, namespace: &str, name: &str) -> Result<Option<Secret>, String> {
    source::get(Secret::api(client.clone(), namespace), name).await
}

impl Kind for ConfigMap {
    const WHAT: &'static str = "configmap";

    fn api(client: Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client, namespace)
    }

    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }

    fn table(all: &Objects) -> &Arc<Table<Self>> {
        &all.config_maps
    }

    fn held(held: &mut Held) -> &mut HashMap<String, Arc<Handle<Self>>> {
        &mut held.config_maps
    }
}

impl Kind for Secret {
    const WHAT: &'static str = "secret";

    fn api(client: Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client, namespace)
    }

    fn immutable(&self) -> bool {
        self.immutable == Some(true)
    }

    fn table(all: &Objects) -> &Arc<Table<Self>> {
        &all.secrets
    }

    fn held(held: &mut Held) -> &mut HashMap<String, Arc<Handle<Self>>> {
        &mut held.secrets
    }
}

impl Kind for PersistentVolumeClaim {
    const WHAT: &'static str = "persistentvolumeclaim";

    fn api(client: Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client, namespace)
    }

    fn table(all: &Objects) -> &Arc<Table<Self>> {
        &all.claims
    }

    fn held(held: &mut Held) -> &mut HashMap<String, Arc<Handle<Self>>> {
        &mut held.claims
    }
}

impl Kind for PersistentVolume {
    const WHAT: &'static str = "persistentvolume";
    const NAMESPACED: bool = false;

    fn api(client: Client, _: &str) -> Api<Self> {
        Api::all(client)
    }

    fn table(all: &Objects) -> &Arc<Table<Self>> {
        &all.volumes
    }

    fn held(held: &mut Held) -> &mut HashMap<String, Arc<Handle<Self>>> {
        &mut held.volumes
    }
}
