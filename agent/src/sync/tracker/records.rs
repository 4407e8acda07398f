//! The records that fanotify writes: parsing alone.
//!
//! Invariant: every length is checked against the bytes that are there; `None` means that the
//! kernel spoke a language unknown here or lost events, and the caller has to walk all names.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

const METADATA: usize = size_of::<libc::fanotify_event_metadata>();
const HEADER: usize = 4;
const FSID: usize = 8;
/// `handle_bytes` and `handle_type` of a `file_handle`.
const HANDLE_HEADER: usize = 8;
const HANDLE_BYTES_MAX: usize = 128;

/// An opaque directory handle.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle {
    kind: i32,
    bytes: Vec<u8>,
}

impl Handle {
    /// As `open_by_handle_at` wants it: a `file_handle`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = (self.bytes.len() as u32).to_ne_bytes().to_vec();
        out.extend(self.kind.to_ne_bytes());
        out.extend(&self.bytes);
        out
    }
}

/// Something happened to a name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    pub fsid: [i32; 2],
    pub handle: Handle,
    pub name: OsString,
}

/// The events in what one `read` returned.
pub fn parse(mut buffer: &[u8]) -> Option<Vec<Event>> {
    let mut events = Vec::new();
    while !buffer.is_empty() {
        let len = word(buffer, 0)? as usize;
        if len < METADATA || len > buffer.len() || buffer[4] != libc::FANOTIFY_METADATA_VERSION {
            return None;
        }
        let (event, rest) = buffer.split_at(len);
        buffer = rest;
        let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
        if mask & libc::FAN_Q_OVERFLOW != 0 {
            return None;
        }
        events.push(info(&event[METADATA..])?);
    }
    Some(events)
}

/// The directory and name among an event's info records.
fn info(mut records: &[u8]) -> Option<Event> {
    while records.len() >= HEADER {
        let len = usize::from(u16::from_ne_bytes(records[2..4].try_into().ok()?));
        if len < HEADER || len > records.len() {
            return None;
        }
        let (record, rest) = records.split_at(len);
        records = rest;
        if record[0] != libc::FAN_EVENT_INFO_TYPE_DFID_NAME {
            continue;
        }
        let fsid = [word(record, HEADER)? as i32, word(record, HEADER + 4)? as i32];
        let handle = record.get(HEADER + FSID..)?;
        let size = word(handle, 0)? as usize;
        if size > HANDLE_BYTES_MAX {
            return None;
        }
        let kind = word(handle, 4)? as i32;
        let bytes = handle.get(HANDLE_HEADER..HANDLE_HEADER + size)?.to_vec();
        let name = handle.get(HANDLE_HEADER + size..)?;
        let end = name.iter().position(|byte| *byte == 0)?;
        return Some(Event {
            fsid,
            handle: Handle { kind, bytes },
            name: OsStr::from_bytes(&name[..end]).to_owned(),
        });
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(mask: u64, kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut record = vec![kind, 0, 0, 0];
        record.extend([7u8, 0, 0, 0, 8, 0, 0, 0]);
        record.extend((handle.len() as u32).to_ne_bytes());
        record.extend(1u32.to_ne_bytes());
        record.extend(handle);
        record.extend(name);
        record.push(0);
        record.resize(record.len().next_multiple_of(4), 0);
        let len = record.len() as u16;
        record[2..4].copy_from_slice(&len.to_ne_bytes());

        let mut out = ((METADATA + record.len()) as u32).to_ne_bytes().to_vec();
        out.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        out.extend((METADATA as u16).to_ne_bytes());
        out.extend(mask.to_ne_bytes());
        out.extend((-1i32).to_ne_bytes());
        out.extend(0i32.to_ne_bytes());
        out.extend(record);
        out
    }

    #[test]
    fn directory_and_name_are_read() {
        let kind = libc::FAN_EVENT_INFO_TYPE_DFID_NAME;
        let mut buffer = event(libc::FAN_CREATE, kind, b"12345678", b"a");
        buffer.extend(event(libc::FAN_DELETE, kind, b"9", b"name"));
        let events = parse(&buffer).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].name, "a");
        assert_eq!(events[0].fsid, [7, 8]);
        assert_eq!(events[1].name, "name");
        assert_eq!(events[1].handle.to_bytes(), [1, 0, 0, 0, 1, 0, 0, 0, b'9']);
    }

    #[test]
    fn an_overflow_or_an_event_without_a_name_is_not_passed_over() {
        let kind = libc::FAN_EVENT_INFO_TYPE_DFID_NAME;
        assert_eq!(parse(&event(libc::FAN_Q_OVERFLOW, kind, b"1", b"a")), None);
        assert_eq!(
            parse(&event(
                libc::FAN_CREATE,
                libc::FAN_EVENT_INFO_TYPE_PIDFD,
                b"1",
                b"a"
            )),
            None
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, at: proptest::sample::Index, with: u8) {
            parse(&bytes);
            let mut event = event(libc::FAN_CREATE, libc::FAN_EVENT_INFO_TYPE_DFID_NAME, b"12345678", b"name");
            let at = at.index(event.len());
            event[at] = with;
            parse(&event);
            parse(&event[..at]);
        }
    }
}
