//! Figures of line panels with one legend, as SVG text.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;

/// Text.
pub const INK: RGBColor = RGBColor(34, 34, 34);
/// Text of lesser weight.
pub const FAINT: RGBColor = RGBColor(105, 105, 105);
const GRID: RGBColor = RGBColor(228, 228, 228);
const FONT: &str = "sans-serif";

/// Height of the figure's title and subtitle.
const HEAD: i32 = 58;
/// Height of a row of the legend.
const LEGEND_ROW: i32 = 22;
/// Width of an entry of the legend, besides its text.
const LEGEND_GAP: i32 = 54;
/// Width of a letter of the legend, on average.
const LETTER: f64 = 7.0;

/// Something whose display is all there is to say, as plotters' errors are.
fn failed(e: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("drawing: {e}")
}

/// One axis. Values are drawn where they are; a logarithmic axis holds logarithms, and its labels say so.
#[derive(Clone)]
pub struct Axis {
    pub title: String,
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<f64>,
    pub label: fn(f64) -> String,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        (self.label)(*value)
    }
}

/// What plotters asks of an axis that it is to draw on.
impl From<Axis> for Range<f64> {
    fn from(axis: Axis) -> Self {
        axis.low..axis.high
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    pub color: RGBColor,
    pub width: u32,
    /// Figures that are not from a run of ours.
    pub dashed: bool,
    /// Points alone.
    pub scattered: bool,
}

impl Style {
    /// A line.
    pub const fn line(color: RGBColor) -> Self {
        Self { color, width: 2, dashed: false, scattered: false }
    }
}

/// Points of one name.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    pub style: Style,
    pub points: Vec<(f64, f64)>,
    /// Written beside each point.
    pub labels: Vec<String>,
}

/// One coordinate system.
pub struct Panel {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// A figure of panels beside and below each other.
pub struct Figure {
    pub title: String,
    pub subtitle: String,
    pub columns: usize,
    /// Width and height of a panel.
    pub panel: (u32, u32),
    pub panels: Vec<Panel>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

impl Figure {
    /// A figure of one panel of `size`, drawn.
    ///
    /// # Errors
    /// As [`Figure::draw`].
    pub fn single(title: &str, subtitle: String, size: (u32, u32), panel: Panel) -> Result<String> {
        Self { title: title.into(), subtitle, columns: 1, panel: size, panels: vec![panel] }.draw()
    }

    /// The figure as SVG text.
    ///
    /// # Errors
    /// None that the figure could cause; plotters has some for other backends.
    pub fn draw(&self) -> Result<String> {
        let rows = self.panels.len().div_ceil(self.columns.max(1)) as u32;
        let width = self.panel.0 * self.columns as u32;
        let legend = self.legend(width as i32);
        let legend_rows = legend.iter().map(|(_, _, row)| row + 1).max().unwrap_or(0);
        let foot = legend_rows * LEGEND_ROW + 14;
        let height = self.panel.1 * rows + HEAD as u32 + foot as u32;
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
            root.fill(&WHITE).map_err(failed)?;
            head(&root, &self.title, &self.subtitle)?;
            let (_, below) = root.split_vertically(HEAD);
            let (body, foot) = below.split_vertically((self.panel.1 * rows) as i32);
            for (panel, area) in self.panels.iter().zip(body.split_evenly((rows as usize, self.columns))) {
                panel.draw(&area)?;
            }
            for (series, x, row) in legend {
                entry(&foot, series, x, row * LEGEND_ROW + 10)?;
            }
            root.present().map_err(failed)?;
        }
        Ok(svg)
    }

    /// Every name once, with its place: pixels from the left, row.
    fn legend(&self, width: i32) -> Vec<(&Series, i32, i32)> {
        let mut places: Vec<(&Series, i32, i32)> = Vec::new();
        let (mut x, mut row) = (20, 0);
        for series in self.panels.iter().flat_map(|panel| &panel.series).filter(|s| !s.name.is_empty()) {
            if places.iter().any(|(other, ..)| other.name == series.name) {
                continue;
            }
            let needed = (series.name.chars().count() as f64 * LETTER) as i32 + LEGEND_GAP;
            if x + needed > width && x > 20 {
                (x, row) = (20, row + 1);
            }
            places.push((series, x, row));
            x += needed;
        }
        places
    }
}

/// Title and subtitle of a figure.
fn head(root: &Area<'_>, title: &str, subtitle: &str) -> Result<()> {
    root.draw(&Text::new(title.to_owned(), (20, 12), (FONT, 19).into_font().color(&INK))).map_err(failed)?;
    root.draw(&Text::new(subtitle.to_owned(), (20, 36), (FONT, 12).into_font().color(&FAINT))).map_err(failed)
}

/// One entry of the legend.
fn entry(area: &Area<'_>, series: &Series, x: i32, y: i32) -> Result<()> {
    let style = &series.style;
    if !style.scattered {
        stroke(area, vec![(x, y), (x + 26, y)], style)?;
    }
    if !style.dashed {
        area.draw(&Circle::new((x + 13, y), style.width as i32 + 2, style.color.filled())).map_err(failed)?;
    }
    let text = (FONT, 13).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(series.name.clone(), (x + 32, y), text)).map_err(failed)
}

