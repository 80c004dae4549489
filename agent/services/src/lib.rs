//! kube-proxy: service addresses in nftables
