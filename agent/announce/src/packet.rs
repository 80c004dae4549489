//! What the neighbours are told when an address moves here: a gratuitous ARP request (IPv4), an unsolicited neighbour
//! advertisement (IPv6). Frames are pure; [`tell`] sends them.

use pnet_datalink::{Channel, Config, MacAddr, NetworkInterface};
use pnet_packet::Packet;
use pnet_packet::arp::{ArpHardwareTypes, ArpOperations, MutableArpPacket};
use pnet_packet::ethernet::{EtherTypes, MutableEthernetPacket};
use pnet_packet::icmpv6::ndp::{MutableNeighborAdvertPacket, NdpOption, NdpOptionTypes, NeighborAdvertFlags};
use pnet_packet::icmpv6::{Icmpv6Code, Icmpv6Packet, Icmpv6Types, checksum};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::MutableIpv6Packet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ETHERNET: usize = 14;
const ARP: usize = 28;
const IPV6: usize = 40;
/// A neighbour advertisement with one option of eight bytes.
const ADVERT: usize = 32;
/// All nodes on the link, and the Ethernet address for it (RFC 2464).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr(0x33, 0x33, 0, 0, 0, 1);

/// The frame that says: this address is at this station. `None` only if the buffer were too short, which it is not.
pub fn frame(mac: MacAddr, ip: IpAddr) -> Option<Vec<u8>> {
    match ip {
        IpAddr::V4(ip) => gratuitous_arp(mac, ip),
        IpAddr::V6(ip) => unsolicited_advert(mac, ip),
    }
}

/// RFC 5227: an ARP announcement is a request for one's own address, which every stack takes note of.
fn gratuitous_arp(mac: MacAddr, ip: Ipv4Addr) -> Option<Vec<u8>> {
    let mut buffer = vec![0; ETHERNET + ARP];
    let mut ethernet = MutableEthernetPacket::new(&mut buffer)?;
    ethernet.set_destination(MacAddr::broadcast());
    ethernet.set_source(mac);
    ethernet.set_ethertype(EtherTypes::Arp);
    let mut arp = MutableArpPacket::new(&mut buffer[ETHERNET..])?;
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(ArpOperations::Request);
    arp.set_sender_hw_addr(mac);
    arp.set_sender_proto_addr(ip);
    arp.set_target_proto_addr(ip);
    Some(buffer)
}

/// RFC 4861, 7.2.6: to all nodes, with the override flag, so that caches are corrected at once.
fn unsolicited_advert(mac: MacAddr, ip: Ipv6Addr) -> Option<Vec<u8>> {
    let mut buffer = vec![0; ETHERNET + IPV6 + ADVERT];
    let mut ethernet = MutableEthernetPacket::new(&mut buffer)?;
    ethernet.set_destination(ALL_NODES_MAC);
    ethernet.set_source(mac);
    ethernet.set_ethertype(EtherTypes::Ipv6);
    let mut header = MutableIpv6Packet::new(&mut buffer[ETHERNET..])?;
    header.set_version(6);
    header.set_payload_length(u16::try_from(ADVERT).ok()?);
    header.set_next_header(IpNextHeaderProtocols::Icmpv6);
    header.set_hop_limit(255);
    header.set_source(ip);
    header.set_destination(ALL_NODES);
    let body = &mut buffer[ETHERNET + IPV6..];
    let mut advert = MutableNeighborAdvertPacket::new(body)?;
    advert.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
    advert.set_icmpv6_code(Icmpv6Code(0));
    advert.set_flags(NeighborAdvertFlags::Override);
    advert.set_target_addr(ip);
    let station = vec![mac.0, mac.1, mac.2, mac.3, mac.4, mac.5];
    advert.set_options(&[NdpOption { option_type: NdpOptionTypes::TargetLLAddr, length: 1, data: station }]);
    let sum = checksum(&Icmpv6Packet::new(advert.packet())?, &ip, &ALL_NODES);
    advert.set_checksum(sum);
    Some(buffer)
}

/// Sends the frames out of a link of the calling thread's namespace.
pub fn tell(link: &str, addresses: &[IpAddr]) -> io::Result<()> {
    let found = pnet_datalink::interfaces().into_iter().find(|i| i.name == link);
    let interface: NetworkInterface = found.ok_or_else(|| io::Error::other(format!("there is no link {link}")))?;
    let mac = interface.mac.ok_or_else(|| io::Error::other(format!("{link} has no hardware address")))?;
    let Channel::Ethernet(mut sender, _) = pnet_datalink::channel(&interface, Config::default())? else {
        return Err(io::Error::other(format!("{link} is no Ethernet link")));
    };
    for frame in addresses.iter().filter_map(|ip| frame(mac, *ip)) {
        sender.send_to(&frame, None).unwrap_or_else(|| Err(io::Error::other("the frame does not fit")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pnet_packet::arp::ArpPacket;
    use pnet_packet::icmpv6::ndp::NeighborAdvertPacket;
    use pnet_packet::ipv6::Ipv6Packet;

    const MAC: MacAddr = MacAddr(2, 0xc5, 1, 2, 3, 4);

    #[test]
    fn an_arp_announcement() {
        let ip = Ipv4Addr::new(10, 0, 0, 9);
        let frame = frame(MAC, ip.into()).unwrap();
        let arp = ArpPacket::new(&frame[14..]).unwrap();
        assert_eq!((arp.get_sender_proto_addr(), arp.get_target_proto_addr()), (ip, ip));
        assert_eq!((arp.get_sender_hw_addr(), arp.get_operation()), (MAC, ArpOperations::Request));
        assert_eq!(&frame[..6], &[0xff; 6]);
    }

    #[test]
    fn a_neighbour_advertisement() {
        let ip: Ipv6Addr = "fd00::9".parse().unwrap();
        let frame = frame(MAC, ip.into()).unwrap();
        assert_eq!(frame.len(), 86);
        let header = Ipv6Packet::new(&frame[14..]).unwrap();
        assert_eq!((header.get_hop_limit(), header.get_source()), (255, ip));
        let advert = NeighborAdvertPacket::new(&frame[54..]).unwrap();
        assert_eq!((advert.get_target_addr(), advert.get_flags()), (ip, NeighborAdvertFlags::Override));
        assert_eq!(&frame[78..], &[2, 1, 2, 0xc5, 1, 2, 3, 4]);
        let sum = checksum(&Icmpv6Packet::new(&frame[54..]).unwrap(), &ip, &ALL_NODES);
        assert_eq!(sum, advert.get_checksum());
    }
}
