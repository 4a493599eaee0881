//! SVG by hand, for pictures of many cells, of which a charting library would make as many elements.

use std::fmt::Write;

/// A picture under construction.
pub struct Svg {
    text: String,
}

impl Svg {
    /// An empty picture with a title and a line below it.
    pub fn new(width: f64, height: f64, title: &str, subtitle: &str) -> Self {
        let mut svg = Self {
            text: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
                 font-family=\"sans-serif\" fill=\"#222\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
            ),
        };
        svg.label(20.0, 28.0, 19, "start", title);
        svg.text += &format!("<text x=\"20\" y=\"46\" font-size=\"12\" fill=\"#696969\">{}</text>\n", escape(subtitle));
        svg
    }

    /// Text, its anchor `start`, `middle` or `end`.
    pub fn label(&mut self, x: f64, y: f64, size: u32, anchor: &str, text: &str) {
        let _ =
            writeln!(self.text, "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{}</text>", escape(text));
    }

    /// A filled rectangle.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        let _ = writeln!(self.text, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\"/>");
    }

    /// The outline of a rectangle.
    pub fn frame(&mut self, x: f64, y: f64, width: f64, height: f64) {
        let _ = writeln!(
            self.text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" stroke=\"#888\"/>"
        );
    }

    /// Runs of cells (row, first column, columns) in units of a cell, which is `scale` pixels wide and high.
    pub fn cells(&mut self, x: f64, y: f64, scale: f64, fill: &str, runs: impl Iterator<Item = (usize, u64, u64)>) {
        let _ = write!(
            self.text,
            "<g transform=\"translate({x:.1} {y:.1}) scale({scale:.4})\" shape-rendering=\"crispEdges\"><path fill=\"{fill}\" d=\""
        );
        for (row, first, count) in runs {
            let _ = write!(self.text, "M{first} {row}h{count}v1h-{count}z");
        }
        self.text += "\"/></g>\n";
    }

    /// The whole.
    pub fn finish(self) -> String {
        self.text + "</svg>\n"
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
