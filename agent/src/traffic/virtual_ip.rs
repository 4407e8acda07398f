//! The virtual IP driver: the service's address on this host's interface, by netlink, announced by
//! gratuitous ARP.

use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::{AddressMessageBuilder, Handle};
use tokio::task::AbortHandle;

use super::arp::Announcer;
use super::{TrafficDriver, TrafficError};

/// Uses the network namespace of the thread that calls it.
#[derive(Debug)]
pub struct VirtualIp {
    address: Ipv4Addr,
    prefix_len: u8,
    interface: String,
    announcing: Option<AbortHandle>,
}

impl VirtualIp {
    pub fn new(address: Ipv4Addr, prefix_len: u8, interface: impl Into<String>) -> Self {
        Self {
            address,
            prefix_len,
            interface: interface.into(),
            announcing: None,
        }
    }

    fn index(&self) -> Result<u32, TrafficError> {
        nix::net::if_::if_nametoindex(self.interface.as_str()).map_err(|errno| TrafficError::NoInterface {
            interface: self.interface.clone(),
            address: self.address,
            source: errno.into(),
        })
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(rtnetlink::Error) -> TrafficError + use<> {
        let (address, interface) = (self.address, self.interface.clone());
        move |source| TrafficError::Address {
            what,
            address,
            interface,
            source: Box::new(source),
        }
    }

    fn announce(&mut self, index: u32) -> Result<(), TrafficError> {
        let announced = Announcer::open(index, self.address).and_then(|announcer| {
            announcer.announce()?;
            Ok(announcer)
        });
        let announcer = announced.map_err(|source| TrafficError::Announce {
            address: self.address,
            interface: self.interface.clone(),
            source,
        })?;
        self.hush();
        self.announcing = Some(tokio::spawn(announcer.announce_rest()).abort_handle());
        Ok(())
    }

    fn hush(&mut self) {
        if let Some(announcing) = self.announcing.take() {
            announcing.abort();
        }
    }
}

impl Drop for VirtualIp {
    fn drop(&mut self) {
        self.hush();
    }
}

impl TrafficDriver for VirtualIp {
    async fn take(&mut self) -> Result<(), TrafficError> {
        let index = self.index()?;
        let handle = connect()?;
        let add = handle
            .address()
            .add(index, IpAddr::V4(self.address), self.prefix_len);
        match add.execute().await {
            Err(error) if errno(&error) == Some(libc::EEXIST) => {}
            result => result.map_err(self.failed("add"))?,
        }
        self.announce(index)
    }

    async fn leave(&mut self) -> Result<(), TrafficError> {
        self.hush();
        let index = self.index()?;
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(self.address, self.prefix_len)
            .build();
        match connect()?.address().del(message).execute().await {
            Err(error) if errno(&error) == Some(libc::EADDRNOTAVAIL) => Ok(()),
            result => result.map_err(self.failed("remove")),
        }
    }

    fn is_here(&self) -> Result<bool, TrafficError> {
        let all = nix::ifaddrs::getifaddrs().map_err(|errno| TrafficError::Netlink(errno.into()))?;
        let mut ours = all
            .filter(|entry| entry.interface_name == self.interface)
            .filter_map(|entry| Some(entry.address?.as_sockaddr_in()?.ip()));
        Ok(ours.any(|address| address == self.address))
    }
}

/// One connection per change: changes are rare, and none is left behind in a namespace.
fn connect() -> Result<Handle, TrafficError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(TrafficError::Netlink)?;
    tokio::spawn(connection);
    Ok(handle)
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }) => Some(-code.get()),
        _ => None,
    }
}
