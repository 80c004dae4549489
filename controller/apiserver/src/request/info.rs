//! [`RequestInfo`]: what an HTTP request asks for, parsed once. Authorisation, audit, priorities, metrics and routing
//! read the same answer, so that none of them can be told another story than the others. Pure.

use super::{FieldTerm, Query, parse_field_selector};
use causeway_api::selector::{self, Operator, Selector};
use causeway_authz::{Attributes, Requirement};
use http::{HeaderMap, Method, Uri, header};

/// A resource path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// The namespace of a namespaced path.
    pub namespace: Option<String>,
    /// Plural resource name.
    pub resource: String,
    /// Object name.
    pub name: Option<String>,
    /// Subresource, for example `status`.
    pub subresource: Option<String>,
    /// What comes after the subresource (`proxy/…`).
    pub rest: Option<String>,
    /// The older form of watches, `/api/v1/watch/…`.
    pub watch: bool,
}

/// Splits a path into decoded segments, dropping a trailing slash.
pub fn segments(path: &str) -> Vec<String> {
    path.split('/')
        .filter(|s| !s.is_empty())
        .map(|s| percent_encoding::percent_decode_str(s).decode_utf8_lossy().into_owned())
        .collect()
}

impl Target {
    /// Reads a path below `/api/v1` or `/apis/GROUP/VERSION`; `None` when it is no resource path.
    pub fn parse(path: &str) -> Option<Self> {
        let all = segments(path);
        let parts: Vec<&str> = all.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let mut target = Target { group: group.to_owned(), version: version.to_owned(), ..Target::default() };
        let rest = match rest {
            ["watch", tail @ ..] if !tail.is_empty() => {
                target.watch = true;
                tail
            }
            _ => rest,
        };
        let rest = match rest {
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] if group.is_empty() => rest,
            ["namespaces", namespace, tail @ ..] if !tail.is_empty() => {
                target.namespace = Some((*namespace).to_owned());
                tail
            }
            _ => rest,
        };
        target.resource = (*rest.first()?).to_owned();
        target.name = rest.get(1).map(|s| (*s).to_owned());
        target.subresource = rest.get(2).map(|s| (*s).to_owned());
        if rest.len() > 3 {
            target.rest = Some(rest[3..].join("/"));
        }
        Some(target)
    }

    /// The namespace that a request is about: also where it is about a Namespace itself, so that a role in it may allow
    /// to see it.
    pub fn scope(&self) -> &str {
        let itself = || self.name.as_deref().filter(|_| self.group.is_empty() && self.resource == "namespaces");
        self.namespace.as_deref().or_else(itself).unwrap_or("")
    }

    /// The API verb of a method on this target; `None` where there is none.
    pub fn verb(&self, method: &Method, query: &Query) -> Option<&'static str> {
        let watch = self.watch || (query.flag("watch") && self.subresource.is_none());
        Some(match (method.as_str(), self.name.is_some()) {
            ("GET" | "HEAD", _) if watch => "watch",
            _ if self.watch => return None,
            ("GET" | "HEAD", true) => "get",
            ("GET" | "HEAD", false) => "list",
            ("POST", _) => "create",
            ("PUT", true) => "update",
            ("PATCH", true) => "patch",
            ("DELETE", true) => "delete",
            ("DELETE", false) => "deletecollection",
            _ => return None,
        })
    }
}

/// What a request asks for.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// The HTTP method.
    pub method: Method,
    /// The path as it came.
    pub path: String,
    /// Its parameters.
    pub query: Query,
    /// The resource, unless the path is that of none.
    pub target: Option<Target>,
    /// The API verb, or the HTTP method in lower case for what is no resource and for what no resource offers.
    pub verb: String,
    /// The method has a verb on this path.
    pub offered: bool,
    /// The connection shall become something else (WebSocket, SPDY).
    pub upgrade: bool,
    /// What the field selector of a request for many objects demands.
    fields: Vec<FieldTerm>,
}

/// A method in lower case; those that HTTP does not know are one word, so that nobody can make up many.
fn method_word(method: &Method) -> String {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "CONNECT" | "TRACE") => {
            known.to_ascii_lowercase()
        }
        _ => "other".to_owned(),
    }
}

/// The verb is for all objects that selectors leave.
fn for_many(verb: &str) -> bool {
    matches!(verb, "list" | "watch" | "deletecollection")
}

