//! The table of Kubernetes' protobuf messages that `build.rs` wrote, parsed once when it is first needed.

use std::collections::HashMap;
use std::sync::OnceLock;

static TEXT: &str = include_str!(concat!(env!("OUT_DIR"), "/messages.txt"));

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    /// Package and name: `api.core.v1.Pod`.
    pub name: &'static str,
    /// Has `apiVersion` and `kind`.
    pub kind: bool,
    /// `structType=atomic`.
    pub atomic: bool,
    /// How it looks in JSON.
    pub form: Form,
    /// Its fields, by ascending number.
    pub fields: Vec<FieldDef>,
    escaped_doc: &'static str,
}

/// One field.
#[derive(Debug)]
pub(crate) struct FieldDef {
    pub number: u32,
    /// The JSON name.
    pub name: &'static str,
    pub label: Label,
    pub kind: Type,
    /// Zero is written to JSON.
    pub keep_zero: bool,
    pub required: bool,
    /// The nested message's fields appear in this message.
    pub inline: bool,
    /// `listType=map;listMapKey=name;…`
    pub marks: &'static str,
    escaped_doc: &'static str,
}

/// How often a field occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    Optional,
    Repeated,
    /// A map from strings.
    Map,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    String,
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    Message(usize),
}

/// The JSON form of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// An object with the fields.
    Plain,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// Bytes that hold JSON.
    Raw,
    /// The list that is its only field.
    Items,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStrings,
}

/// All messages.
#[derive(Debug)]
pub(crate) struct Table {
    pub messages: Vec<Message>,
    by_name: HashMap<&'static str, usize>,
}

impl Table {
    /// The only one.
    pub fn get() -> &'static Table {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Table::parse(TEXT))
    }

    /// The index of a message by its full name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    fn parse(text: &'static str) -> Table {
        let by_name: HashMap<_, _> =
            text.lines().filter_map(|l| l.strip_prefix("M\t")?.split('\t').next()).zip(0..).collect();
        let mut messages: Vec<Message> = Vec::with_capacity(by_name.len());
        for line in text.lines() {
            let mut columns = line.split('\t');
            let mut column = || columns.next().unwrap_or_default();
            if column() == "M" {
                let (name, flags) = (column(), column());
                messages.push(Message {
                    name,
                    kind: has(flags, "kind"),
                    atomic: has(flags, "structType=atomic"),
                    form: Form::of(name),
                    fields: Vec::new(),
                    escaped_doc: column(),
                });
            } else if let Some(message) = messages.last_mut() {
                let number = column().parse().unwrap_or_default();
                let name = column();
                let label = Label::of(column());
                let kind = Type::of(column(), &by_name);
                let marks = column();
                message.fields.push(FieldDef {
                    number,
                    name,
                    label,
                    kind,
                    keep_zero: has(marks, "keep"),
                    required: has(marks, "required"),
                    inline: has(marks, "inline"),
                    marks,
                    escaped_doc: column(),
                });
            }
        }
        for message in &mut messages {
            message.fields.sort_by_key(|f| f.number);
        }
        Table { messages, by_name }
    }
}

impl Message {
    /// The name in OpenAPI: `io.k8s.api.core.v1.Pod`.
    pub fn openapi_name(&self) -> String {
        let name = self.name.replacen("apiextensions_apiserver.", "apiextensions-apiserver.", 1);
        format!("io.k8s.{}", name.replacen("kube_aggregator.", "kube-aggregator.", 1))
    }

