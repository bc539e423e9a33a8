//! A guest's frames as squares, and what their colours mean.

use std::io::Write;
use std::ops::Range;

use xenmap::FRAME_SIZE;

use crate::Result;
use crate::number::{count, size};

const FRAME: u64 = FRAME_SIZE as u64;

/// Pixels of a row.
pub(crate) const WIDTH: u64 = 512;
/// The sides of squares in pixels, largest first. The first that keeps the picture below `GOOD_HEIGHT` is used.
const SQUARES: [u64; 3] = [8, 4, 2];
const GOOD_HEIGHT: u64 = 1024;
/// A picture that would be higher than this has more than one frame to the pixel.
const GREATEST_HEIGHT: u64 = 4096;
/// Pixels between blocks.
const GAP: u64 = 5;
/// Pixels between the labels of a large block, a multiple of all squares.
const LABEL_DISTANCE: u64 = 64;
/// The height of a label in pixels.
const LABEL_HEIGHT: u64 = 10;
/// Blocks that the legend on standard output lists.
const LISTED: usize = 12;

/// A kind of frame, in ascending order of importance: a pixel of several frames shows the last of their kinds.
#[derive(Clone, Copy)]
pub(crate) enum Shade {
    Zero = 1,
    Data,
    PageTable,
    Special,
    BalloonedOut,
    PagedOut,
    Broken,
    Unreadable,
    Changed,
}

/// A colour by its name and its red, green and blue, and what it means.
pub(crate) struct Colour {
    name: &'static str,
    pub(crate) rgb: [u8; 3],
    pub(crate) meaning: &'static str,
}

const fn colour(name: &'static str, rgb: [u8; 3], meaning: &'static str) -> Colour {
    Colour { name, rgb, meaning }
}

/// The colours by shade; the first one is that of no shade.
pub(crate) const COLOURS: [Colour; 10] = [
    colour("black", [16, 18, 24], "no RAM (rows without any RAM are left out)"),
    colour("slate", [52, 62, 82], "zeros"),
    colour("blue", [64, 140, 220], "data"),
    colour("yellow", [250, 200, 60], "page table"),
    colour("violet", [170, 110, 230], "special: lent by Xen"),
    colour("green", [70, 110, 80], "ballooned out"),
    colour("cyan", [90, 220, 220], "paged out"),
    colour("brown", [140, 80, 40], "broken"),
    colour("red", [230, 50, 50], "cannot be read"),
    colour("orange", [255, 130, 40], "changed since the dump"),
];
pub(crate) const NO_RAM: u8 = 0;

/// The scale of a picture.
#[derive(Clone, Copy)]
struct Scale {
    /// The width and height of a square, in pixels.
    square: u64,
    /// The number of frames that a square shows.
    frames: u64,
}

impl Scale {
    fn squares_of_row(self) -> u64 {
        WIDTH / self.square
    }

    fn frames_of_row(self) -> u64 {
        self.squares_of_row() * self.frames
    }
}

pub(crate) struct Canvas {
    scale: Scale,
    blocks: Vec<Block>,
    /// An index into [`COLOURS`] for each square of all blocks.
    squares: Vec<u8>,
    /// Frames of each shade.
    counts: [u64; COLOURS.len()],
}

/// Consecutive rows of squares.
struct Block {
    /// Their numbers; row 0 begins with frame 0.
    rows: Range<u64>,
    /// The number of rows in the blocks before.
    before: u64,
    /// The distance from the top of the canvas, in pixels.
    y: u64,
}

impl Block {
    /// Returns the block that follows the others.
    fn after(blocks: &[Block], rows: Range<u64>, scale: Scale) -> Block {
        let before = blocks.last().map_or(0, |last| last.before + last.len());
        Block { rows, before, y: before * scale.square + blocks.len() as u64 * GAP }
    }

    fn len(&self) -> u64 {
        self.rows.end - self.rows.start
    }
}

/// The address of a row, and its distance from the top of the canvas, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) address: u64,
    pub(crate) y: u64,
}

impl Canvas {
    /// Returns a canvas for some frames, which are in ascending order; `None` if there are none.
    pub(crate) fn new(frames: &[Range<u64>]) -> Option<Canvas> {
        let large = SQUARES.map(|square| (Scale { square, frames: 1 }, GOOD_HEIGHT));
        let small = (0..u64::BITS - 10).map(|n| (Scale { square: 1, frames: 1 << n }, GREATEST_HEIGHT));
        let (scale, blocks) = large.into_iter().chain(small).find_map(|(scale, most)| {
            let blocks = blocks(frames, scale);
            (height(&blocks, scale) <= most).then_some((scale, blocks))
        })?;
        let last = blocks.last()?;
        let squares = (last.before + last.len()) * scale.squares_of_row();
        let squares = vec![NO_RAM; usize::try_from(squares).ok()?];
        Some(Canvas { scale, blocks, squares, counts: [0; COLOURS.len()] })
    }

