//! Attention's speed beside the peers'.

use super::chart::{Axis, Figure, Panel, Series, Style, decades, lengths, linear, power_of_ten, tokens, whole};
use super::data::{Records, Speed};
use anyhow::Result;
use plotters::style::RGBColor;

/// Shares skipped, in hundredths, that have a panel.
const SKIPS: [i64; 4] = [0, 50, 75, 90];
/// Bytes a second that an H200 or H100 can read, by its data sheet.
const BANDWIDTH: [(&str, f64); 2] = [("H200", 4.8e12), ("H100", 3.35e12)];

/// Colours and order of the names in a figure.
const NAMES: [(&str, RGBColor); 8] = [
    (OURS, RGBColor(22, 84, 166)),
    ("cuDNN SDPA", RGBColor(204, 121, 32)),
    ("PyTorch flash SDPA", RGBColor(120, 94, 160)),
    ("FlexAttention", RGBColor(34, 139, 84)),
    ("FlashAttention-3 FP8", RGBColor(192, 57, 43)),
    ("HPC-BSA", RGBColor(96, 96, 96)),
    ("FlashPrefill V2 FP8", RGBColor(200, 80, 150)),
    ("FlashInfer", RGBColor(20, 150, 170)),
];

/// Name of this library in figures.
const OURS: &str = "stem-attn";

fn name(r: &Speed) -> String {
    let peer = r.peer.as_deref().unwrap_or(OURS);
    let dtype = r.dtype.as_deref().filter(|d| *d == "bf16").map_or_else(String::new, |d| format!(" ({d})"));
    let from = if r.source.is_some() { " (H100, from a table)" } else { "" };
    format!("{peer}{dtype}{from}")
}

fn style(r: &Speed) -> Style {
    let peer = r.peer.as_deref().unwrap_or(OURS);
    let color = NAMES.iter().find(|(n, _)| *n == peer).map_or(RGBColor(150, 150, 150), |(_, color)| *color);
    Style { width: if r.peer.is_none() { 3 } else { 2 }, dashed: r.source.is_some(), ..Style::line(color) }
}

/// Attention over given blocks: ours first, measured peers, those from a table.
fn attention(records: &Records) -> Vec<&Speed> {
    let mut found: Vec<_> = records.standard().into_iter().filter(|r| r.bench == "attend" && r.lists_given()).collect();
    let rank = |r: &Speed| NAMES.iter().position(|(n, _)| *n == r.peer.as_deref().unwrap_or(OURS)).unwrap_or(NAMES.len());
    found.sort_by_key(|r| (r.source.is_some(), rank(r), name(r), r.seq));
    found
}

/// "NVIDIA H200; 32 query and 4 KV heads, ..."
fn subtitle(records: &Records) -> String {
    let gpu = records.gpu().unwrap_or("no GPU");
    format!("{gpu}; 32 query and 4 KV heads, dimension 128, causal, N(0, 1) data; stem-attn: FP8, KV pages of 64 in random order")
}

/// Points by length of one skip share, one series a name.
fn by_length(found: &[&Speed], skip: i64, value: impl Fn(&Speed) -> Option<f64>) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for r in found.iter().filter(|r| r.skip_percent() == Some(skip)) {
        let Some(y) = value(r) else { continue };
        let (name, point) = (name(r), ((r.seq as f64).log2(), y));
        match series.iter_mut().find(|s| s.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, style: style(r), points: vec![point], labels: Vec::new() }),
        }
    }
    series
}

fn skip_title(skip: i64) -> String {
    if skip == 0 { "dense".into() } else { format!("{skip} % of the blocks skipped") }
}

fn skip_panels(found: &[&Speed], y: &Axis, value: impl Fn(&Speed) -> Option<f64>) -> Vec<Panel> {
    let x = lengths(found.iter().map(|r| r.seq));
    let panel = |&skip: &i64| Panel { title: skip_title(skip), x: x.clone(), y: y.clone(), series: by_length(found, skip, &value) };
    SKIPS.iter().map(panel).filter(|panel| !panel.series.is_empty()).collect()
}

fn largest(found: &[&Speed], value: impl Fn(&Speed) -> Option<f64>) -> f64 {
    found.iter().filter_map(|r| value(r)).fold(0.0, f64::max)
}

/// TFLOP/s of selected pairs by length, a panel for each share skipped.
pub fn rates(records: &Records) -> Option<Result<String>> {
    let found = attention(records);
    let panels = skip_panels(&found, &linear("TFLOP/s of selected pairs", 0.0, largest(&found, |r| r.tflops_selected), 5, whole), |r| {
        r.tflops_selected
    });
    (!panels.is_empty()).then(|| {
        let figure = Figure {
            title: "Attention: rate by length and share of blocks skipped".into(),
            subtitle: subtitle(records),
            columns: 2,
            panel: (470, 300),
            panels,
        };
        figure.draw()
    })
}

/// Milliseconds by length, both logarithmic, a panel for each share skipped.
pub fn latencies(records: &Records) -> Option<Result<String>> {
    let found: Vec<_> = attention(records).into_iter().filter(|r| r.ms.is_some_and(|ms| ms > 0.0)).collect();
    let log = |r: &Speed| r.ms.map(f64::log10);
    let (low, high) = found.iter().filter_map(|r| log(r)).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), y| (l.min(y), h.max(y)));
    let panels = if found.is_empty() { Vec::new() } else { skip_panels(&found, &decades("milliseconds", low, high, power_of_ten), log) };
    (!panels.is_empty()).then(|| {
        let figure = Figure {
            title: "Attention: time by length and share of blocks skipped".into(),
            subtitle: subtitle(records),
            columns: 2,
            panel: (470, 300),
            panels,
        };
        figure.draw()
    })
}

