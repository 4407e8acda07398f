//! What an agent's log tells about generations. Pure: text in, facts out. Needs
//! `RUST_LOG=info,understudy_agent::generation=debug`.

/// Epoch and number.
pub type Generation = (u64, u64);

/// A generation that a shadow acknowledged, as the primary's agent logged it. Times are nanoseconds of the
/// boot clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub generation: Generation,
    /// Everything that was written before is in it.
    pub cut_ns: u64,
    pub acked_ns: u64,
    /// `host-2`
    pub shadow: String,
    pub bytes: u64,
}

/// A host took over from its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    /// In which it was to serve.
    pub epoch: u64,
    /// What it started from.
    pub generation: Generation,
}

/// Reads one line; none when it is about something else.
pub fn sealed(line: &str) -> Option<Sealed> {
    let (_, fields) = line.split_once("understudy_agent::generation")?;
    let number = |name: &str| field(fields, name)?.parse().ok();
    Some(Sealed {
        generation: generation(field(fields, "generation")?)?,
        cut_ns: number("cut_ns")?,
        acked_ns: number("acked_ns")?,
        shadow: field(fields, "shadow")?.to_owned(),
        bytes: number("bytes")?,
    })
}

/// Reads one line; none when it is about something else.
pub fn promotion(line: &str) -> Option<Promotion> {
    let (_, fields) = line.split_once(" promoted service=")?;
    Some(Promotion {
        epoch: field(fields, "epoch")?.strip_prefix('e')?.parse().ok()?,
        generation: generation(field(fields, "generation")?)?,
    })
}

/// `e3.17`
pub fn generation(word: &str) -> Option<Generation> {
    let (epoch, n) = word.strip_prefix('e')?.split_once('.')?;
    Some((epoch.parse().ok()?, n.parse().ok()?))
}

fn field<'a>(fields: &'a str, name: &str) -> Option<&'a str> {
    fields
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_generation_is_read_from_a_log_line() {
        let line = "2026-01-01T00:00:00Z DEBUG understudy_agent::generation: sealed service=service-1 \
                    generation=e3.17 cut_ns=1000 acked_ns=2500 shadow=host-2 bytes=4096";
        let read = sealed(line).expect("it is one");
        assert_eq!(
            (read.generation, read.cut_ns, read.acked_ns),
            ((3, 17), 1000, 2500)
        );
        assert_eq!((read.shadow.as_str(), read.bytes), ("host-2", 4096));
        assert_eq!(sealed("INFO understudy_agent: generation=e1.1 cut_ns=1"), None);
    }

    #[test]
    fn a_promotion_is_read_from_a_log_line() {
        let line =
            "y INFO understudy_agent::service::driver: promoted service=redis epoch=e3 generation=e2.208";
        let expected = Promotion {
            epoch: 3,
            generation: (2, 208),
        };
        assert_eq!(promotion(line), Some(expected));
        assert_eq!(promotion("nothing"), None);
    }
}
