//! Cluster DNS: the service zone, forwarding, cache
