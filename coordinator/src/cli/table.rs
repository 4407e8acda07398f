//! Aligned columns and durations for people.

use std::fmt::Write as _;

/// Columns aligned by their widest cell; the header in capitals.
pub(super) fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let header: Vec<String> = header.iter().map(|cell| cell.to_uppercase()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            // Writing to a string has no failure.
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `850 us`, `12.3 ms`, `4.2 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`.
pub(super) fn duration(us: u64) -> String {
    let s = us / 1_000_000;
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        1_000_000..60_000_000 => format!("{:.1} s", us as f64 / 1e6),
        60_000_000..3_600_000_000 => format!("{} min {:02} s", s / 60, s % 60),
        3_600_000_000..86_400_000_000 => format!("{} h {:02} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3600 % 24),
    }
}

/// `512 B`, `4.0 KiB`, `1.5 MiB`.
pub(super) fn bytes(n: u64) -> String {
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "steady".into()],
            vec!["longer".into(), "x".into()],
        ];
        expect![[r#"
            NAME    PHASE
            a       steady
            longer  x
        "#]]
        .assert_eq(&render(&["name", "phase"], &rows));
    }

    #[test]
    fn durations_and_sizes_read_well() {
        let times: Vec<_> = [
            850,
            12_300,
            4_200_000,
            200_000_000,
            7_500_000_000,
            273_600_000_000,
        ]
        .map(duration)
        .into();
        assert_eq!(
            times,
            [
                "850 us",
                "12.3 ms",
                "4.2 s",
                "3 min 20 s",
                "2 h 05 min",
                "3 d 4 h"
            ]
        );
        assert_eq!([12, 4096, 3 << 19].map(bytes), ["12 B", "4.0 KiB", "1.5 MiB"]);
    }
}
