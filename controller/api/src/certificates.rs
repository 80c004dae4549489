//! What a certificate signing request asks for, and which requests are a node's. Pure: the approver, the signer and the
//! API's validation read a request with one pair of eyes.

use crate::identity::GROUP_NODES;
use std::net::IpAddr;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// Client certificates of nodes.
pub const SIGNER_KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Server certificates of kubelets.
pub const SIGNER_KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Client certificates of others, which a person approves.
pub const SIGNER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";

/// The prefix of a node's user name.
pub const NODE_USER_PREFIX: &str = "system:node:";

/// What stands in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// The subject's common name: the user.
    pub common_name: String,
    /// The subject's organisations: the groups.
    pub organizations: Vec<String>,
    /// Host names it shall be valid for.
    pub dns_names: Vec<String>,
    /// Addresses it shall be valid for.
    pub ips: Vec<IpAddr>,
    /// It asks for names of other kinds (mail, URI, …), or to be an authority.
    pub other: bool,
}

/// Reads a PEM request. The signature is checked by whoever signs.
pub fn parse(pem: &[u8]) -> Result<Wish, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).map_err(|_| "PEM block type must be CERTIFICATE REQUEST")?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|e| format!("asn1: structure error: {e}"))?;
    let subject = &request.certification_request_info.subject;
    let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_owned();
    let mut wish = Wish {
        common_name: subject.iter_common_name().next().map(text).unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
        ..Wish::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    wish.add(name);
                }
            }
            ParsedExtension::BasicConstraints(constraints) => wish.other |= constraints.ca,
            _ => {}
        }
    }
    Ok(wish)
}

impl Wish {
    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                (Ok(v4), _) => self.ips.push(v4.into()),
                (_, Ok(v6)) => self.ips.push(v6.into()),
                _ => self.other = true,
            },
            _ => self.other = true,
        }
    }

    fn node(&self) -> Result<&str, String> {
        if self.organizations != [GROUP_NODES] {
            return Err("subject organization is not system:nodes".to_owned());
        }
        match self.common_name.strip_prefix(NODE_USER_PREFIX) {
            Some(node) if !node.is_empty() => Ok(node),
            _ => Err("subject common name does not begin with system:node:".to_owned()),
        }
    }

    /// The node whose client certificate this is.
    pub fn kubelet_client(&self, usages: &[String]) -> Result<&str, String> {
        let node = self.node()?;
        if !self.dns_names.is_empty() || !self.ips.is_empty() || self.other {
            return Err("subjectAltNames are not allowed in a node's client certificate".to_owned());
        }
        usages_are(usages, "client auth")?;
        Ok(node)
    }

    /// The node whose kubelet this certificate is for.
    pub fn kubelet_serving(&self, usages: &[String]) -> Result<&str, String> {
        let node = self.node()?;
        if self.dns_names.is_empty() && self.ips.is_empty() {
            return Err("DNS or IP subjectAltName is required".to_owned());
        }
        if self.other {
            return Err("only DNS and IP subjectAltNames are allowed".to_owned());
        }
        usages_are(usages, "server auth")?;
        Ok(node)
    }
}

/// `digital signature`, maybe `key encipherment`, and the one named.
pub fn usages_are(usages: &[String], needed: &str) -> Result<(), String> {
    let has = |u: &str| usages.iter().any(|have| have == u);
    let known = ["digital signature", "key encipherment", needed];
    let beyond: Vec<&str> = usages.iter().map(String::as_str).filter(|u| !known.contains(u)).collect();
    if !has("digital signature") || !has(needed) || !beyond.is_empty() {
        return Err(format!("usages must be \"digital signature\", \"{needed}\" and maybe \"key encipherment\""));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            common_name: "system:node:n1".to_owned(),
            organizations: vec![GROUP_NODES.to_owned()],
            ..Wish::default()
        }
    }

    fn usages(all: &[&str]) -> Vec<String> {
        all.iter().map(|u| (*u).to_owned()).collect()
    }

    #[test]
    fn a_nodes_client_certificate_has_nothing_else() {
        let usual = usages(&["digital signature", "client auth"]);
        assert_eq!(wish().kubelet_client(&usual), Ok("n1"));
        assert!(wish().kubelet_client(&usages(&["digital signature", "server auth"])).is_err());
        assert!(wish().kubelet_client(&usages(&["digital signature", "client auth", "cert sign"])).is_err());
        let masters = Wish { organizations: vec![GROUP_NODES.to_owned(), "system:masters".to_owned()], ..wish() };
        assert!(masters.kubelet_client(&usual).is_err());
        assert!(Wish { common_name: "admin".to_owned(), ..wish() }.kubelet_client(&usual).is_err());
        assert!(Wish { common_name: "system:node:".to_owned(), ..wish() }.kubelet_client(&usual).is_err());
        assert!(Wish { dns_names: vec!["x".to_owned()], ..wish() }.kubelet_client(&usual).is_err());
        assert!(Wish { other: true, ..wish() }.kubelet_client(&usual).is_err());
    }

    #[test]
    fn a_kubelets_server_certificate_names_hosts() {
        let usual = usages(&["digital signature", "server auth"]);
        assert!(wish().kubelet_serving(&usual).is_err());
        let named = Wish { ips: vec!["10.0.0.1".parse().unwrap()], ..wish() };
        assert_eq!(named.kubelet_serving(&usual), Ok("n1"));
        assert!(Wish { other: true, ..named }.kubelet_serving(&usual).is_err());
    }

    #[test]
    fn rubbish_is_no_request() {
        for bad in ["", "x", "-----BEGIN CERTIFICATE-----\nMQ==\n-----END CERTIFICATE-----\n"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse(b"-----BEGIN CERTIFICATE REQUEST-----\nMQ==\n-----END CERTIFICATE REQUEST-----\n").is_err());
    }
}
