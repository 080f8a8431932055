// SPDX-License-Identifier: LGPL-2.1-or-later
//! A frame number that is drawn into the picture, so that a test can identify each decoded frame.
//!
//! The number and a checksum are 40 black or white blocks, in two rows of twenty, half as wide
//! as the picture. Blocks are at least 8×8 pixels from 320×240 on, the size of an H.264
//! transform, which keeps them readable at the lowest bit rates. Their corners are fractions of
//! the picture's size, so a scaled picture reads like the original.
//!
//! The stamp is in the top left corner and again in the bottom left one: a picture whose
//! stamps are both readable but differ was put together from two frames.
//!
//! Works on the luma plane of any 8-bit YUV format, and on GRAY8.

use std::ops::Range;

const COLUMNS: usize = 20;
const ROWS: usize = 2;
/// A block is this fraction of the picture's width, and of its height.
const ACROSS: usize = 40;
const DOWN: usize = 30;

/// Black and white of limited-range video.
const BLACK: u8 = 16;
const WHITE: u8 = 235;
/// Means of blocks that are neither: there is no stamp, or it was damaged.
const UNCLEAR: Range<u32> = 90..160;

/// Draws `number` into both corners. Leaves pictures below 40×30 pixels unchanged.
pub fn write(luma: &mut [u8], stride: usize, width: usize, height: usize, number: u32) {
    if !fits(luma, stride, width, height) {
        return;
    }
    let word = encode(number);
    for first_row in first_rows() {
        for (bit, (x, y)) in blocks(first_row, width, height).enumerate() {
            let level = if word >> bit & 1 == 1 { WHITE } else { BLACK };
            for row in y {
                luma[row * stride..][x.clone()].fill(level);
            }
        }
    }
}

/// Returns the number, if both stamps are readable and agree.
pub fn read(luma: &[u8], stride: usize, width: usize, height: usize) -> Option<u32> {
    match read_both(luma, stride, width, height) {
        (Some(top), Some(bottom)) if top == bottom => Some(top),
        _ => None,
    }
}

/// Returns the numbers at the top and at the bottom. Two that differ show a torn picture, `None` an
/// unreadable one.
pub fn read_both(
    luma: &[u8],
    stride: usize,
    width: usize,
    height: usize,
) -> (Option<u32>, Option<u32>) {
    if !fits(luma, stride, width, height) {
        return (None, None);
    }
    let [top, bottom] = first_rows().map(|first_row| {
        let mut word = 0;
        for (bit, (x, y)) in blocks(first_row, width, height).enumerate() {
            let mean = mean(luma, stride, middle(x), middle(y));
            if UNCLEAR.contains(&mean) {
                return None;
            }
            word |= u64::from(mean >= UNCLEAR.end) << bit;
        }
        decode(word)
    });
    (top, bottom)
}

/// Returns the lines that the stamps occupy, and the number of pixels of each line, for a caller that
/// removes the colour there.
pub fn areas(width: usize, height: usize) -> [(Range<usize>, usize); 2] {
    first_rows().map(|first| {
        let lines = first * height / DOWN..(first + ROWS) * height / DOWN;
        (lines, COLUMNS * width / ACROSS)
    })
}

fn first_rows() -> [usize; 2] {
    [0, DOWN - ROWS]
}

/// Returns the pixels of each block of a stamp, least significant bit first.
fn blocks(
    first_row: usize,
    width: usize,
    height: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    (first_row..first_row + ROWS).flat_map(move |row| {
        (0..COLUMNS).map(move |column| {
            (
                column * width / ACROSS..(column + 1) * width / ACROSS,
                row * height / DOWN..(row + 1) * height / DOWN,
            )
        })
    })
}

/// Returns the middle half of a block, away from edges that coding and scaling blur.
fn middle(range: Range<usize>) -> Range<usize> {
    let margin = range.len() / 4;
    range.start + margin..range.end - margin
}

fn mean(luma: &[u8], stride: usize, x: Range<usize>, y: Range<usize>) -> u32 {
    let pixels = (x.len() * y.len()) as u32;
    let sum: u32 =
        y.flat_map(|row| &luma[row * stride..][x.clone()]).map(|&pixel| u32::from(pixel)).sum();
    sum / pixels
}

fn fits(luma: &[u8], stride: usize, width: usize, height: usize) -> bool {
    width >= ACROSS
        && height >= DOWN
        && stride >= width
        && luma.len() >= stride * (height - 1) + width
}

fn encode(number: u32) -> u64 {
    u64::from(crc8(number)) << 32 | u64::from(number)
}

fn decode(word: u64) -> Option<u32> {
    let number = word as u32;
    (encode(number) == word).then_some(number)
}

/// CRC-8 (polynomial 0x07) from a start value at which neither an all-black nor an all-white
/// area is a valid stamp.
fn crc8(number: u32) -> u8 {
    number.to_be_bytes().iter().fold(0xa5, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| {
            let shifted = crc << 1;
            if crc & 0x80 != 0 { shifted ^ 0x07 } else { shifted }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: [u32; 6] = [0, 1, 299, 0x5555_5555, 0x8000_0001, u32::MAX];

    #[test]
    fn reads_what_was_written() {
        for (width, height) in [(40, 30), (320, 240), (641, 359), (1920, 1080)] {
            let stride = width + 13;
            for number in NUMBERS {
                let mut luma = vec![77; stride * height];
                write(&mut luma, stride, width, height, number);
                assert_eq!(read(&luma, stride, width, height), Some(number));
            }
        }
    }

    #[test]
    fn survives_scaling_and_noise() {
        let (width, height) = (1280, 720);
        for number in NUMBERS {
            let mut luma = vec![128; width * height];
            write(&mut luma, width, width, height, number);
            for (w, h) in [(640, 360), (427, 240), (160, 120), (1920, 1080)] {
                let scaled: Vec<u8> = (0..w * h)
                    .map(|i| luma[(i / w * height / h) * width + i % w * width / w])
                    .enumerate()
                    .map(|(i, pixel)| pixel.saturating_add_signed((i * 37 % 101) as i8 - 50))
                    .collect();
                assert_eq!(read(&scaled, w, w, h), Some(number), "{w}x{h}");
            }
        }
    }

    #[test]
    fn distinguishes_torn_from_unreadable() {
        let (width, height) = (320, 240);
        let mut luma = vec![0; width * height];
        write(&mut luma, width, width, height, 7);
        let mut next = luma.clone();
        write(&mut next, width, width, height, 8);
        let half = width * height / 2;
        luma[half..].copy_from_slice(&next[half..]);
        assert_eq!(read_both(&luma, width, width, height), (Some(7), Some(8)));
        assert_eq!(read(&luma, width, width, height), None);

        luma[..8 * width].fill(WHITE);
        assert_eq!(read_both(&luma, width, width, height), (None, Some(8)));
    }

    #[test]
    fn plain_picture_has_no_stamp() {
        for level in [0, BLACK, 128, WHITE, 255] {
            let luma = vec![level; 320 * 240];
            assert_eq!(read_both(&luma, 320, 320, 240), (None, None));
        }
        assert_eq!(read_both(&[0; 100], 320, 320, 240), (None, None));
    }
}
