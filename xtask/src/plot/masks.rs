//! Kept blocks of every head and selector.

use super::chart::tokens;
use super::data::{Mask, Records};
use super::svg::Svg;

/// Side of a panel in pixels.
const PANEL: f64 = 256.0;
/// Room of a panel for titles and axes.
const MARGIN: f64 = 46.0;
const TOP: f64 = 84.0;
const KEPT: &str = "#1f5fa8";
const SKIPPED: &str = "#e3e7ee";

/// One row of panels a head, one column a selector, of the longest capture.
pub fn kept_blocks(records: &Records) -> Option<String> {
    let longest = records.masks.iter().max_by_key(|m| m.tokens)?;
    let mut found: Vec<&Mask> = Vec::new();
    for mask in records.masks.iter().filter(|m| m.capture == longest.capture) {
        let key = |m: &Mask| (m.head, m.selector.clone(), m.setting.clone());
        match found.iter_mut().find(|other| key(other) == key(mask)) {
            Some(other) if other.date <= mask.date => *other = mask,
            Some(_) => {}
            None => found.push(mask),
        }
    }
    let mut selectors: Vec<(&str, &str)> = Vec::new();
    let mut heads: Vec<u64> = Vec::new();
    for mask in &found {
        let selector = (mask.selector.as_str(), mask.setting.as_str());
        if !selectors.contains(&selector) {
            selectors.push(selector);
        }
        if !heads.contains(&mask.head) {
            heads.push(mask.head);
        }
    }
    let (width, height) = (selectors.len() as f64 * (PANEL + MARGIN) + 24.0, heads.len() as f64 * (PANEL + MARGIN + 12.0) + TOP);
    let capture = longest.capture.trim_end_matches(".safetensors").trim_start_matches("qkv_");
    let title = format!("Key blocks kept at a budget of {:.0} %", 100.0 * longest.budget);
    let subtitle = format!("{capture}, {} tokens, blocks of 128; the same number in every row", tokens(longest.tokens));
    let mut svg = Svg::new(width.max(760.0), height, &title, &subtitle);
    svg.rect(width.max(760.0) - 210.0, 18.0, 10.0, 10.0, KEPT);
    svg.label(width.max(760.0) - 196.0, 27.0, 12, "start", "kept");
    svg.rect(width.max(760.0) - 150.0, 18.0, 10.0, 10.0, SKIPPED);
    svg.label(width.max(760.0) - 136.0, 27.0, 12, "start", "visible, left out");
    for mask in found {
        let column = selectors.iter().position(|s| *s == (mask.selector.as_str(), mask.setting.as_str())).unwrap_or(0);
        let row = heads.iter().position(|h| *h == mask.head).unwrap_or(0);
        let (x, y) = (column as f64 * (PANEL + MARGIN) + MARGIN, row as f64 * (PANEL + MARGIN + 12.0) + TOP);
        let name = if mask.selector == "oracle" { "oracle".to_owned() } else { format!("{}, {}", mask.selector, mask.setting) };
        svg.label(x, y - 8.0, 13, "start", &format!("{name}: head {}", mask.head));
        panel(&mut svg, mask, x, y);
    }
    Some(svg.finish())
}

fn panel(svg: &mut Svg, mask: &Mask, x: f64, y: f64) {
    let blocks = mask.rows.len().max(1);
    let scale = PANEL / blocks as f64;
    svg.cells(x, y, scale, SKIPPED, (0..mask.rows.len()).map(|row| (row, 0, row as u64 + 1)));
    svg.cells(
        x,
        y,
        scale,
        KEPT,
        mask.rows.iter().enumerate().flat_map(|(row, list)| runs(list).map(move |(first, count)| (row, first, count))),
    );
    svg.frame(x, y, PANEL, PANEL);
    for tick in (0..=blocks).step_by((blocks / 4).max(1)) {
        let at = tick as f64 * scale;
        svg.label(x + at, y + PANEL + 14.0, 11, "middle", &tick.to_string());
        svg.label(x - 6.0, y + at + 4.0, 11, "end", &tick.to_string());
    }
    svg.label(x + PANEL / 2.0, y + PANEL + 28.0, 11, "middle", "key block");
}

/// (first, count) of the runs of "0-3 7 9-12"; what is no number is left out.
fn runs(list: &str) -> impl Iterator<Item = (u64, u64)> {
    list.split_whitespace().filter_map(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        Some((first, last.checked_sub(first)? + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read() {
        assert_eq!(runs("0-3 7 9-12 x 5-2").collect::<Vec<_>>(), [(0, 4), (7, 1), (9, 4)]);
    }

    #[test]
    fn panels_of_heads_and_selectors() {
        let mask = |head, setting: &str| Mask {
            capture: "qkv_a.safetensors".into(),
            tokens: 256,
            head,
            selector: "stem".into(),
            setting: setting.into(),
            budget: 0.5,
            rows: vec!["0".into(), "0-1".into()],
            date: "d".into(),
        };
        let records = Records { masks: vec![mask(0, "hpc"), mask(1, "hpc"), mask(0, "paper")], ..Records::default() };
        let svg = kept_blocks(&records).expect("a picture");
        for text in ["stem, hpc: head 0", "stem, hpc: head 1", "stem, paper: head 0", "M0 1h2v1h-2z"] {
            assert!(svg.contains(text), "{text}");
        }
        assert!(kept_blocks(&Records::default()).is_none());
    }
}