/// A set of one value is a demand, all others are not.
fn of_label(r: selector::Requirement) -> Option<Requirement> {
    let equal = match r.operator {
        Operator::In => true,
        Operator::NotIn => false,
        _ => return None,
    };
    let [value] = <[String; 1]>::try_from(r.values).ok()?;
    Some(Requirement { key: r.key, equal, value })
}

fn requirement(term: FieldTerm) -> Requirement {
    Requirement { key: term.field, equal: term.equal, value: term.value }
}

impl RequestInfo {
    /// Of method, address and headers.
    pub fn new(method: &Method, uri: &Uri, headers: &HeaderMap) -> Self {
        let query = Query::parse(uri.query().unwrap_or(""));
        let target = Target::parse(uri.path());
        let verb = target.as_ref().map(|t| t.verb(method, &query));
        let offered = !matches!(verb, Some(None));
        let verb = verb.flatten().map_or_else(|| method_word(method), str::to_owned);
        let upgrade = headers.contains_key(header::UPGRADE);
        let terms = query.get("fieldSelector").filter(|_| for_many(&verb)).map(parse_field_selector);
        let fields = terms.and_then(Result::ok).unwrap_or_default();
        Self { method: method.clone(), path: uri.path().to_owned(), query, target, verb, offered, upgrade, fields }
    }

    /// The question for authorisation.
    pub fn attributes(&self) -> Attributes {
        let Some(target) = &self.target else {
            return Attributes { verb: self.verb.clone(), path: self.path.clone(), ..Attributes::default() };
        };
        Attributes {
            verb: self.verb.clone(),
            group: target.group.clone(),
            resource: target.resource.clone(),
            subresource: target.subresource.clone().unwrap_or_default(),
            namespace: target.scope().to_owned(),
            name: target.name.clone().or_else(|| self.selected("metadata.name")).unwrap_or_default(),
            path: self.path.clone(),
            fields: self.fields.iter().cloned().map(requirement).collect(),
            labels: self.labels(),
        }
    }

    fn labels(&self) -> Vec<Requirement> {
        let selector = self.query.get("labelSelector").filter(|_| for_many(&self.verb)).map(Selector::parse);
        let all = selector.and_then(Result::ok).unwrap_or_default().0;
        all.into_iter().filter_map(of_label).collect()
    }

    /// What else is asked for by a GET that opens a stream: the right to create it.
    ///
    /// A WebSocket begins with a GET, so the verb alone would call `exec` a read. Kubernetes asks for both since 1.35
    /// (AuthorizePodWebsocketUpgradeCreatePermission). Here it is asked for every GET of a stream into a pod, and for every
    /// upgrade through a proxy, which leads into the same streams.
    ///
    /// `asked` is what [`Self::attributes`] says.
    pub fn stream_attributes(&self, asked: &Attributes) -> Option<Attributes> {
        let streams = asked.group.is_empty()
            && match asked.subresource.as_str() {
                "exec" | "attach" | "portforward" => asked.resource == "pods",
                "proxy" => self.upgrade && matches!(asked.resource.as_str(), "pods" | "services" | "nodes"),
                _ => false,
            };
        (streams && asked.is_read()).then(|| Attributes { verb: "create".to_owned(), ..asked.clone() })
    }

    /// The one value that the field selector of a request for many objects leaves to a field.
    pub fn selected(&self, field: &str) -> Option<String> {
        self.fields.iter().find(|term| term.equal && term.field == field).map(|term| term.value.clone())
    }