    /// Name without its package.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// API group and version; `None` for types that are in none.
    pub fn group_version(&self) -> Option<(&'static str, &'static str)> {
        let (package, _) = self.name.rsplit_once('.')?;
        let (rest, version) = package.rsplit_once('.')?;
        let group = match rest {
            "api.core" => "",
            "api.apps" => "apps",
            "api.autoscaling" => "autoscaling",
            "api.batch" => "batch",
            "api.policy" => "policy",
            "api.rbac" => "rbac.authorization.k8s.io",
            "api.flowcontrol" => "flowcontrol.apiserver.k8s.io",
            "api.admission" => "admission.k8s.io",
            "api.admissionregistration" => "admissionregistration.k8s.io",
            "api.apidiscovery" => "apidiscovery.k8s.io",
            "api.authentication" => "authentication.k8s.io",
            "api.authorization" => "authorization.k8s.io",
            "api.certificates" => "certificates.k8s.io",
            "api.coordination" => "coordination.k8s.io",
            "api.discovery" => "discovery.k8s.io",
            "api.events" => "events.k8s.io",
            "api.networking" => "networking.k8s.io",
            "api.node" => "node.k8s.io",
            "api.resource" => "resource.k8s.io",
            "api.scheduling" => "scheduling.k8s.io",
            "api.storage" => "storage.k8s.io",
            "apiextensions_apiserver.pkg.apis.apiextensions" => "apiextensions.k8s.io",
            "apimachinery.pkg.apis.meta" => "meta.k8s.io",
            "kube_aggregator.pkg.apis.apiregistration" => "apiregistration.k8s.io",
            "metrics.pkg.apis.metrics" => "metrics.k8s.io",
            _ => return None,
        };
        Some((group, version))
    }

    /// Text for people.
    pub fn doc(&self) -> String {
        unescape(self.escaped_doc)
    }
}

impl FieldDef {
    /// Text for people.
    pub fn doc(&self) -> String {
        unescape(self.escaped_doc)
    }

    /// The values of a mark that may occur several times.
    pub fn mark<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'static str> + 'a {
        self.marks.split(';').filter_map(move |m| m.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Form {
    fn of(name: &str) -> Form {
        match name {
            "apimachinery.pkg.apis.meta.v1.Time" => Form::Time,
            "apimachinery.pkg.apis.meta.v1.MicroTime" => Form::MicroTime,
            "apimachinery.pkg.apis.meta.v1.Duration" => Form::Duration,
            "apimachinery.pkg.api.resource.Quantity" => Form::Quantity,
            "apimachinery.pkg.util.intstr.IntOrString" => Form::IntOrString,
            "apimachinery.pkg.apis.meta.v1.FieldsV1"
            | "apimachinery.pkg.runtime.RawExtension"
            | "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSON" => Form::Raw,
            "apimachinery.pkg.apis.meta.v1.Verbs"
            | "api.authentication.v1.ExtraValue"
            | "api.authorization.v1.ExtraValue"
            | "api.certificates.v1.ExtraValue"
            | "api.certificates.v1beta1.ExtraValue" => Form::Items,
            "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray" => Form::SchemaOrArray,
            "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool" => Form::SchemaOrBool,
            "apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray" => Form::SchemaOrStrings,
            _ => Form::Plain,
        }
    }
}

impl Label {
    fn of(word: &str) -> Label {
        match word {
            "repeated" => Label::Repeated,
            "map" => Label::Map,
            _ => Label::Optional,
        }
    }
}

impl Type {
    fn of(word: &str, by_name: &HashMap<&str, usize>) -> Type {
        match word {
            "bytes" => Type::Bytes,
            "bool" => Type::Bool,
            "int32" => Type::Int32,
            "int64" => Type::Int64,
            "double" => Type::Double,
            name => by_name.get(name).map_or(Type::String, |i| Type::Message(*i)),
        }
    }
}

fn has(flags: &str, flag: &str) -> bool {
    flags.split(';').any(|f| f == flag)
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next() == Some('n') => out.push('\n'),
            '\\' => out.push('\\'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_a_field_names_is_in_the_table() {
        let names: Vec<_> =
            TEXT.lines().filter(|l| l.starts_with("F\t")).filter_map(|l| l.split('\t').nth(4)).collect();
        let scalars = ["string", "bytes", "bool", "int32", "int64", "double"];
        for name in names {
            assert!(scalars.contains(&name) || Table::get().index(name).is_some(), "{name} is referred to but absent");
        }
    }

    #[test]
    fn marks_and_names_of_a_pod_volume_list() {
        let table = Table::get();
        let spec = &table.messages[table.index("api.core.v1.PodSpec").unwrap()];
        let volumes = spec.fields.iter().find(|f| f.name == "volumes").unwrap();
        assert_eq!(volumes.mark("listMapKey").collect::<Vec<_>>(), ["name"]);
        assert_eq!(volumes.mark("patchStrategy").collect::<Vec<_>>(), ["merge,retainKeys"]);
        assert_eq!(spec.openapi_name(), "io.k8s.api.core.v1.PodSpec");
        assert_eq!(spec.group_version(), Some(("", "v1")));
    }
}
