//! The share of each stage in a prefill.

use super::chart::tokens;
use super::data::{Records, Speed};
use super::svg::Svg;
use anyhow::Result;

/// Stages from first to last, and their colours.
const STAGES: [(&str, &str); 3] = [("summarize_kv", "#8fb4dd"), ("select", "#cc7920"), ("attend", "#1654a6")];
/// Order of the selectors of one length.
const SELECTORS: [&str; 3] = ["stem", "probe", "probe-fine"];
const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const BAR: f64 = 580.0;
const ROW: f64 = 58.0;
const TOP: f64 = 92.0;

/// A bar a length and selector: summarize_kv, select, and what a prefill takes besides them, which is attention.
pub fn shares(records: &Records) -> Option<Result<String>> {
    let found: Vec<&Speed> = records.standard().into_iter().filter(|r| r.peer.is_none()).collect();
    let time = |bench: &str, whole: &Speed| {
        let selected = |r: &Speed| r.selector() == whole.selector() && (bench != "select" || r.preset == whole.preset);
        found.iter().find(|r| r.bench == bench && r.seq == whole.seq && selected(r)).and_then(|r| r.ms)
    };
    let mut rows: Vec<(&Speed, [f64; 3])> = Vec::new();
    for r in found.iter().copied().filter(|r| r.bench == "prefill" && r.preset.as_deref() == Some("hpc")) {
        let (Some(total), Some(summaries), Some(select)) = (r.ms, time("summarize_kv", r), time("select", r)) else { continue };
        rows.push((r, [summaries, select, (total - summaries - select).max(0.0)]));
    }
    if rows.is_empty() {
        return None;
    }
    let rank = |r: &Speed| SELECTORS.iter().position(|s| *s == r.selector()).unwrap_or(SELECTORS.len());
    rows.sort_by_key(|(r, _)| (r.seq, rank(r)));
    let subtitle = format!(
        "{}; preset hpc, 32 query and 4 KV heads; attend: the whole less the two stages before it, each measured alone",
        records.gpu().unwrap_or_default()
    );
    let mut svg = Svg::new(WIDTH, TOP + rows.len() as f64 * ROW + 16.0, "Share of each stage in a prefill", &subtitle);
    for (i, (name, color)) in STAGES.iter().enumerate() {
        let x = LEFT + 150.0 * i as f64;
        svg.rect(x, 62.0, 12.0, 12.0, color);
        svg.label(x + 18.0, 72.0, 13, "start", name);
    }
    for (i, (r, parts)) in rows.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        let total: f64 = parts.iter().sum();
        svg.label(LEFT - 12.0, y + 20.0, 14, "end", &tokens(r.seq));
        if r.selector() != "stem" {
            svg.label(LEFT - 12.0, y + 36.0, 12, "end", r.selector());
        }
        let mut x = LEFT;
        let mut shares = Vec::new();
        for (part, (_, color)) in parts.iter().zip(STAGES) {
            let width = BAR * part / total.max(f64::MIN_POSITIVE);
            svg.rect(x, y, width, 30.0, color);
            shares.push(format!("{:.1} %", 100.0 * part / total.max(f64::MIN_POSITIVE)));
            x += width;
        }
        let kept = r.skip.map_or_else(String::new, |skip| format!(", {:.0} % of the blocks kept", 100.0 * (1.0 - skip)));
        svg.label(LEFT, y + 46.0, 12, "start", &shares.join(" / "));
        svg.label(LEFT + BAR + 12.0, y + 20.0, 13, "start", &format!("{total:.3} ms{kept}"));
    }
    Some(Ok(svg.finish()))
}
