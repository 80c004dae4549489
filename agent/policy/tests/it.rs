//! Network policies with real packets.
