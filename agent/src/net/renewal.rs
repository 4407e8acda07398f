//! This host's certificate: signed anew by any coordinator that it is linked with.

use std::path::PathBuf;

use tokio::sync::watch;
use understudy_common::identity::Credentials;
use understudy_transport::{Endpoint, Link, RenewalError};

use super::uplink::Open;

/// Keeps the endpoint's certificate, and the one in `file`, from running out for as long as it is polled.
pub async fn keep_renewed(endpoint: Endpoint, file: PathBuf, open: watch::Receiver<Open>) {
    let own = endpoint.credentials();
    let ask = || ask(in_turn(&open.borrow(), own.as_ref()));
    understudy_transport::keep_renewed(endpoint, file, ask).await;
}

/// All links, from one on that differs from host to host and from certificate to certificate.
fn in_turn(open: &Open, own: Option<&watch::Receiver<Credentials>>) -> Vec<Link> {
    let mut links: Vec<_> = open.values().cloned().collect();
    if let Some(own) = own.filter(|_| !links.is_empty()) {
        let own = own.borrow();
        let certificate = own.certificate();
        let seed = certificate
            .public_key
            .iter()
            .map(|byte| u64::from(*byte))
            .sum::<u64>();
        let first = seed.wrapping_add(certificate.lifetime.ends_s.unsigned_abs()) % links.len() as u64;
        links.rotate_left(usize::try_from(first).unwrap_or(0));
    }
    links
}

async fn ask(links: Vec<Link>) -> Result<String, RenewalError> {
    let mut last = Err(RenewalError::Nobody);
    for link in links {
        last = link.renewed_certificate().await;
        if last.is_ok() {
            break;
        }
    }
    last
}
