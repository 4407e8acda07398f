//! The address of a service moves between two hosts of a test network.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::gate::testnet::{INTERFACE, Net, Netns, SERVICE, eventually};

/// Runs in the namespace with a runtime of its own, as an agent there would.
fn on<R: Send>(host: &Netns, work: impl AsyncFnOnce(&mut VirtualIp) -> R + Send) -> R {
    host.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut address = VirtualIp::new(SERVICE, 24, INTERFACE);
            work(&mut address).await
        })
    })
}

#[test]
fn an_address_is_taken_and_left_however_often() {
    let Some(net) = Net::new() else { return };
    on(&net.a, async |address| {
        assert!(!address.is_here().unwrap());
        address.leave().await.unwrap();
        for _ in 0..2 {
            address.take().await.unwrap();
            assert!(address.is_here().unwrap());
        }
        for _ in 0..2 {
            address.leave().await.unwrap();
            assert!(!address.is_here().unwrap());
        }
    });
    assert!(
        net.a.ip("addr show eth0").contains("10.99.0.1/24"),
        "the host's own address stays"
    );
}

#[test]
fn a_neighbour_follows_the_address_at_once() {
    let Some(net) = Net::new() else { return };
    let at = SocketAddr::from((SERVICE, 7000));
    on(&net.a, async |address| address.take().await.unwrap());
    net.a.listen(at);
    eventually("the client reaches the first host", || {
        net.client.connect(at, Duration::from_millis(300)).is_ok()
    });
    let neighbour = || net.client.ip(&format!("neigh show {SERVICE}"));
    assert!(neighbour().contains(&net.a.mac()), "{}", neighbour());

    on(&net.a, async |address| address.leave().await.unwrap());
    on(&net.b, async |address| address.take().await.unwrap());
    net.b.listen(at);
    eventually("the announcement changed the client's neighbour", || {
        neighbour().contains(&net.b.mac())
    });
    eventually("the client reaches the second host", || {
        net.client.connect(at, Duration::from_millis(300)).is_ok()
    });
}

#[test]
fn a_missing_interface_is_named() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime
        .block_on(VirtualIp::new(SERVICE, 24, "absent0").take())
        .unwrap_err();
    assert!(error.to_string().contains("absent0"), "{error}");
}
