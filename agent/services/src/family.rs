//! Names and numbers of our tables in the kernel: one table a family, the same sets and chains in each.

use crate::{
    plan::{Element, RangeSet},
    wire::Request,
};
pub use causeway_nft::family::{Family, message};
use causeway_nft::set::{DYNAMIC, INTERVAL, MAP, PARTS, Part, Set, TIMEOUT};

/// Our table's name, in the families `ip` and `ip6`.
pub const TABLE: &str = "causeway";

/// One of our sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// Front → zero, the Service port's number (0 without affinity), the number of places and class.
    Services,
    /// The same for sources outside of the cluster.
    External,
    /// Front and place → endpoint.
    Endpoints,
    /// Fronts with affinity and place → zero and the endpoint's number.
    Ids,
    /// Fronts with affinity and endpoint's number → endpoint.
    Sticky,
    /// Fronts that take connections from some sources alone.
    Limited,
    /// Those fronts, each with a range of sources.
    Sources,
    /// Addresses of services.
    ClusterIps,
    /// Endpoints on this node, each with itself.
    Hairpin,
    /// All pods.
    Pods,
    /// All service addresses.
    Ranges,
    /// The node's addresses and pods.
    Local,
    /// Client and Service port → anything and the endpoint's number: written by the packets themselves.
    Affinity,
    /// Number of places and class → chain. Fixed.
    Dispatch,
}

/// Those whose elements are data, and planned.
pub const DATA_SETS: [SetName; 12] = [
    SetName::Services,
    SetName::External,
    SetName::Endpoints,
    SetName::Ids,
    SetName::Sticky,
    SetName::Limited,
    SetName::Sources,
    SetName::ClusterIps,
    SetName::Hairpin,
    SetName::Pods,
    SetName::Ranges,
    SetName::Local,
];

impl SetName {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        DATA_SETS.into_iter().chain([Self::Affinity, Self::Dispatch])
    }

    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::External => "external",
            Self::Endpoints => "endpoints",
            Self::Ids => "ids",
            Self::Sticky => "sticky",
            Self::Limited => "limited",
            Self::Sources => "sources",
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::Pods => "pods",
            Self::Ranges => "ranges",
            Self::Local => "local",
            Self::Affinity => "affinity",
            Self::Dispatch => "dispatch",
        }
    }

    /// Where an element belongs.
    pub fn of(element: &Element) -> Self {
        match element {
            Element::Service(..) => Self::Services,
            Element::External(..) => Self::External,
            Element::Endpoint(..) => Self::Endpoints,
            Element::Id(..) => Self::Ids,
            Element::Sticky(..) => Self::Sticky,
            Element::Limited(_) => Self::Limited,
            Element::Source(..) => Self::Sources,
            Element::ClusterIp(_) => Self::ClusterIps,
            Element::Hairpin(_) => Self::Hairpin,
            Element::Bound(RangeSet::Pods, ..) => Self::Pods,
            Element::Bound(RangeSet::Services, ..) => Self::Ranges,
            Element::Bound(RangeSet::Local, ..) => Self::Local,
        }
    }

    fn parts(self) -> (&'static [Part], &'static [Part], u32) {
        use Part::{Address, Mark, Port, Protocol, Verdict};
        match self {
            Self::Services | Self::External => (&[Address, Protocol, Port], &[Mark, Mark, Mark, Mark], MAP),
            Self::Endpoints => (&[Address, Protocol, Port, Mark], &[Address, Port], MAP),
            Self::Ids => (&[Address, Protocol, Port, Mark], &[Mark, Mark], MAP),
            Self::Sticky => (&[Address, Protocol, Port, Mark], &[Address, Port], MAP),
            Self::Limited => (&[Address, Protocol, Port], &[], 0),
            Self::Sources => (&[Address, Protocol, Port, Address], &[], INTERVAL | PARTS),
            Self::ClusterIps => (&[Address], &[], 0),
            Self::Hairpin => (&[Address, Address], &[], 0),
            Self::Pods | Self::Ranges | Self::Local => (&[Address], &[], INTERVAL),
            Self::Affinity => (&[Address, Mark, Mark], &[Mark, Mark], MAP | TIMEOUT | DYNAMIC),
            Self::Dispatch => (&[Mark], &[Verdict], MAP),
        }
    }

    /// The request that makes it; `id` must be unique in its transaction.
    pub fn create(self, family: Family, id: u32) -> Request {
        /// Clients remembered at most: beyond, connections are spread as if there were no affinity.
        const CLIENTS: u32 = 262_144;
        let (key, data, flags) = self.parts();
        let size = (flags & DYNAMIC != 0).then_some(CLIENTS);
        Set { table: TABLE, name: self.name(), key, data, flags, size }.create(family, id)
    }
}

impl AsRef<str> for SetName {
    fn as_ref(&self) -> &str {
        self.name()
    }
}
