//! Time of selection by length, everything before attention that it needs.

use super::chart::{Figure, Panel, Series, Style, decades, lengths, power_of_ten};
use super::data::{Records, Speed};
use anyhow::Result;
use plotters::style::RGBColor;

/// Selectors of ours: name in records, what is added to `select`, name in the figure, colour.
const OURS: [(&str, &str, &str, RGBColor); 3] = [
    ("stem", "summarize_kv", "stem (summarize_kv + select)", RGBColor(22, 84, 166)),
    ("probe", "probe_means", "probe (means + lists)", RGBColor(34, 139, 84)),
    ("probe-fine", "probe_means", "probe-fine (means + lists)", RGBColor(20, 150, 170)),
];
/// Colours of what a table has, in the order of their names.
const OTHERS: [RGBColor; 4] = [RGBColor(200, 80, 150), RGBColor(96, 96, 96), RGBColor(150, 150, 150), RGBColor(192, 57, 43)];

/// Milliseconds by length, both logarithmic.
pub fn times(records: &Records) -> Option<Result<String>> {
    let standard = records.standard();
    let mut series: Vec<Series> = OURS
        .into_iter()
        .filter_map(|(selector, part, name, color)| {
            let points = sums(&standard, selector, part);
            let name = exponent(&points).map_or(name.to_owned(), |x| format!("{name}: time ~ tokens^{x:.2}"));
            (!points.is_empty()).then(|| Series { name, style: Style { width: 3, ..Style::line(color) }, points, labels: Vec::new() })
        })
        .collect();
    if series.is_empty() {
        return None;
    }
    let mut others: Vec<&Speed> = standard.iter().copied().filter(|r| r.bench == "select" && r.peer.is_some()).collect();
    others.sort_by_key(|r| (r.peer.clone(), r.seq));
    let mut colors = OTHERS.into_iter().cycle();
    for r in others {
        let (Some(peer), Some(point)) = (&r.peer, point(r.seq, r.ms)) else { continue };
        let name = if r.source.is_some() { format!("{peer} (H100, from a table)") } else { peer.clone() };
        match series.iter_mut().find(|s| s.name == name) {
            Some(series) => series.points.push(point),
            None => {
                let color = colors.next().unwrap_or(RGBColor(150, 150, 150));
                let style = Style { dashed: r.source.is_some(), ..Style::line(color) };
                series.push(Series { name, style, points: vec![point], labels: Vec::new() });
            }
        }
    }
    let all = || series.iter().flat_map(|s| &s.points);
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), p| (low.min(p.1), high.max(p.1)));
    let x = lengths(all().map(|p| p.0.exp2().round() as u64));
    let subtitle = format!(
        "{}; preset hpc, 32 query and 4 KV heads, N(0, 1) data; stem's time includes the V tiles, which attention needs, the probes' does not",
        records.gpu().unwrap_or_default()
    );
    let panel = Panel { title: "both axes logarithmic".into(), x, y: decades("milliseconds", low, high, power_of_ten), series };
    Some(Figure::single("Selection: time by length", subtitle, (900, 440), panel))
}

/// log2 of the length and log10 of the milliseconds of the two launches: of both in one interval (`selection`) where that was
/// measured and `part` is all that precedes `select`, else those of each, added.
fn sums(records: &[&Speed], selector: &str, part: &str) -> Vec<(f64, f64)> {
    let ours = |bench: &str| {
        let of = |r: &&Speed| r.bench == bench && r.peer.is_none() && r.selector() == selector;
        records.iter().copied().filter(of).collect::<Vec<_>>()
    };
    let chosen = |bench: &str| ours(bench).into_iter().filter(|r| r.preset.as_deref() == Some("hpc")).collect::<Vec<_>>();
    let (selects, parts) = (chosen("select"), ours(part));
    let chains = if part == "summarize_kv" { chosen("selection") } else { Vec::new() };
    let apart = selects.iter().filter(|r| chains.iter().all(|chain| chain.seq != r.seq));
    let mut points: Vec<(f64, f64)> = apart
        .filter_map(|r| {
            let part = parts.iter().find(|p| p.seq == r.seq)?;
            point(r.seq, r.ms.zip(part.ms).map(|(a, b)| a + b))
        })
        .chain(chains.iter().filter_map(|r| point(r.seq, r.ms)))
        .collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

fn point(seq: u64, ms: Option<f64>) -> Option<(f64, f64)> {
    let ms = ms.filter(|ms| *ms > 0.0)?;
    Some(((seq as f64).log2(), ms.log10()))
}

/// Exponent of the power of the length that fits the times best (least squares of logarithms), of three points at least.
fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let n = points.len() as f64;
    let (x, y) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let (mut xy, mut xx) = (0.0, 0.0);
    for p in points {
        xy += (p.0 - x) * (p.1 - y);
        xx += (p.0 - x).powi(2);
    }
    // Lengths are by the logarithm to the base 2, times by that to the base 10.
    (points.len() >= 3 && xx > 0.0).then(|| xy / xx / 2f64.log10())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(bench: &str, selector: &str, seq: u64, ms: f64) -> String {
        format!(
            r#"{{"bench":"{bench}","backend":"cuda","gpu":"G","hq":32,"hkv":4,"seq":{seq},"page":64,"preset":"hpc","selector":"{selector}","ms":{ms},"date":"d"}}"#
        )
    }

    #[test]
    fn parts_of_one_selector_are_added_and_the_exponent_fitted() {
        let mut lines = Vec::new();
        for (i, seq) in [8192u64, 16_384, 32_768].into_iter().enumerate() {
            let ms = 0.25 * 4f64.powi(i as i32);
            lines.extend([
                line("select", "probe", seq, ms),
                line("probe_means", "probe", seq, ms),
                line("probe_means", "probe-fine", seq, 9.0),
            ]);
        }
        lines.push(r#"{"bench":"select","backend":"cuda","gpu":"H","hq":32,"hkv":4,"seq":8192,"peer":"P","source":"t","ms":0.5}"#.into());
        let mut records = Records::default();
        records.add(&lines.join("\n")).expect("records");
        let points = sums(&records.standard(), "probe", "probe_means");
        assert_eq!(
            points.iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(),
            [(13.0, 0.5f64.log10()), (14.0, 2f64.log10()), (15.0, 8f64.log10())]
        );
        assert!((exponent(&points).expect("three points") - 2.0).abs() < 1e-9);
        assert_eq!(exponent(&points[..2]), None);
        let svg = times(&records).expect("something to draw").expect("a figure");
        assert!(svg.contains("probe (means + lists): time ~ tokens^2.00") && svg.contains("P (H100, from a table)"));
        assert!(!svg.contains("probe-fine") && !svg.contains("summarize_kv + select"));
    }

    #[test]
    fn one_interval_counts_before_the_sum_of_two() {
        let lines: Vec<_> = [
            ("select", 8192, 2.0),
            ("summarize_kv", 8192, 1.0),
            ("selection", 8192, 2.5),
            ("select", 16_384, 3.0),
            ("summarize_kv", 16_384, 1.0),
        ]
        .map(|(bench, seq, ms)| [line(bench, "stem", seq, ms), line(bench, "probe", seq, ms)])
        .concat();
        let mut records = Records::default();
        records.add(&lines.join("\n")).expect("records");
        assert_eq!(sums(&records.standard(), "stem", "summarize_kv"), [(13.0, 2.5f64.log10()), (14.0, 4f64.log10())]);
        // Its selection also makes V tiles.
        assert!(sums(&records.standard(), "probe", "probe_means").is_empty());
    }
}
