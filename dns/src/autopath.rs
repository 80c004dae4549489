//! Completing search paths on the server. A pod's resolver tries `www.example.com.shop.svc.cluster.local` and three more
//! before it asks for `www.example.com`: where the first does not exist, the rest of the path is tried here, and the first
//! that does is answered as an alias. In: a name and the namespace of who asks. Out: the names to try. Pure.

use hickory_proto::rr::Name;

/// The names that a resolver in a pod of this namespace would ask for next, in order; none when the question is not the
/// first of its path.
pub fn next(name: &Name, namespace: &str, domain: &Name) -> Vec<Name> {
    let mut labels = name.iter();
    let base = usize::from(name.num_labels().saturating_sub(domain.num_labels() + 2));
    if base == 0 || !domain.zone_of(name) {
        return Vec::new();
    }
    let first: Vec<&[u8]> = labels.by_ref().take(base).collect();
    let path = labels.next().is_some_and(|l| l.eq_ignore_ascii_case(namespace.as_bytes()))
        && labels.next().is_some_and(|l| l.eq_ignore_ascii_case(b"svc"));
    if !path {
        return Vec::new();
    }
    let below = |rest: &[&[u8]], domain: Option<&Name>| {
        let labels = first.iter().chain(rest).copied().chain(domain.into_iter().flat_map(Name::iter));
        Name::from_labels(labels).ok()
    };
    [below(&[b"svc"], Some(domain)), below(&[], Some(domain)), below(&[], None)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    fn names(name: &str, namespace: &str) -> Vec<String> {
        let all = next(&Name::from_str(name).unwrap(), namespace, &Name::from_str("cluster.local.").unwrap());
        assert!(all.iter().all(Name::is_fqdn));
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_rest_of_the_path() {
        let rest = ["www.example.com.svc.cluster.local.", "www.example.com.cluster.local.", "www.example.com."];
        assert_eq!(names("www.example.com.shop.svc.cluster.local.", "shop"), rest);
        assert_eq!(names("www.Example.com.Shop.SVC.cluster.LOCAL.", "shop")[2], "www.example.com.");
        assert_eq!(names("api.shop.svc.cluster.local.", "shop").last().unwrap(), "api.");
    }

    #[test]
    fn other_names_are_not_of_the_path() {
        for name in [
            "www.example.com.",
            "www.example.com.other.svc.cluster.local.",
            "shop.svc.cluster.local.",
            "svc.cluster.local.",
            "cluster.local.",
            "a.shop.pod.cluster.local.",
            ".",
        ] {
            assert_eq!(names(name, "shop"), [""; 0], "{name}");
        }
    }
}
