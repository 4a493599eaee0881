//! What selection and FP8 lose.

use super::chart::{Figure, Panel, Series, Style, lengths, linear, percent, tokens, whole};
use super::data::{Fidelity, Records};
use anyhow::Result;
use plotters::style::RGBColor;

/// Colours of selectors and captures, in the order in which they appear.
const COLORS: [RGBColor; 8] = [
    RGBColor(90, 90, 90),
    RGBColor(22, 84, 166),
    RGBColor(110, 160, 215),
    RGBColor(204, 121, 32),
    RGBColor(34, 139, 84),
    RGBColor(192, 57, 43),
    RGBColor(120, 94, 160),
    RGBColor(200, 80, 150),
];

/// The newest line of every (capture, head, selector, budget).
fn newest(records: &Records) -> Vec<&Fidelity> {
    let mut out: Vec<&Fidelity> = Vec::new();
    for r in &records.fidelity {
        let key = |r: &Fidelity| (r.capture.clone(), r.head, r.selector.clone(), r.setting.clone(), r.budget.to_bits());
        match out.iter_mut().find(|other| key(other) == key(r)) {
            Some(other) if other.date <= r.date => *other = r,
            Some(_) => {}
            None => out.push(r),
        }
    }
    out
}

/// One panel a capture and head: `value` against the share of blocks kept, one series a selector.
fn panels<'a>(
    ticks: usize,

    found: &[&'a Fidelity],
    value: impl Fn(&'a Fidelity) -> f64,
    low: f64,
    high: f64,
    title: &str,
    label: fn(f64) -> String,
) -> Vec<Panel> {
    let mut names: Vec<String> = Vec::new();
    let mut panels: Vec<Panel> = Vec::new();
    for r in found {
        let name =
            if r.selector == "oracle" { "oracle (true attention mass)".to_owned() } else { format!("{}, {}", r.selector, r.setting) };
        if !names.contains(&name) {
            names.push(name.clone());
        }
        let index = names.iter().position(|n| *n == name).unwrap_or(0);
        let color = COLORS.get(index).copied().unwrap_or(RGBColor(0, 0, 0));
        // Selectors that keep the same hide one another: the one below is wider.
        let style = Style { width: if index == 1 { 5 } else { 2 }, ..Style::line(color) };
        let capture = r.capture.trim_end_matches(".safetensors").trim_start_matches("qkv_");
        let heading = format!("{capture} ({} tokens), head {}", tokens(r.tokens), r.head);
        let at = panels.iter().position(|p| p.title == heading).unwrap_or_else(|| {
            panels.push(Panel {
                title: heading,
                x: linear("share of the causal blocks kept", 0.0, 0.8, 4, percent),
                y: linear(title, low, high, ticks, label),
                series: Vec::new(),
            });
            panels.len() - 1
        });
        let Some(panel) = panels.get_mut(at) else { continue };
        let point = (r.kept, value(r));
        match panel.series.iter_mut().find(|s| s.name == name) {
            Some(series) => series.points.push(point),
            None => panel.series.push(Series { name, style, points: vec![point], labels: Vec::new() }),
        }
    }
    for series in panels.iter_mut().flat_map(|p| &mut p.series) {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    panels
}

const METHOD: &str = "captures of a small model with retrieval heads; the same budget in every row, 4 sink and 4 window blocks in it; ";

/// Attention mass kept, and the error of the output, by budget.
pub fn mass(records: &Records) -> Option<Result<String>> {
    let found = newest(records);
    let low = found.iter().fold(1.0, |low: f64, r| low.min(r.mass));
    let low = (low * 10.0).floor() / 10.0;
    let mut all = panels(5, &found, |r| r.mass, low, 1.0, "attention mass kept", percent);
    all.extend(panels(
        5,
        &found,
        |r| r.error,
        0.0,
        found.iter().fold(0.0, |h: f64, r| h.max(r.error)),
        "relative error of the output",
        |x| format!("{x:.1}"),
    ));
    (!all.is_empty()).then(|| {
        let subtitle = format!("{METHOD}error: output without the other blocks against dense, f64");
        Figure { title: "Selection: mass kept and error by budget".into(), subtitle, columns: 2, panel: (460, 270), panels: all }.draw()
    })
}

/// Sources kept by budget, for captures that ask questions.
pub fn sources(records: &Records) -> Option<Result<String>> {
    let found: Vec<_> = newest(records).into_iter().filter(|r| r.sources > 0).collect();
    let high = found.iter().map(|r| r.sources).max().unwrap_or(0) as f64;
    let panels = panels(6, &found, |r| r.sources_kept as f64, 0.0, high, "questions whose source block is kept", whole);
    (!panels.is_empty()).then(|| {
        let subtitle = format!("{METHOD}{high:.0} questions");
        Figure { title: "Selection: sources kept by budget".into(), subtitle, columns: panels.len().min(2), panel: (460, 320), panels }
            .draw()
    })
}

/// Error of dense attention against f64 on the same FP8 values, by length: captures, and random data.
pub fn error_by_length(records: &Records) -> Option<Result<String>> {
    let mut found: Vec<(String, u64, f64, &str)> = Vec::new();
    let mut add = |name: String, tokens: u64, error: f64, date| match found.iter_mut().find(|f| f.0 == name && f.1 == tokens) {
        Some(other) if other.3 <= date => *other = (name, tokens, error, date),
        Some(_) => {}
        None => found.push((name, tokens, error, date)),
    };
    for r in records.length_errors.iter().filter(|r| r.backend == "cuda") {
        let capture = r.capture.trim_end_matches(".safetensors").trim_start_matches("qkv_");
        add(format!("{capture}, head {}", r.head), r.tokens, r.error, &r.date);
    }
    for r in records.test_errors.iter().filter(|r| r.backend == "cuda") {
        let name = match r.data.as_str() {
            "random" => "N(0, 1), last rows".into(),
            "random, Q / sqrt(128)" => "Q / sqrt(128), last rows".into(),
            "random, whole prompt" => "Q / sqrt(128), all rows".into(),
            data => data.replace(".safetensors", "").replace("qkv_", ""),
        };
        add(name, r.tokens, r.relative_error, &r.date);
    }
    for r in records.standard().into_iter().filter(|r| r.bench == "attend" && r.peer.is_none() && r.preset.as_deref() == Some("dense")) {
        if let Some(error) = r.error {
            add("N(0, 1), rows of all the prompt (bench)".into(), r.seq, error, r.date.as_deref().unwrap_or_default());
        }
    }
    found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let (random, captures): (Vec<_>, Vec<_>) = found.into_iter().partition(|f| f.0.starts_with("N(0, 1)") || f.0.starts_with("Q /"));
    let panels: Vec<_> = [("random data", random), ("captures", captures)]
        .into_iter()
        .filter(|(_, found)| !found.is_empty())
        .map(|(title, found)| {
            let mut series: Vec<Series> = Vec::new();
            for (name, tokens, error, _) in &found {
                let point = ((*tokens as f64).log2(), *error);
                match series.iter_mut().find(|s| s.name == *name) {
                    Some(series) => series.points.push(point),
                    None => {
                        let color = COLORS.get(series.len()).copied().unwrap_or(RGBColor(0, 0, 0));
                        series.push(Series { name: name.clone(), style: Style::line(color), points: vec![point], labels: Vec::new() });
                    }
                }
            }
            let high = found.iter().fold(0.01, |high: f64, f| high.max(f.2));
            let y = linear("relative error", 0.0, high, 5, |y| format!("{y:.3}"));
            Panel { title: title.into(), x: lengths(found.iter().map(|f| f.1)), y, series }
        })
        .collect();
    (!panels.is_empty()).then(|| {
        let subtitle = format!("{}; dense; against f64 attention on the same FP8 values", records.gpu().unwrap_or_default());
        Figure { title: "Attention: error by length".into(), subtitle, columns: 1, panel: (860, 280), panels }.draw()
    })
}
