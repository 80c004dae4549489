//! The ingress: routing table from the API, traffic on Pingora
