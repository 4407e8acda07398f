//! A host's beacons. A host speaks only for itself.

use understudy_common::beacon::BeaconDecoder;
use understudy_common::id::HostId;
use understudy_common::identity::Principal;
use understudy_common::wire::DecodeError;
use understudy_transport::{FrameReceiver, TransportError};

use crate::forecast::Inbox;

pub(super) async fn serve(
    host: HostId,
    mut frames: FrameReceiver,
    forecast: Option<&Inbox>,
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
        if let Some(forecast) = forecast {
            forecast.push(beacon);
        }
    }
    Ok(())
}
