// SPDX-License-Identifier: LGPL-2.1-or-later
//! Draws digits into a frame, as a seven-segment display shows them.
//!
//! GStreamer's own overlays cost more, and need Pango, which a headless installation often lacks.

use std::ops::Range;

/// Segments of each digit, one bit each: a (top) to g (middle), as data sheets name them.
const DIGITS: [u8; 10] = [
    0b011_1111, 0b000_0110, 0b101_1011, 0b100_1111, 0b110_0110, 0b110_1101, 0b111_1101, 0b000_0111,
    0b111_1111, 0b110_1111,
];

/// Columns and rows of each segment, in a cell 6 units wide and 9 high.
const SEGMENTS: [(Range<usize>, Range<usize>); 7] = [
    (1..4, 0..1),
    (4..5, 1..4),
    (4..5, 5..8),
    (1..4, 8..9),
    (0..1, 5..8),
    (0..1, 1..4),
    (1..4, 4..5),
];

const CELL_WIDTH: usize = 6;
const CELL_HEIGHT: usize = 9;

/// Returns the size in pixels of `text` with units of `unit` pixels, including its margin.
pub(crate) fn size(text: &str, unit: usize) -> (usize, usize) {
    ((text.len() * CELL_WIDTH + 1) * unit, (CELL_HEIGHT + 2) * unit)
}

/// Draws white on black, with `x`, `y` as the upper left corner. Characters other than digits and colons are
/// spaces. Parts that do not fit are clipped.
pub(crate) fn draw(
    luma: &mut [u8],
    stride: usize,
    (x, y): (usize, usize),
    unit: usize,
    text: &str,
) {
    let mut fill = |columns: Range<usize>, rows: Range<usize>, level: u8| {
        for row in rows {
            let start = row * stride;
            if let Some(line) = luma.get_mut(start + columns.start..start + columns.end) {
                line.fill(level);
            }
        }
    };
    let (width, height) = size(text, unit);
    if x + width > stride {
        return;
    }
    fill(x..x + width, y..y + height, 16);
    for (index, character) in text.bytes().enumerate() {
        let (left, top) = (x + (index * CELL_WIDTH + 1) * unit, y + unit);
        let mut unit_box = |columns: &Range<usize>, rows: &Range<usize>| {
            fill(
                left + columns.start * unit..left + columns.end * unit,
                top + rows.start * unit..top + rows.end * unit,
                235,
            );
        };
        match character {
            b'0'..=b'9' => {
                let lit = DIGITS[usize::from(character - b'0')];
                for (bit, (columns, rows)) in SEGMENTS.iter().enumerate() {
                    if lit >> bit & 1 == 1 {
                        unit_box(columns, rows);
                    }
                }
            }
            b':' => {
                unit_box(&(2..3), &(2..3));
                unit_box(&(2..3), &(6..7));
            }
            _ => {}
        }
    }
}
