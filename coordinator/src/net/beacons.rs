//! A host's beacons. A host speaks only for itself.

use std::sync::mpsc::SyncSender;

use understudy_common::beacon::{Beacon, BeaconDecoder};
use understudy_common::id::HostId;
use understudy_common::identity::Principal;
use understudy_common::wire::DecodeError;
use understudy_transport::{FrameReceiver, TransportError};

pub(super) async fn serve(
    host: HostId,
    mut frames: FrameReceiver,
    forecast: Option<&SyncSender<Beacon>>,
) -> Result<(), TransportError> {
    let mut decoder = BeaconDecoder::default();
    while let Some(frame) = frames.receive().await? {
        let beacon = decoder.decode(&frame).map_err(|error| DecodeError {
            expected: "beacon",
            why: error.to_string(),
        })?;
        if beacon.host != host {
            return Err(TransportError::WrongPeer {
                expected: Principal::Host(beacon.host).to_string(),
                found: Principal::Host(host).to_string(),
            });
        }
        if forecast.is_some_and(|forecast| forecast.try_send(beacon).is_err()) {
            tracing::debug!(%host, "dropped a beacon: the forecast is behind");
        }
    }
    Ok(())
}
