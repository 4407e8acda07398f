//! The few protobuf messages that etcd's clients need, by hand: numbers and byte strings, one level deep.

/// Appends a byte string field.
pub(super) fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_number(message, field << 3 | 2);
    put_number(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn put_number(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}

/// A field's value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The first field with this number; none when it is absent or the message is not readable.
pub(super) fn find(mut message: &[u8], wanted: u64) -> Option<Value<'_>> {
    while !message.is_empty() {
        let tag = take_number(&mut message)?;
        let value = match tag & 7 {
            0 => Value::Number(take_number(&mut message)?),
            2 => {
                let len = usize::try_from(take_number(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(len)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        if tag >> 3 == wanted {
            return Some(value);
        }
    }
    None
}

fn take_number(message: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found_and_what_is_cut_off_is_not() {
        let mut message = vec![0x08, 0xac, 0x02];
        put_bytes(&mut message, 2, &[7; 300]);
        assert_eq!(find(&message, 1), Some(Value::Number(300)));
        assert_eq!(find(&message, 2), Some(Value::Bytes(&[7; 300])));
        assert_eq!(find(&message, 3), None);
        assert_eq!(find(&message[..200], 2), None);
    }
}
