//! SVG picture of the kept blocks: one panel per query head, one path element per panel.

use super::work::Shape;
use crate::mask::BlockLists;
use std::fmt::Write;

/// Side of a panel in pixels: readable labels and, up to 512 blocks, cells of half a pixel or more.
const PANEL: f64 = 256.0;
/// Room of a panel for its title and axes.
const MARGIN: f64 = 52.0;
/// Panels beside each other.
const COLUMNS: usize = 4;

/// The picture as SVG text.
pub fn draw(g: &Shape, lists: &BlockLists, title: &str) -> String {
    let (qb, kb) = (g.qb(), g.kb());
    let columns = g.hq.clamp(1, COLUMNS);
    let rows = g.hq.div_ceil(columns).max(1);
    // The title of a single panel needs more room than the panel.
    let (width, height) = ((columns as f64 * (PANEL + MARGIN) + 24.0).max(520.0), rows as f64 * (PANEL + MARGIN + 28.0) + 64.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\">{}</text>\n\
         <rect x=\"16\" y=\"34\" width=\"10\" height=\"10\" fill=\"{KEPT}\"/><text x=\"30\" y=\"43\">attended</text>\
         <rect x=\"96\" y=\"34\" width=\"10\" height=\"10\" fill=\"{SKIPPED}\"/><text x=\"110\" y=\"43\">visible, skipped</text>\n",
        escape(title)
    );
    for head in 0..g.hq {
        let x = (head % columns) as f64 * (PANEL + MARGIN) + MARGIN;
        let y = (head / columns) as f64 * (PANEL + MARGIN + 28.0) + 84.0;
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, g, lists, head, qb, kb);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

const KEPT: &str = "#1f5fa8";
const SKIPPED: &str = "#e3e7ee";

fn panel(svg: &mut String, g: &Shape, lists: &BlockLists, head: usize, qb: usize, kb: usize) {
    let kept: usize = (0..qb).map(|row| lists.row(head, row).len()).sum();
    let share = 100.0 * kept as f64 / g.causal_blocks().max(1) as f64;
    let (sx, sy) = (PANEL / kb.max(1) as f64, PANEL / qb.max(1) as f64);
    let _ = writeln!(svg, "<text x=\"0\" y=\"-8\">head {head}: {share:.1} % of {} causal blocks</text>", g.causal_blocks());
    // Cells are drawn in units of blocks and scaled, so coordinates are short integers.
    let _ = write!(svg, "<g transform=\"scale({sx:.6} {sy:.6})\" shape-rendering=\"crispEdges\"><path fill=\"{SKIPPED}\" d=\"");
    for row in 0..qb {
        let _ = write!(svg, "M0 {row}h{}v1H0z", g.first_block() + row + 1);
    }
    let _ = write!(svg, "\"/><path fill=\"{KEPT}\" d=\"");
    for row in 0..qb {
        for (start, length) in runs(lists.row(head, row)) {
            let _ = write!(svg, "M{start} {row}h{length}v1h-{length}z");
        }
    }
    svg.push_str("\"/></g>\n");
    let _ = writeln!(svg, "<rect width=\"{PANEL}\" height=\"{PANEL}\" fill=\"none\" stroke=\"#888\"/>");
    for (tick, label) in ticks(kb) {
        let x = tick as f64 * sx;
        let _ = write!(
            svg,
            "<path stroke=\"#888\" d=\"M{x:.1} {PANEL}v4\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            PANEL + 16.0
        );
    }
    for (tick, label) in ticks(qb) {
        let y = tick as f64 * sy;
        let _ = write!(
            svg,
            "<path stroke=\"#888\" d=\"M-4 {y:.1}h4\"/><text x=\"-7\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            y + 4.0,
            label + g.first_block()
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">key block</text>\
         <text transform=\"translate(-36 {}) rotate(-90)\" text-anchor=\"middle\">query block</text>",
        PANEL / 2.0,
        PANEL + 30.0,
        PANEL / 2.0
    );
}

/// (position, label) of at most five ticks at round numbers.
fn ticks(blocks: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut step = 1;
    while blocks / step > 4 {
        step *= 2;
    }
    (0..=blocks).step_by(step).map(|t| (t, t))
}

/// (start, length) of the runs of consecutive indices.
fn runs(list: &[i32]) -> Vec<(i32, i32)> {
    let mut out: Vec<(i32, i32)> = Vec::new();
    for &block in list {
        match out.last_mut() {
            Some((start, length)) if *start + *length == block => *length += 1,
            _ => out.push((block, 1)),
        }
    }
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge() {
        assert_eq!(runs(&[0, 1, 2, 5, 7, 8]), [(0, 3), (5, 1), (7, 2)]);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn picture_names_heads_axes_and_share() {
        let g = Shape { tokens: 256, kv_tokens: 256, hq: 2, hkv: 1 };
        let lists = BlockLists { hq: 2, total_qb: 2, stride: 2, counts: vec![1, 1, 1, 2], lists: vec![0, 0, 1, 0, 0, 0, 0, 1] };
        let svg = draw(&g, &lists, "a < b");
        for part in ["a &lt; b", "head 0: 66.7 %", "head 1: 100.0 %", "key block", "query block", "M1 1h1v1h-1z", "M0 1h2v1h-2z"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("<g").count(), svg.matches("</g>").count());
    }

    #[test]
    fn no_query_is_an_empty_picture() {
        let g = Shape { tokens: 0, kv_tokens: 0, hq: 1, hkv: 1 };
        assert!(draw(&g, &BlockLists { hq: 1, stride: 1, ..Default::default() }, "").contains("</svg>"));
    }
}
