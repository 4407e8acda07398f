//! Failure domains: what hosts share, and therefore lose together.

/// The longest label, in bytes.
pub const LABEL_BYTES_MAX: usize = 64;

/// Where a host stands. A label that is missing shares nothing with anybody.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    rkyv::Archive,
    rkyv::Serialize,
    rkyv::Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(default, deny_unknown_fields)]
pub struct Domain {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Feed, phase or supply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

impl Domain {
    /// Each kind of label with its value here.
    pub fn labels(&self) -> [(&'static str, Option<&str>); 3] {
        [
            ("rack", self.rack.as_deref()),
            ("power", self.power.as_deref()),
            ("region", self.region.as_deref()),
        ]
    }

    /// The first kind of label that both have with the same value, and that value.
    pub fn shared<'a>(&'a self, other: &'a Self) -> Option<(&'static str, &'a str)> {
        let pairs = self.labels().into_iter().zip(other.labels());
        pairs
            .filter(|((_, mine), (_, theirs))| mine == theirs)
            .find_map(|((kind, mine), _)| Some((kind, mine?)))
    }

    /// # Errors
    /// The kind of the label that breaks the rule, and the rule.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (kind, label) in self.labels() {
            let fits = |label: &str| {
                (1..=LABEL_BYTES_MAX).contains(&label.len()) && !label.chars().any(char::is_control)
            };
            if !label.is_none_or(fits) {
                return Err((kind, format!("1 to {LABEL_BYTES_MAX} printable bytes")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(rack: &str, power: &str, region: &str) -> Domain {
        let label = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Domain {
            rack: label(rack),
            power: label(power),
            region: label(region),
        }
    }

    #[test]
    fn what_two_hosts_share_is_named_and_a_missing_label_shares_nothing() {
        for (one, other, expected) in [
            (("", "", ""), ("", "", ""), None),
            (("r1", "", ""), ("", "", ""), None),
            (("r1", "p1", "eu"), ("r2", "p2", "us"), None),
            (("r1", "p1", "eu"), ("r1", "p2", "us"), Some(("rack", "r1"))),
            (("r1", "p1", ""), ("r2", "p1", ""), Some(("power", "p1"))),
            (("", "", "eu"), ("r2", "p1", "eu"), Some(("region", "eu"))),
            // The same word as another kind of label is another thing.
            (("x", "", ""), ("", "x", ""), None),
        ] {
            let (one, other) = (domain(one.0, one.1, one.2), domain(other.0, other.1, other.2));
            assert_eq!(one.shared(&other), expected, "{one:?} {other:?}");
            assert_eq!(other.shared(&one), expected, "{other:?} {one:?}");
        }
    }

    #[test]
    fn labels_are_short_and_printable() {
        assert_eq!(domain("r1", "", "").check(), Ok(()));
        for bad in ["a\nb".to_owned(), "x".repeat(65)] {
            assert_eq!(domain("", &bad, "").check().unwrap_err().0, "power");
        }
        let empty = Domain {
            region: Some(String::new()),
            ..Domain::default()
        };
        assert_eq!(empty.check().unwrap_err().0, "region");
    }
}