    /// Goes on until somebody ends it: no time limit holds for it.
    pub fn long_running(&self) -> bool {
        let subresource = self.target.as_ref().and_then(|t| t.subresource.as_deref()).unwrap_or("");
        self.verb == "watch" || matches!(subresource, "exec" | "attach" | "portforward" | "proxy" | "log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> (String, String, String, String, String) {
        let t = Target::parse(path).unwrap();
        let text = |o: Option<String>| o.unwrap_or_default();
        (t.group, text(t.namespace), t.resource, text(t.name), text(t.subresource))
    }

    fn info(method: &str, uri: &str) -> RequestInfo {
        RequestInfo::new(&Method::from_bytes(method.as_bytes()).unwrap(), &uri.parse().unwrap(), &HeaderMap::new())
    }

    #[test]
    fn paths() {
        let own = |a: [&str; 5]| (a[0].into(), a[1].into(), a[2].into(), a[3].into(), a[4].into());
        assert_eq!(target("/api/v1/pods"), own(["", "", "pods", "", ""]));
        assert_eq!(target("/api/v1/namespaces"), own(["", "", "namespaces", "", ""]));
        assert_eq!(target("/api/v1/namespaces/x"), own(["", "", "namespaces", "x", ""]));
        assert_eq!(target("/api/v1/namespaces/x/finalize"), own(["", "", "namespaces", "x", "finalize"]));
        assert_eq!(target("/api/v1/namespaces/x/pods/p/log"), own(["", "x", "pods", "p", "log"]));
        assert_eq!(target("/apis/apps/v1/namespaces/x/deployments/d"), own(["apps", "x", "deployments", "d", ""]));
        assert_eq!(
            target("/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode"),
            own(["rbac.authorization.k8s.io", "", "clusterroles", "system:node", ""])
        );
        assert_eq!(target("/api/v1/watch/namespaces/x/pods/p"), own(["", "x", "pods", "p", ""]));
        assert!(Target::parse("/api/v1").is_none());
        assert!(Target::parse("/healthz").is_none());
    }

    #[test]
    fn verbs() {
        for (method, uri, verb, offered) in [
            ("GET", "/api/v1/pods", "list", true),
            ("GET", "/api/v1/pods?watch=1", "watch", true),
            ("GET", "/api/v1/namespaces/x/pods/p?watch=0", "get", true),
            ("GET", "/api/v1/namespaces/x/pods/p?watch=true", "watch", true),
            ("GET", "/api/v1/namespaces/x/pods/p/log?watch=true", "get", true),
            ("GET", "/api/v1/watch/namespaces/x/pods/p", "watch", true),
            ("GET", "/api/v1/watch/pods", "watch", true),
            ("DELETE", "/api/v1/watch/namespaces/x/pods/p", "delete", false),
            ("DELETE", "/api/v1/namespaces/x/pods", "deletecollection", true),
            ("PUT", "/api/v1/namespaces/x/pods", "put", false),
            ("TRACE", "/api/v1/pods", "trace", false),
            ("MADEUP", "/api/v1/pods", "other", false),
            ("GET", "/healthz", "get", true),
            ("MADEUP", "/healthz", "other", true),
        ] {
            let info = info(method, uri);
            assert_eq!((info.verb.as_str(), info.offered), (verb, offered), "{method} {uri}");
        }
    }

    #[test]
    fn a_selector_of_one_name_is_a_name() {
        for (method, uri, name) in [
            ("GET", "/api/v1/namespaces/x/secrets?fieldSelector=metadata.name%3Ds", "s"),
            ("GET", "/api/v1/namespaces/x/secrets?watch=1&fieldSelector=metadata.name%3Ds", "s"),
            ("DELETE", "/api/v1/namespaces/x/secrets?fieldSelector=metadata.name%3Ds", "s"),
            ("GET", "/api/v1/namespaces/x/secrets?fieldSelector=metadata.name!%3Ds", ""),
            ("POST", "/api/v1/namespaces/x/secrets?fieldSelector=metadata.name%3Ds", ""),
            ("GET", "/api/v1/namespaces/x/secrets/t?fieldSelector=metadata.name%3Ds", "t"),
        ] {
            assert_eq!(info(method, uri).attributes().name, name, "{method} {uri}");
        }
    }

    #[test]
    fn streams_must_be_created() {
        for (method, path, upgrade, asked) in [
            ("GET", "/api/v1/namespaces/x/pods/p/exec", false, Some("exec")),
            ("GET", "/api/v1/namespaces/x/pods/p/attach", true, Some("attach")),
            ("GET", "/api/v1/namespaces/x/pods/p/portforward", false, Some("portforward")),
            ("POST", "/api/v1/namespaces/x/pods/p/exec", true, None),
            ("GET", "/api/v1/namespaces/x/pods/p/proxy/a", true, Some("proxy")),
            ("GET", "/api/v1/nodes/n/proxy/exec/a/b/c", true, Some("proxy")),
            ("GET", "/api/v1/nodes/n/proxy/metrics", false, None),
            ("GET", "/apis/example.com/v1/namespaces/x/pods/p/exec", true, None),
            ("GET", "/api/v1/namespaces/x/pods/p/log", true, None),
            ("GET", "/api/v1/namespaces/x/pods/p", true, None),
        ] {
            let mut headers = HeaderMap::new();
            if upgrade {
                headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
            }
            let info = RequestInfo::new(&method.parse().unwrap(), &path.parse().unwrap(), &headers);
            let found = info.stream_attributes(&info.attributes());
            assert_eq!(found.as_ref().map(|a| (a.verb.as_str(), a.subresource.as_str())), asked.map(|a| ("create", a)));
        }
    }
}
