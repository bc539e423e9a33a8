//! Frames as pixels.

use std::io::Write;
use std::ops::Range;

use xenmap::FRAME_SIZE;

use crate::Result;

/// Pixels of a row.
const WIDTH: u64 = 512;
/// Frames are squares of so many pixels, as long as the picture does not get higher than it should.
const SQUARES: [u64; 3] = [8, 4, 2];
const GOOD_HEIGHT: u64 = 1024;
/// A picture that is even higher has more than one frame to the pixel.
const GREATEST_HEIGHT: u64 = 4096;
/// Pixels between rows where addresses without RAM are left out, the middle one of which is a line.
const GAP: u64 = 5;

/// What a frame is, ever more remarkable: a pixel of several frames shows the last of these.
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

/// By shade: name and colour (red, green, blue), and what it stands for.
const COLOURS: [(&str, [u8; 3], &str); 11] = [
    ("black", [16, 18, 24], "no RAM"),
    ("slate", [52, 62, 82], "zeros"),
    ("blue", [64, 140, 220], "data"),
    ("yellow", [250, 200, 60], "page table"),
    ("violet", [170, 110, 230], "special: lent by Xen"),
    ("green", [70, 110, 80], "ballooned out"),
    ("cyan", [90, 220, 220], "paged out"),
    ("brown", [140, 80, 40], "broken"),
    ("red", [230, 50, 50], "cannot be read"),
    ("orange", [255, 130, 40], "changed since the dump"),
    ("grey", [120, 120, 120], "a gap"),
];
const BACKGROUND: u8 = 0;
const LINE: u8 = 10;

/// How large frames are drawn.
#[derive(Clone, Copy)]
struct Scale {
    /// The width and height of a square, in pixels.
    square: u64,
    /// How many frames it shows.
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
    /// An index into `COLOURS` for each square of all blocks.
    squares: Vec<u8>,
    /// Frames of each shade.
    counts: [u64; COLOURS.len()],
}

/// Rows of squares without a gap.
struct Block {
    /// Their numbers, if those without RAM count too.
    rows: Range<u64>,
    /// The rows in the blocks before.
    before: u64,
}

impl Canvas {
    /// A canvas for some frames, in ascending order; `None` if there are none.
    pub(crate) fn new(frames: &[Range<u64>]) -> Option<Canvas> {
        let large = SQUARES.map(|square| (Scale { square, frames: 1 }, GOOD_HEIGHT));
        let small = (0..u64::BITS - 10).map(|n| (Scale { square: 1, frames: 1 << n }, GREATEST_HEIGHT));
        let (scale, blocks) = large.into_iter().chain(small).find_map(|(scale, most)| {
            let blocks = blocks(frames, scale);
            (height(&blocks, scale) <= most).then_some((scale, blocks))
        })?;
        let last = blocks.last()?;
        let squares = (last.before + last.rows.end - last.rows.start) * scale.squares_of_row();
        let squares = vec![BACKGROUND; usize::try_from(squares).ok()?];
        Some(Canvas { scale, blocks, squares, counts: [0; COLOURS.len()] })
    }

    pub(crate) fn draw(&mut self, frames: Range<u64>, shade: Shade) {
        let shade = shade as u8;
        self.counts[usize::from(shade)] += frames.end - frames.start;
        for number in frames.start / self.scale.frames..frames.end.div_ceil(self.scale.frames) {
            if let Some(square) = self.square(number) {
                *square = shade.max(*square);
            }
        }
    }

    /// The square with this number, if those without RAM count too.
    fn square(&mut self, number: u64) -> Option<&mut u8> {
        let width = self.scale.squares_of_row();
        let (row, column) = (number / width, number % width);
        let block = self.blocks.get(self.blocks.partition_point(|block| block.rows.end <= row))?;
        let row = block.before + row.checked_sub(block.rows.start)?;
        self.squares.get_mut(usize::try_from(row * width + column).ok()?)
    }

    pub(crate) fn png(&self) -> Result<Vec<u8>> {
        let mut png = Vec::new();
        let height = height(&self.blocks, self.scale);
        let mut encoder = png::Encoder::new(&mut png, u32::try_from(WIDTH)?, u32::try_from(height)?);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(COLOURS.map(|(_, colour, _)| colour).concat());
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels()?)?;
        writer.finish()?;
        Ok(png)
    }

    fn pixels(&self) -> Result<Vec<u8>> {
        let width = usize::try_from(WIDTH)?;
        let square = usize::try_from(self.scale.square)?;
        let mut rows = self.squares.chunks_exact(width / square);
        let mut pixels = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            if i > 0 {
                for y in 0..GAP {
                    let colour = if y == GAP / 2 { LINE } else { BACKGROUND };
                    pixels.extend(std::iter::repeat_n(colour, width));
                }
            }
            for row in rows.by_ref().take(usize::try_from(block.rows.end - block.rows.start)?) {
                let row: Vec<u8> = row.iter().flat_map(|&colour| std::iter::repeat_n(colour, square)).collect();
                for _ in 0..square {
                    pixels.extend_from_slice(&row);
                }
            }
        }
        Ok(pixels)
    }

    /// Says what is where, and what the colours mean.
    pub(crate) fn legend(&self, out: &mut impl Write) -> Result<()> {
        let Scale { square, frames } = self.scale;
        let frames_of_row = self.scale.frames_of_row();
        let what = if frames == 1 { "a frame".to_owned() } else { format!("{frames} frames") };
        let height = height(&self.blocks, self.scale);
        writeln!(out, "{WIDTH} x {height} pixels, {square} x {square} for {what}; a row is {} KiB", frames_of_row * 4)?;
        for (Block { rows, before }, gaps) in self.blocks.iter().zip(0..) {
            let [start, end] = [rows.start, rows.end].map(|row| row * frames_of_row * FRAME_SIZE as u64);
            writeln!(out, "from y = {:<5} {start:#x} to {:#x}", before * square + gaps * GAP, end - 1)?;
        }
        for ((name, _, meaning), count) in COLOURS.iter().zip(self.counts).filter(|(_, count)| *count > 0) {
            writeln!(out, "{name:6} {count:>10}  {meaning}")?;
        }
        writeln!(out, "black, and grey lines where rows are left out: no RAM")?;
        Ok(())
    }
}

/// The rows that some frames are in.
fn blocks(frames: &[Range<u64>], scale: Scale) -> Vec<Block> {
    let row = scale.frames_of_row();
    let mut blocks: Vec<Block> = Vec::new();
    for frames in frames.iter().filter(|frames| !frames.is_empty()) {
        let rows = frames.start / row..frames.end.div_ceil(row);
        match blocks.last_mut() {
            Some(last) if rows.start <= last.rows.end => last.rows.end = rows.end,
            last => {
                let before = last.map_or(0, |last| last.before + (last.rows.end - last.rows.start));
                blocks.push(Block { rows, before });
            }
        }
    }
    blocks
}

/// The height of the picture in pixels.
fn height(blocks: &[Block], scale: Scale) -> u64 {
    let rows: u64 = blocks.iter().map(|block| block.rows.end - block.rows.start).sum();
    rows * scale.square + GAP * (blocks.len() as u64).saturating_sub(1)
}
