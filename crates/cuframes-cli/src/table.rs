// SPDX-License-Identifier: LGPL-2.1-or-later
//! A table of text whose columns are as wide as their longest cell.

use crate::sanitize;

/// Alignment of the cells of a column.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A heading and rows of cells. `Display` writes one line for each.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates an empty table from the headings and alignments of its columns.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Appends a row. Cells that are missing at its end stay empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| sanitize(&cell)).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let heading: Vec<String> =
            self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines = || std::iter::once(&heading).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|l| l.get(column)).map(|cell| cell.chars().count()).max()
        };
        for line in lines() {
            let mut text = String::new();
            for (column, (_, align)) in self.columns.iter().enumerate() {
                let cell = line.get(column).map_or("", String::as_str);
                let width = width(column).unwrap_or(0);
                let gap = if column == 0 { "" } else { "  " };
                text += gap;
                text += &match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&[("KEY", Align::Left), ("FPS", Align::Right)]);
        table.row(["camera".to_owned(), "30.0".into()]);
        table.row(["a\u{1b}[2J".to_owned()]);
        assert_eq!(table.to_string(), "KEY      FPS\ncamera  30.0\na?[2J\n");
    }
}