    pub(crate) fn draw(&mut self, frames: Range<u64>, shade: Shade) {
        let shade = shade as u8;
        self.counts[usize::from(shade)] += frames.end - frames.start;
        for number in frames.start / self.scale.frames..frames.end.div_ceil(self.scale.frames) {
            if let Some(square) = self.square_mut(number) {
                *square = shade.max(*square);
            }
        }
    }

    /// Returns the square with this number, if it is in a block; square 0 begins with frame 0.
    fn square_mut(&mut self, number: u64) -> Option<&mut u8> {
        let width = self.scale.squares_of_row();
        let (row, column) = (number / width, number % width);
        let block = self.blocks.get(self.blocks.partition_point(|block| block.rows.end <= row))?;
        let row = block.before + row.checked_sub(block.rows.start)?;
        self.squares.get_mut(usize::try_from(row * width + column).ok()?)
    }

    /// Returns the width and height of a square, in pixels.
    pub(crate) fn square(&self) -> u64 {
        self.scale.square
    }

    /// Returns the height of all blocks and the gaps between them, in pixels.
    pub(crate) fn height(&self) -> u64 {
        height(&self.blocks, self.scale)
    }

    /// Returns the rows of all blocks: the distance of each from the top, in pixels, and the colours of its squares, as
    /// indices into [`COLOURS`].
    pub(crate) fn rows(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let ys = self.blocks.iter().flat_map(|block| (0..block.len()).map(|row| block.y + row * self.scale.square));
        let width = usize::try_from(self.scale.squares_of_row()).unwrap_or(usize::MAX);
        ys.zip(self.squares.chunks_exact(width))
    }

    /// Returns labels that do not overlap: for the first row of each block, and at regular distances in large ones.
    pub(crate) fn labels(&self) -> Vec<Label> {
        let step = LABEL_DISTANCE / self.scale.square;
        let mut labels: Vec<Label> = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let next = self.blocks.get(i + 1).map_or(u64::MAX, |next| next.y);
            let first = block.rows.start;
            let inner = (first.next_multiple_of(step)..block.rows.end).step_by(usize::try_from(step).unwrap_or(1));
            for row in std::iter::once(first).chain(inner) {
                let y = block.y + (row - first) * self.scale.square;
                let is_free = labels.last().is_none_or(|last| last.y + LABEL_HEIGHT <= y);
                if is_free && (row == first || y + LABEL_HEIGHT <= next) {
                    labels.push(Label { address: row * self.bytes_of_row(), y });
                }
            }
        }
        labels
    }

    /// Returns the colours that occur, as indices into [`COLOURS`], and the number of frames of each.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (u8, u64)> {
        (0..).zip(self.counts).filter(|(_, count)| *count > 0)
    }

    /// Says in a sentence how large things are drawn.
    pub(crate) fn scale(&self) -> String {
        let Scale { square, frames } = self.scale;
        let what = if square == 1 { "pixel" } else { "square" };
        let row = size(self.bytes_of_row());
        if frames == 1 {
            return format!("A {what} is a frame of 4 KiB, a row is {row}.");
        }
        let bytes = size(frames * FRAME);
        format!("A {what} is {frames} frames ({bytes}) and shows the one listed last here; a row is {row}.")
    }

    fn bytes_of_row(&self) -> u64 {
        self.scale.frames_of_row() * FRAME
    }

    /// Says where the blocks are in the picture, in which they begin at `top`, and what the colours mean.
    pub(crate) fn legend(&self, top: u64, out: &mut impl Write) -> Result<()> {
        for Block { rows, y, .. } in self.blocks.iter().take(LISTED) {
            let [start, end] = [rows.start, rows.end].map(|row| row * self.bytes_of_row());
            writeln!(out, "from y = {:<5} {start:#x} to {:#x}", top + y, end - 1)?;
        }
        match self.blocks.len().saturating_sub(LISTED) {
            0 => {}
            more => writeln!(out, "and {}, see the picture", count(more as u64, "more block"))?,
        }
        for (shade, count) in self.counts() {
            let Colour { name, meaning, .. } = &COLOURS[usize::from(shade)];
            writeln!(out, "{name:6} {count:>10}  {meaning}")?;
        }
        let Colour { name, meaning, .. } = &COLOURS[usize::from(NO_RAM)];
        writeln!(out, "{name:6} {:>10}  {meaning}", "")?;
        Ok(())
    }
}

/// Returns the rows that some frames are in.
fn blocks(frames: &[Range<u64>], scale: Scale) -> Vec<Block> {
    let row = scale.frames_of_row();
    let mut blocks: Vec<Block> = Vec::new();
    for frames in frames.iter().filter(|frames| !frames.is_empty()) {
        let rows = frames.start / row..frames.end.div_ceil(row);
        match blocks.last_mut() {
            Some(last) if rows.start <= last.rows.end => last.rows.end = rows.end,
            _ => blocks.push(Block::after(&blocks, rows, scale)),
        }
    }
    blocks
}

/// Returns the height of some blocks in pixels.
fn height(blocks: &[Block], scale: Scale) -> u64 {
    blocks.last().map_or(0, |last| last.y + last.len() * scale.square)
}