fn stroke(area: &Area<'_>, points: Vec<(i32, i32)>, style: &Style) -> Result<()> {
    let line = style.color.stroke_width(style.width);
    if style.dashed {
        area.draw(&DashedPathElement::new(points, 6, 4, line)).map_err(failed)
    } else {
        area.draw(&PathElement::new(points, line)).map_err(failed)
    }
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Result<()> {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_right(26)
            .caption(&self.title, (FONT, 15).into_font().color(&INK))
            .x_label_area_size(42)
            .y_label_area_size(58)
            .build_cartesian_2d(self.x.clone(), self.y.clone())
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(FAINT)
            .x_desc(&self.x.title)
            .y_desc(&self.y.title)
            .axis_desc_style((FONT, 13).into_font().color(&INK))
            .label_style((FONT, 12).into_font().color(&INK))
            .draw()
            .map_err(failed)?;
        let plane = chart.plotting_area();
        for series in &self.series {
            let (style, points) = (&series.style, &series.points);
            if !style.scattered && points.len() > 1 {
                let line = style.color.stroke_width(style.width);
                if style.dashed {
                    plane.draw(&DashedPathElement::new(points.clone(), 6, 4, line)).map_err(failed)?;
                } else {
                    plane.draw(&PathElement::new(points.clone(), line)).map_err(failed)?;
                }
            }
            // A dashed line's only point would not show.
            if !style.dashed || points.len() == 1 {
                for &point in points {
                    plane.draw(&Circle::new(point, style.width as i32 + 2, style.color.filled())).map_err(failed)?;
                }
            }
            let text = (FONT, 11).into_font().color(&style.color).pos(Pos::new(HPos::Left, VPos::Bottom));
            for (&point, label) in points.iter().zip(&series.labels) {
                plane.draw(&(EmptyElement::at(point) + Text::new(label.clone(), (6, -4), text.clone()))).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// A linear axis that holds `low` to `high` and begins and ends at a tick, of which it has about `count`.
pub fn linear(title: impl Into<String>, low: f64, high: f64, count: usize, label: fn(f64) -> String) -> Axis {
    let raw = (high - low).max(1e-9) / count.max(1) as f64;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * magnitude).into_iter().find(|step| *step >= raw * 0.999).unwrap_or(raw);
    let low = (low / step + 1e-6).floor() * step;
    let steps = ((high - low) / step - 1e-6).ceil() as usize;
    let ticks: Vec<f64> = (0..=steps).map(|i| low + step * i as f64).collect();
    Axis { title: title.into(), low, high: low + step * steps as f64, ticks, label }
}

/// An axis of lengths in tokens, by their logarithm to the base 2.
pub fn lengths(lengths: impl Iterator<Item = u64>) -> Axis {
    let mut ticks: Vec<f64> = lengths.map(|n| (n.max(1) as f64).log2()).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let (low, high) = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
    Axis { title: "tokens".into(), low: low - 0.3, high: high + 0.3, ticks, label: |x| tokens(x.exp2().round() as u64) }
}

/// An axis of powers of ten that holds `low` to `high`, values given by their logarithm to the base 10.
pub fn decades(title: impl Into<String>, low: f64, high: f64, label: fn(f64) -> String) -> Axis {
    let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
    let ticks = (low as i64..=high as i64).map(|t| t as f64).collect();
    Axis { title: title.into(), low, high, ticks, label }
}

/// "32 K" for 32,768.
pub fn tokens(n: u64) -> String {
    match n {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{} M", n >> 20),
        n if n >= 1024 && n.is_multiple_of(1024) => format!("{} K", n >> 10),
        n => n.to_string(),
    }
}

/// A number without digits behind the point.
pub fn whole(x: f64) -> String {
    format!("{x:.0}")
}

/// A share as per cent.
pub fn percent(x: f64) -> String {
    format!("{:.0} %", 100.0 * x)
}

/// Ten to the power of a tick, written out.
pub fn power_of_ten(x: f64) -> String {
    let digits = if x < 0.0 { (-x).round() as usize } else { 0 };
    format!("{:.digits$}", 10f64.powf(x.round()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let axis = linear("", 0.0, 871.0, 5, whole);
        assert_eq!((axis.ticks.clone(), axis.high), (vec![0.0, 200.0, 400.0, 600.0, 800.0, 1000.0], 1000.0));
        assert_eq!(linear("", 0.8, 2.1, 6, whole).ticks[..3], [0.75, 1.0, 1.25]);
        let axis = lengths([8192, 131_072, 32_768, 8192].into_iter());
        assert_eq!(axis.ticks.iter().map(|&t| (axis.label)(t)).collect::<Vec<_>>(), ["8 K", "32 K", "128 K"]);
        let axis = decades("", -1.2, 2.1, power_of_ten);
        assert_eq!(axis.ticks.iter().map(|&t| (axis.label)(t)).collect::<Vec<_>>(), ["0.01", "0.1", "1", "10", "100", "1000"]);
    }

    #[test]
    fn a_figure_names_everything_once() {
        let panel = |title: &str| Panel {
            title: title.into(),
            x: lengths([1024, 2048].into_iter()),
            y: linear("y", 0.0, 3.0, 3, whole),
            series: vec![Series {
                name: "a < b".into(),
                style: Style::line(BLUE),
                points: vec![(10.0, 1.0), (11.0, 2.0)],
                labels: vec!["first".into()],
            }],
        };
        let figure = Figure {
            title: "T".into(),
            subtitle: "S".into(),
            columns: 2,
            panel: (300, 200),
            panels: vec![panel("left panel"), panel("right panel")],
        };
        let svg = figure.draw().expect("a figure");
        for (text, times) in [("a &lt; b", 1), ("left panel", 1), ("right panel", 1), ("first", 2), ("tokens", 2)] {
            assert_eq!(svg.matches(text).count(), times, "{text}");
        }
        assert_eq!(svg, figure.draw().expect("a figure"), "drawn twice, equal");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
