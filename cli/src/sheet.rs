//! A canvas with its legend above it and the addresses of its rows to its left, as a PNG.

use std::convert::Infallible;

use embedded_graphics::Pixel;
use embedded_graphics::mono_font::ascii::{FONT_6X10, FONT_7X13};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::raw::RawU8;
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, PixelColor, Point, Size};
use embedded_graphics::text::{Baseline, Text};

use crate::Result;
use crate::canvas::{COLOURS, Canvas, NO_RAM, WIDTH};

/// Pixels around the canvas and the legend.
const MARGIN: u64 = 12;
const LEGEND_FONT: MonoFont<'_> = FONT_7X13;
const LINE_HEIGHT: usize = 17;
/// The side of a square that shows a colour, and the distance of the text after it.
const SWATCH: u64 = 11;
const INDENT: u64 = 20;
const LABEL_FONT: MonoFont<'_> = FONT_6X10;
/// Pixels of the line from a label to its row, and of the space before that line.
const TICK: u64 = 4;

/// An index into the palette of the PNG: a colour of [`COLOURS`], or one of these two.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ink(u8);

const PAPER: Ink = Ink(10);
const TEXT: Ink = Ink(11);
const PAPER_AND_TEXT: [[u8; 3]; 2] = [[240, 241, 244], [24, 26, 32]];
const _: () = assert!(PAPER.0 as usize == COLOURS.len());

impl PixelColor for Ink {
    type Raw = RawU8;
}

pub(crate) struct Sheet {
    pub(crate) width: u64,
    pub(crate) height: u64,
    /// The place of the canvas.
    left: u64,
    pub(crate) top: u64,
    /// The inks of the pixels.
    pixels: Vec<u8>,
}

/// A line of the legend, perhaps with a colour before it.
struct Line {
    colour: Option<u8>,
    text: String,
}

impl Sheet {
    pub(crate) fn new(canvas: &Canvas) -> Result<Sheet> {
        let legend = legend(canvas);
        let legend_width = legend.iter().map(|line| INDENT + width(&LEGEND_FONT, &line.text)).max();
        let labels: Vec<_> = canvas.labels().iter().map(|label| (format!("{:#x}", label.address), label.y)).collect();
        let label_width = labels.iter().map(|(text, _)| width(&LABEL_FONT, text)).max();

        let left = MARGIN + label_width.unwrap_or(0) + 2 * TICK;
        let top = MARGIN + (legend.len() * LINE_HEIGHT) as u64 + MARGIN;
        let width = (left + WIDTH).max(MARGIN + legend_width.unwrap_or(0)) + MARGIN;
        let height = top + canvas.height() + MARGIN;
        let mut sheet = Sheet { width, height, left, top, pixels: vec![PAPER.0; usize::try_from(width * height)?] };

        for (line, y) in legend.iter().zip((MARGIN..).step_by(LINE_HEIGHT)) {
            if let Some(colour) = line.colour {
                sheet.fill((MARGIN, y + 1), (SWATCH, SWATCH), Ink(colour));
            }
            let indent = if line.colour.is_some() { INDENT } else { 0 };
            sheet.write(&line.text, &LEGEND_FONT, (MARGIN + indent, y))?;
        }
        for (text, y) in labels {
            sheet.label(&text, top + y + canvas.square() / 2)?;
        }
        for (y, squares) in canvas.rows() {
            for (colour, x) in squares.iter().zip((left..).step_by(usize::try_from(canvas.square())?)) {
                sheet.fill((x, top + y), (canvas.square(), canvas.square()), Ink(*colour));
            }
        }
        Ok(sheet)
    }

    /// Labels the row whose middle is at `y`.
    fn label(&mut self, text: &str, y: u64) -> Result<()> {
        self.fill((self.left - TICK, y), (TICK, 1), TEXT);
        let height = u64::from(LABEL_FONT.character_size.height);
        self.write(text, &LABEL_FONT, (self.left - 2 * TICK - width(&LABEL_FONT, text), y - height / 2))
    }

    fn write(&mut self, text: &str, font: &MonoFont<'_>, (x, y): (u64, u64)) -> Result<()> {
        let corner = Point::new(x.try_into()?, y.try_into()?);
        let Ok(_) = Text::with_baseline(text, corner, MonoTextStyle::new(font, TEXT), Baseline::Top).draw(self);
        Ok(())
    }

    fn fill(&mut self, (left, top): (u64, u64), (width, height): (u64, u64), ink: Ink) {
        for y in top..top + height {
            let start = y * self.width + left;
            let [start, end] = [start, start + width].map(|index| usize::try_from(index).unwrap_or(usize::MAX));
            if let Some(pixels) = self.pixels.get_mut(start..end) {
                pixels.fill(ink.0);
            }
        }
    }

    pub(crate) fn png(&self) -> Result<Vec<u8>> {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, u32::try_from(self.width)?, u32::try_from(self.height)?);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        let palette: Vec<[u8; 3]> = COLOURS.iter().map(|colour| colour.rgb).chain(PAPER_AND_TEXT).collect();
        encoder.set_palette(palette.concat());
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(png)
    }
}

impl OriginDimensions for Sheet {
    fn size(&self) -> Size {
        let [width, height] = [self.width, self.height].map(|pixels| u32::try_from(pixels).unwrap_or(u32::MAX));
        Size::new(width, height)
    }
}

impl DrawTarget for Sheet {
    type Color = Ink;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Ink>>>(&mut self, pixels: I) -> std::result::Result<(), Infallible> {
        for Pixel(point, ink) in pixels {
            if let (Ok(x), Ok(y)) = (u64::try_from(point.x), u64::try_from(point.y)) {
                self.fill((x, y), (1, 1), ink);
            }
        }
        Ok(())
    }
}

/// Returns the scale, and the colours that occur with the number of frames of each.
fn legend(canvas: &Canvas) -> Vec<Line> {
    let mut lines = vec![Line { colour: None, text: canvas.scale() }];
    let counts: Vec<_> = canvas.counts().collect();
    let digits = counts.iter().map(|(_, count)| count.to_string().len()).max().unwrap_or(0);
    for (shade, count) in counts {
        let unit = if count == 1 { "frame" } else { "frames" };
        let text = format!("{count:digits$} {unit:6}  {}", COLOURS[usize::from(shade)].meaning);
        lines.push(Line { colour: Some(shade), text });
    }
    let meaning = COLOURS[usize::from(NO_RAM)].meaning;
    lines.push(Line { colour: Some(NO_RAM), text: format!("{:digits$} {:6}  {meaning}", "", "") });
    lines
}

/// Returns the width of a text in pixels.
fn width(font: &MonoFont<'_>, text: &str) -> u64 {
    text.len() as u64 * u64::from(font.character_size.width + font.character_spacing)
}