/// time(s) / ((1 - s) time(0)): what skipping costs beyond the blocks that remain.
pub fn cost_of_skipping(records: &Records) -> Option<Result<String>> {
    let found: Vec<_> = attention(records).into_iter().filter(|r| r.peer.is_none()).collect();
    let colors = [RGBColor(160, 190, 225), RGBColor(90, 140, 200), RGBColor(22, 84, 166), RGBColor(10, 40, 90), RGBColor(90, 90, 90)];
    let mut seqs: Vec<u64> = found.iter().map(|r| r.seq).collect();
    seqs.sort_unstable();
    seqs.dedup();
    let series: Vec<Series> = seqs
        .iter()
        .zip(colors)
        .filter_map(|(&seq, color)| {
            let time = |r: &&&Speed| r.ms.zip(r.skip);
            let mut measured: Vec<(f64, f64)> =
                found.iter().filter(|r| r.seq == seq).filter_map(|r| time(&r)).map(|(ms, skip)| (skip, ms)).collect();
            measured.sort_by(|a, b| a.0.total_cmp(&b.0));
            let dense = measured.first().filter(|(skip, _)| *skip == 0.0)?.1;
            let points = measured.iter().map(|(skip, ms)| (*skip, ms / ((1.0 - skip) * dense))).collect::<Vec<_>>();
            (points.len() > 1).then(|| Series {
                name: format!("{} tokens", tokens(seq)),
                style: Style::line(color),
                points,
                labels: Vec::new(),
            })
        })
        .collect();
    let high = series.iter().flat_map(|s| &s.points).fold(1.1, |high: f64, p| high.max(p.1));
    (!series.is_empty()).then(|| {
        let panel = Panel {
            title: "1.0: a skipped block costs nothing".into(),
            x: linear("share of the causal blocks skipped", 0.0, 1.0, 5, |x| format!("{x:.1}")),
            y: linear("time / (share kept x dense time)", 0.8, high, 6, |x| format!("{x:.2}")),
            series,
        };
        Figure::single("Attention: cost of skipping", subtitle(records), (860, 380), panel)
    })
}

/// Rate by arithmetic intensity, under the roofs of the tensor core (an FP8 matrix product, measured) and of the memory.
pub fn roofline(records: &Records) -> Option<Result<String>> {
    let found: Vec<_> = attention(records).into_iter().filter(|r| r.source.is_none()).collect();
    let point = |r: &Speed| {
        let (rate, bytes, ms) = (r.tflops_selected?, r.bytes.filter(|b| *b > 0.0)?, r.ms?);
        Some(((rate * 1e9 * ms / bytes).log10(), rate.log10()))
    };
    let shortest = found.iter().filter(|r| r.peer.is_none()).map(|r| r.seq).min();
    let mut series: Vec<Series> = Vec::new();
    for r in &found {
        let Some(point) = point(r) else { continue };
        let name = name(r);
        let label = match (r.peer.is_none(), r.skip_percent()) {
            (true, Some(0)) => format!("{} dense", tokens(r.seq)),
            // Those of longer prompts would lie upon dense points.
            (true, Some(90)) if Some(r.seq) == shortest => format!("{}, 90 %", tokens(r.seq)),
            _ => String::new(),
        };
        match series.iter_mut().find(|s| s.name == name) {
            Some(series) => {
                series.points.push(point);
                series.labels.push(label);
            }
            None => series.push(Series { name, style: Style { scattered: true, ..style(r) }, points: vec![point], labels: vec![label] }),
        }
    }
    if series.is_empty() {
        return None;
    }
    let gpu = records.gpu().unwrap_or_default();
    let gemm = records
        .standard()
        .into_iter()
        .filter(|r| r.bench == "gemm" && r.source.is_none() && r.dtype.as_deref() != Some("bf16"))
        .filter_map(|r| r.tflops_selected)
        .next_back();
    let (roof, name) = match gemm {
        Some(rate) => (rate, "FP8 matrix product, measured"),
        None => (1979.0, "FP8 tensor core, data sheet"),
    };
    let roof = roof.log10();
    let (low, high) = (1.0, 5.5);
    let mut roofs = Vec::new();
    if let Some((_, bandwidth)) = BANDWIDTH.iter().find(|(name, _)| gpu.contains(name)) {
        let memory = |x: f64| x + (bandwidth / 1e12).log10();
        let ridge = roof - (bandwidth / 1e12).log10();
        let points = vec![(low, memory(low)), (ridge, roof)];
        roofs.push(Series {
            name: "device memory, data sheet".into(),
            style: Style::line(RGBColor(130, 130, 130)),
            points,
            labels: Vec::new(),
        });
    }
    let ridge = roofs.first().and_then(|r| r.points.last()).map_or(low, |p| p.0);
    let points = vec![(ridge, roof), (high, roof)];
    roofs.push(Series { name: name.into(), style: Style::line(RGBColor(60, 60, 60)), points, labels: Vec::new() });
    series.splice(0..0, roofs);
    let panel = Panel {
        title: "both axes logarithmic".into(),
        x: Axis { high, ..decades("FLOP per byte of least traffic (inputs read once, output written once)", low, 5.0, power_of_ten) },
        y: Axis { high: 3.4, ..decades("TFLOP/s of selected pairs", 1.0, 3.0, power_of_ten) },
        series,
    };
    Some(Figure::single("Attention under its roofs", subtitle(records), (900, 440), panel))
}
