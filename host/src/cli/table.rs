//! Two- and many-column tables for people.

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

/// A table of (what, value) rows.
pub fn facts(rows: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    for (name, value) in rows {
        table.add_row(vec![Cell::new(name), Cell::new(value)]);
    }
    table.to_string()
}

/// A table with a header; every column but the first is right-aligned.
pub fn grid(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header.iter().map(Cell::new));
    for row in rows {
        table.add_row(row.iter().enumerate().map(|(i, text)| {
            let cell = Cell::new(text);
            if i == 0 { cell } else { cell.set_alignment(CellAlignment::Right) }
        }));
    }
    table.to_string()
}

/// Milliseconds with four significant digits.
pub fn milliseconds(ms: f64) -> String {
    let digits = if ms >= 1000.0 {
        0
    } else if ms >= 100.0 {
        1
    } else if ms >= 10.0 {
        2
    } else if ms >= 1.0 {
        3
    } else {
        4
    };
    format!("{ms:.digits$}")
}

/// TFLOP/s: whole numbers from 100 on, else three significant digits or so.
pub fn rate(tflops: f64) -> String {
    let digits = if tflops >= 100.0 {
        0
    } else if tflops >= 1.0 {
        1
    } else {
        4
    };
    format!("{tflops:.digits$}")
}
