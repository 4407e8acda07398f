//! The shadow: takes every stream of the primary.

use anyhow::Result;
use serde_json::json;
use understudy_agent::sync::{Shadow, ShadowSettings};
use understudy_transport::{Endpoint, Incoming};

use super::{EPOCH, NAME, PRIMARY, SERVICE, SHADOW, Side};

pub(super) async fn run(side: &Side) -> Result<()> {
    let endpoint = Endpoint::bind(side.listen, &side.credentials(SHADOW)?)?;
    let shadow = Shadow::open(ShadowSettings {
        service: SERVICE,
        name: NAME.to_owned(),
        paths: vec![side.data.clone()],
        state_dir: side.state.clone(),
        scrub_bytes_s: 0,
    })
    .await?;
    shadow.set_primary(PRIMARY, EPOCH);
    println!("{}", json!({ "listens": endpoint.local_addr()? }));
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(serve(incoming, shadow.clone()));
    }
    Ok(())
}

async fn serve(incoming: Incoming, shadow: Shadow) {
    let Ok(link) = incoming.handshake().await else {
        return;
    };
    while let Ok(pending) = link.accept_bi().await {
        let Ok((_, sender, mut receiver)) = pending.kind().await else {
            return;
        };
        let Ok(Some(first)) = receiver.receive().await else {
            return;
        };
        if let Err(why) = shadow.serve(link.principal(), first, sender, receiver).await {
            eprintln!("understudy-load: {:#}", anyhow::Error::from(why));
        }
    }
}
