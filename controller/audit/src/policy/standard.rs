//! The policy that holds when nobody gave one.

use super::{GroupResources, Level, Policy, Rule};
use crate::event::{Stage, Stages};

/// Reads of these are recorded: who saw credentials, or what is configured with them.
const CONFIDENTIAL: &[(&str, &[&str])] = &[
    ("", &["secrets", "configmaps", "serviceaccounts/token"]),
    ("authentication.k8s.io", &["tokenreviews"]),
    ("certificates.k8s.io", &["certificatesigningrequests"]),
];

/// Doors into containers and nodes. They are recorded whatever the verb: over WebSocket they are opened by GET.
const DOORS: &[&str] =
    &["pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "pods/log", "services/proxy", "nodes/proxy"];

impl Policy {
    /// A policy for clusters that have none of their own. Every rule that records has level `Metadata`: data of
    /// Secrets, tokens and any other body are never written.
    ///
    /// | Requests | Level |
    /// |---|---|
    /// | `/healthz*`, `/livez*`, `/readyz*`, `/metrics*`, `/version`, `/openapi*`, and GET of `/api*`, `/apis*` | None |
    /// | every other URL that is no resource's | Metadata |
    /// | Events (core and `events.k8s.io`) | None |
    /// | Leases, by nodes and by service accounts of `kube-system` | None |
    /// | any verb on Secrets, ConfigMaps, TokenReviews, CertificateSigningRequests, `serviceaccounts/token` | Metadata |
    /// | any verb on exec, attach, portforward, log and proxy of Pods, Services, Nodes | Metadata |
    /// | get, list, watch of everything else, kube-proxy's watches among them | None |
    /// | everything else: writes | Metadata |
    ///
    /// Nodes' own Secrets and ConfigMaps are recorded as everybody's. There are no events of stage `RequestReceived`,
    /// so a request that changes something has one event.
    pub fn standard() -> Self {
        let omit_stages = Stages::default().with(Stage::RequestReceived);
        let none = || rule(Level::None, omit_stages);
        let some = || rule(Level::Metadata, omit_stages);
        let resources = |list: &[(&str, &[&str])]| list.iter().map(|(g, r)| group(g, r)).collect::<Vec<_>>();
        let unasked = ["/healthz*", "/livez*", "/readyz*", "/metrics*", "/version", "/openapi*"];
        let rules = vec![
            Rule { non_resource_urls: texts(&unasked), ..none() },
            Rule { verbs: texts(&["get"]), non_resource_urls: texts(&["/api*"]), ..none() },
            Rule { non_resource_urls: texts(&["*"]), ..some() },
            Rule { resources: resources(&[("", &["events"]), ("events.k8s.io", &["events"])]), ..none() },
            Rule {
                user_groups: texts(&["system:nodes", "system:serviceaccounts:kube-system"]),
                resources: resources(&[("coordination.k8s.io", &["leases"])]),
                ..none()
            },
            Rule { resources: resources(CONFIDENTIAL), ..some() },
            Rule { resources: resources(&[("", DOORS)]), ..some() },
            Rule { verbs: texts(&["get", "list", "watch"]), ..none() },
            some(),
        ];
        Self { rules, omit_stages, omit_managed_fields: true }
    }
}

fn rule(level: Level, omit_stages: Stages) -> Rule {
    Rule {
        level,
        users: Vec::new(),
        user_groups: Vec::new(),
        verbs: Vec::new(),
        resources: Vec::new(),
        namespaces: Vec::new(),
        non_resource_urls: Vec::new(),
        omit_stages,
        omit_managed_fields: true,
    }
}

fn group(group: &str, resources: &[&str]) -> GroupResources {
    GroupResources { group: group.to_owned(), resources: texts(resources), resource_names: Vec::new() }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|t| (*t).to_owned()).collect()
}
