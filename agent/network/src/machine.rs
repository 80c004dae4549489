//! A machine that was a node and is none any more. In: the calling thread's network namespace. Out: the same without our
//! bridge, tunnels and routes; what others made there is not touched.

use crate::{Result, bridge, netlink::Netlink, routes::Routes, vxlan};

/// Removes them; harmless when there is nothing.
pub async fn release() -> Result<()> {
    let netlink = Netlink::here()?;
    for link in [bridge::BRIDGE, vxlan::DEVICE] {
        netlink.delete_link(link).await?;
    }
    Routes::on(netlink).release().await
}
