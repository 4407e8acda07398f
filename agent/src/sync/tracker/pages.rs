//! A set of 4 KiB pages of one file.
//!
//! Invariant: ranges are sorted, not empty, and neither overlap nor touch.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes in a page.
pub const PAGE: u64 = 4096;

/// Pages of one file, as sorted disjoint ranges of page numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    /// First page → the page after the last.
    ranges: BTreeMap<u64, u64>,
}

impl PageSet {
    /// The page number that stands for "to the end of the file, wherever that is".
    pub const END: u64 = u64::MAX / PAGE;

    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of pages; an open range counts up to `END`.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Adds pages; numbers past `END` are cut off.
    pub fn insert(&mut self, pages: Range<u64>) {
        let (mut start, mut end) = (pages.start, pages.end.min(Self::END));
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.ranges.range(..=start).next_back()
            && before_end >= start
        {
            start = before;
            end = end.max(before_end);
        }
        while let Some((&next, &next_end)) = self.ranges.range(start..).next()
            && next <= end
        {
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    /// Adds all pages that a byte range touches.
    pub fn insert_bytes(&mut self, offset: u64, len: u64) {
        if len > 0 {
            self.insert(offset / PAGE..offset.saturating_add(len).div_ceil(PAGE));
        }
    }

    /// Adds the pages `64 * chunk + i` for each bit `i`.
    pub fn insert_chunk(&mut self, chunk: u64, mut bits: u64) {
        let base = chunk.saturating_mul(64);
        let mut at = 0;
        while bits != 0 {
            let skip = bits.trailing_zeros();
            bits >>= skip;
            at += u64::from(skip);
            let run = bits.trailing_ones();
            self.insert(base.saturating_add(at)..base.saturating_add(at + u64::from(run)));
            at += u64::from(run);
            bits = bits.checked_shr(run).unwrap_or(0);
        }
    }

    pub fn union(&mut self, other: &PageSet) {
        for pages in other.ranges() {
            self.insert(pages);
        }
    }

    pub fn contains(&self, page: u64) -> bool {
        self.ranges
            .range(..=page)
            .next_back()
            .is_some_and(|(_, &end)| page < end)
    }

    /// The pages from `page` on: see `tail` in the engine's rule.
    pub fn from_page(&self, page: u64) -> PageSet {
        let mut tail = PageSet::new();
        for pages in self.ranges() {
            tail.insert(pages.start.max(page)..pages.end);
        }
        tail
    }

    /// The pages before `page`.
    pub fn before_page(&self, page: u64) -> PageSet {
        self.ranges()
            .map(|pages| pages.start..pages.end.min(page))
            .collect()
    }

    /// Page ranges in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// Byte ranges in order, cut off at the file's size; the last may end inside a page.
    pub fn byte_ranges(&self, size: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges()
            .map(move |pages| pages.start * PAGE..pages.end.saturating_mul(PAGE).min(size))
            .filter(|bytes| bytes.start < bytes.end)
    }
}

impl FromIterator<Range<u64>> for PageSet {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(pages: I) -> Self {
        let mut set = Self::new();
        for range in pages {
            set.insert(range);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn model(set: &PageSet) -> BTreeSet<u64> {
        set.ranges().flatten().collect()
    }

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0u64..300, 0u64..40).prop_map(|(at, len)| at..at + len), 0..40)
    }

    proptest! {
        #[test]
        fn a_page_set_is_the_set_of_its_pages(input in ranges(), from in 0u64..300) {
            let expected: BTreeSet<u64> = input.iter().cloned().flatten().collect();
            let set: PageSet = input.into_iter().collect();
            prop_assert_eq!(&model(&set), &expected);
            prop_assert_eq!(set.len(), expected.len() as u64);
            prop_assert_eq!(set.contains(from), expected.contains(&from));
            prop_assert_eq!(model(&set.from_page(from)), expected.range(from..).copied().collect());
            prop_assert_eq!(model(&set.before_page(from)), expected.range(..from).copied().collect());
            let ends: Vec<_> = set.ranges().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", ends);
        }

        #[test]
        fn union_is_the_union(a in ranges(), b in ranges()) {
            let (mut left, right): (PageSet, PageSet) = (a.into_iter().collect(), b.into_iter().collect());
            let expected = model(&left).union(&model(&right)).copied().collect();
            left.union(&right);
            prop_assert_eq!(model(&left), expected);
        }

        #[test]
        fn a_chunk_adds_its_bits(chunk in 0u64..1000, bits: u64) {
            let mut set = PageSet::new();
            set.insert_chunk(chunk, bits);
            let expected = (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| chunk * 64 + bit).collect();
            prop_assert_eq!(model(&set), expected);
        }

        #[test]
        fn byte_ranges_cover_the_pages_below_the_size(input in ranges(), size in 0u64..400 * PAGE) {
            let set: PageSet = input.into_iter().collect();
            let bytes: u64 = set.byte_ranges(size).map(|range| range.end - range.start).sum();
            let expected: u64 = model(&set).iter().map(|page| (page * PAGE + PAGE).min(size).saturating_sub(page * PAGE)).sum();
            prop_assert_eq!(bytes, expected);
        }
    }

    #[test]
    fn an_open_range_is_cut_off_at_the_size() {
        let mut set = PageSet::new();
        set.insert(2..u64::MAX);
        let mut bytes = set.byte_ranges(3 * PAGE + 7);
        assert_eq!(bytes.next(), Some(2 * PAGE..3 * PAGE + 7));
        assert_eq!(bytes.next(), None);
        assert_eq!(set.byte_ranges(2 * PAGE).count(), 0);
    }
}
