//! Join tokens: one string that a person copies to a new host. It holds a secret, and what the host
//! needs to trust the cluster before it has a certificate: the CA's fingerprint and the coordinators'
//! addresses.
//!
//! Invariants: the cluster keeps only the secret's hash. A string that was cut off or mistyped is
//! told apart from one that the cluster does not know, by a checksum, before anything is sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use data_encoding::{BASE32_NOPAD, BASE32_NOPAD_NOCASE};
use understudy_common::identity::fingerprint;

use crate::config::MEMBERS_MAX;

/// 1: first version.
const PREFIX: &str = "understudy1";
const CHECKSUM_BYTES: usize = 4;
pub const SECRET_BYTES: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    pub secret: [u8; SECRET_BYTES],
    /// BLAKE3 of the CA certificate.
    pub ca: [u8; 32],
    /// At most [`MEMBERS_MAX`].
    pub coordinators: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it does not begin with `{PREFIX}`: copy the whole token as `understudy token` printed it")]
    Prefix,
    #[error("it was mistyped or cut off: its checksum does not fit")]
    Checksum,
    #[error("it holds no secret, fingerprint and addresses that this version understands")]
    Content,
}

/// What the cluster keeps of a secret.
pub fn hash(secret: &[u8; SECRET_BYTES]) -> [u8; 32] {
    fingerprint(secret)
}

impl JoinToken {
    pub fn to_text(&self) -> String {
        let mut bytes = [&self.secret[..], &self.ca].concat();
        for addr in &self.coordinators {
            match addr.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(addr.port().to_be_bytes());
        }
        let sum = fingerprint(&bytes);
        bytes.extend_from_slice(&sum[..CHECKSUM_BYTES]);
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    /// # Errors
    /// [`TokenError`] in plain words.
    pub fn from_text(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let code = text
            .get(..PREFIX.len())
            .filter(|prefix| prefix.eq_ignore_ascii_case(PREFIX))
            .map(|_| &text[PREFIX.len()..])
            .ok_or(TokenError::Prefix)?;
        let bytes = BASE32_NOPAD_NOCASE
            .decode(code.as_bytes())
            .map_err(|_| TokenError::Checksum)?;
        let (content, sum) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(TokenError::Checksum)?;
        if fingerprint(content)[..CHECKSUM_BYTES] != *sum {
            return Err(TokenError::Checksum);
        }
        Self::from_content(content).ok_or(TokenError::Content)
    }

    fn from_content(content: &[u8]) -> Option<Self> {
        let (secret, rest) = content.split_first_chunk()?;
        let (ca, mut rest) = rest.split_first_chunk()?;
        let mut coordinators = Vec::new();
        while let Some((family, after)) = rest.split_first() {
            let (ip, after): (IpAddr, _) = match family {
                4 => after
                    .split_first_chunk::<4>()
                    .map(|(ip, after)| (Ipv4Addr::from(*ip).into(), after))?,
                6 => after
                    .split_first_chunk::<16>()
                    .map(|(ip, after)| (Ipv6Addr::from(*ip).into(), after))?,
                _ => return None,
            };
            let (port, after) = after.split_first_chunk()?;
            coordinators.push(SocketAddr::new(ip, u16::from_be_bytes(*port)));
            rest = after;
        }
        (1..=MEMBERS_MAX).contains(&coordinators.len()).then_some(Self {
            secret: *secret,
            ca: *ca,
            coordinators,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> impl Strategy<Value = JoinToken> {
        let addrs = prop::collection::vec(any::<SocketAddr>(), 1..=MEMBERS_MAX);
        (any::<[u8; SECRET_BYTES]>(), any::<[u8; 32]>(), addrs).prop_map(|(secret, ca, addrs)| JoinToken {
            secret,
            ca,
            // A flow label and a scope mean nothing on another host.
            coordinators: addrs
                .iter()
                .map(|addr| SocketAddr::new(addr.ip(), addr.port()))
                .collect(),
        })
    }

    proptest! {
        #[test]
        fn a_token_is_read_back_in_either_case(token in token()) {
            let text = token.to_text();
            prop_assert_eq!(JoinToken::from_text(&text), Ok(token.clone()));
            prop_assert_eq!(JoinToken::from_text(&format!(" {}\n", text.to_uppercase())), Ok(token));
        }

        #[test]
        fn one_changed_letter_is_noticed(token in token(), at in any::<prop::sample::Index>()) {
            let mut text = token.to_text().into_bytes();
            let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
            text[at] = if text[at] == b'q' { b'r' } else { b'q' };
            prop_assert!(JoinToken::from_text(&String::from_utf8(text).unwrap()).is_err());
        }

        #[test]
        fn any_text_is_refused_without_a_panic(text in ".{0,200}") {
            prop_assert!(JoinToken::from_text(&text).is_err());
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(JoinToken::from_text("hello"), Err(TokenError::Prefix));
        assert_eq!(JoinToken::from_text("understudy1abc"), Err(TokenError::Checksum));
        let mut bytes = vec![0; 60];
        let sum = fingerprint(&bytes);
        bytes.extend_from_slice(&sum[..CHECKSUM_BYTES]);
        let text = format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes));
        assert_eq!(JoinToken::from_text(&text), Err(TokenError::Content));
    }
}
