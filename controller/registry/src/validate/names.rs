//! Names that are not object names: label keys and values, data keys, ports, environment variables.
//!
//! In: a string. Out: nothing, or what a good one looks like.

use crate::field::dns_subdomain;

/// A check of one string.
pub(crate) type Check = Result<(), String>;

fn demand(ok: bool, detail: &str) -> Check {
    ok.then_some(()).ok_or_else(|| detail.to_owned())
}

fn alphanumeric_edges(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    edge(text.chars().next()) && edge(text.chars().next_back())
}

fn only(text: &str, extra: &[u8]) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

/// A label or annotation key: an optional DNS subdomain and `/`, then a name.
pub(crate) fn qualified_name(key: &str) -> Check {
    const NAME: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                        alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                        validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let mut parts = key.splitn(3, '/');
    let (first, second, third) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    if third.is_some() {
        return Err(format!(
            "a qualified name {NAME} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ));
    }
    let name = match second {
        None => first,
        Some(_) if first.is_empty() => return Err("prefix part must be non-empty".to_owned()),
        Some(name) => {
            dns_subdomain(first).map_err(|why| format!("prefix part {why}"))?;
            name
        }
    };
    demand(!name.is_empty(), "name part must be non-empty")?;
    demand(name.len() <= 63, "name part must be no more than 63 bytes")?;
    demand(alphanumeric_edges(name) && only(name, b"-_."), &format!("name part {NAME}"))
}

/// The value of a label.
pub(crate) fn label_value(value: &str) -> Check {
    demand(value.len() <= 63, "must be no more than 63 bytes")?;
    demand(
        value.is_empty() || alphanumeric_edges(value) && only(value, b"-_."),
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start \
         and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
         validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
    )
}

/// A key of a ConfigMap or Secret.
pub(crate) fn config_map_key(key: &str) -> Check {
    demand(key.len() <= 253, "must be no more than 253 bytes")?;
    demand(
        !key.is_empty() && only(key, b"-_."),
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
         'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
    )?;
    demand(key != ".", "must not be '.'")?;
    demand(key != "..", "must not be '..'")?;
    demand(!key.starts_with(".."), "must not start with '..'")
}

/// The name of a container port, and of a target port.
pub(crate) fn port_name(name: &str) -> Check {
    demand(name.len() <= 15, "must be no more than 15 characters")?;
    demand(
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    )?;
    demand(name.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)")?;
    demand(!name.contains("--"), "must not contain consecutive hyphens")?;
    demand(!name.starts_with('-') && !name.ends_with('-'), "must not begin or end with a hyphen")
}

/// A port number.
pub(crate) fn port_number(port: i64) -> Check {
    demand((1..=65535).contains(&port), "must be between 1 and 65535, inclusive")
}

/// The name of an environment variable (relaxed as since 1.32: printable ASCII without `=`).
pub(crate) fn env_name(name: &str) -> Check {
    demand(
        !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'='),
        "a valid environment variable name must consist only of printable ASCII characters other than '='",
    )
}

/// A host name of an Ingress rule or TLS entry: `*.` and a subdomain, or a subdomain.
pub(crate) fn wildcard_dns_subdomain(name: &str) -> Check {
    let ok = name.strip_prefix("*.").is_some_and(|rest| dns_subdomain(rest).is_ok()) && name.len() <= 253;
    demand(
        ok,
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
         lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
         '*.example.com', regex used for validation is \
         '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    )
}

/// An IP address of either family.
pub(crate) fn ip(address: &str) -> Check {
    demand(address.parse::<std::net::IpAddr>().is_ok(), "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
}

/// The name of an HTTP header.
pub(crate) fn header_name(name: &str) -> Check {
    demand(
        !name.is_empty() && only(name, b"-"),
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
         validation is '[-A-Za-z0-9]+')",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad() {
        for good in ["app", "app.kubernetes.io/name", "A_b-c.d", "x.io/1"] {
            assert_eq!(qualified_name(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "A.io/x", "a/b/c", "-a", "a b"] {
            assert!(qualified_name(bad).is_err(), "{bad}");
        }
        assert!(label_value("").is_ok() && label_value("v1.2_x").is_ok() && label_value("-x").is_err());
        assert!(port_name("http-2").is_ok() && port_name("80").is_err() && port_name("a-very-long-name-x").is_err());
        assert!(config_map_key("a.b_c-D").is_ok() && config_map_key("..a").is_err() && config_map_key("a/b").is_err());
        assert!(wildcard_dns_subdomain("*.a.io").is_ok() && wildcard_dns_subdomain("*.*.io").is_err());
        assert!(env_name("my-var.x").is_ok() && env_name("a=b").is_err());
    }
}
