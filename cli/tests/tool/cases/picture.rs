//! `xenmap picture`, run as a person does.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use embedded_graphics::Pixel;
use embedded_graphics::mono_font::ascii::{FONT_6X10, FONT_7X13};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, Point, Size};
use embedded_graphics::text::{Baseline, Text};
use xenmap::FRAME_SIZE;

use crate::canvas::{Canvas, Label, Shade};
use crate::dumps::*;
use crate::harness::*;

const NO_RAM: [u8; 3] = [16, 18, 24];
const ZEROS: [u8; 3] = [52, 62, 82];
const DATA: [u8; 3] = [64, 140, 220];
const CHANGED: [u8; 3] = [255, 130, 40];
const PAPER: [u8; 3] = [240, 241, 244];
const TEXT: [u8; 3] = [24, 26, 32];

struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
    /// The distance of the first row of frames from the top.
    top: usize,
}

impl Picture {
    /// Draws the RAM in a folder, and returns the picture and what the tool prints.
    fn draw(folder: &Path, args: &str) -> (Picture, String) {
        let output = run_in(folder, &format!("--mock ram {args} out.png"));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let printed = text(&output.stdout).to_owned();
        let mut decoder = png::Decoder::new(BufReader::new(File::open(folder.join("out.png")).unwrap()));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        assert_eq!(reader.info().color_type, png::ColorType::Indexed);
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb);
        let top = printed.split_once("from y = ").unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
        fs::remove_file(folder.join("out.png")).unwrap();
        (Picture { width: info.width as usize, height: info.height as usize, pixels, top }, printed)
    }

    fn at(&self, x: usize, y: usize) -> [u8; 3] {
        *self.pixels[(y * self.width + x) * 3..].first_chunk().unwrap()
    }

    /// Returns a pixel of the frames, which are 512 pixels wide and end 12 pixels before the right and the lower border.
    fn frame_at(&self, x: usize, y: usize) -> [u8; 3] {
        self.at(self.left() + x, self.top + y)
    }

    fn left(&self) -> usize {
        self.width - 12 - 512
    }

    fn height_of_frames(&self) -> usize {
        self.height - 12 - self.top
    }

    /// Returns where a text begins, which the picture must show exactly once.
    #[track_caller]
    fn find(&self, text: &str, font: &MonoFont<'_>) -> (usize, usize) {
        let found = self.find_all(text, font);
        assert_eq!(found.len(), 1, "{text}");
        found[0]
    }

    fn find_all(&self, text: &str, font: &MonoFont<'_>) -> Vec<(usize, usize)> {
        let (width, height) = (text.len() * font.character_size.width as usize, font.character_size.height as usize);
        let mut expected = Glyphs { width, height, set: vec![false; width * height] };
        let style = MonoTextStyle::new(font, BinaryColor::On);
        Text::with_baseline(text, Point::zero(), style, Baseline::Top).draw(&mut expected).unwrap();
        let is_at = |x: usize, y: usize| {
            let pixels = (0..height).flat_map(|row| (0..width).map(move |column| (column, row)));
            pixels
                .zip(&expected.set)
                .all(|((column, row), set)| self.at(x + column, y + row) == if *set { TEXT } else { PAPER })
        };
        let corners = (0..self.height - height).flat_map(|y| (0..self.width - width).map(move |x| (x, y)));
        corners.filter(|&(x, y)| is_at(x, y)).collect()
    }
}

/// The pixels of a text.
struct Glyphs {
    width: usize,
    height: usize,
    set: Vec<bool>,
}

impl OriginDimensions for Glyphs {
    fn size(&self) -> Size {
        Size::new(self.width.try_into().unwrap(), self.height.try_into().unwrap())
    }
}

impl DrawTarget for Glyphs {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<BinaryColor>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(point, colour) in pixels {
            let (x, y) = (usize::try_from(point.x).unwrap(), usize::try_from(point.y).unwrap());
            self.set[y * self.width + x] = colour.is_on();
        }
        Ok(())
    }
}

#[test]
fn picture_shows_each_frame_of_a_small_guest_as_a_square() {
    let folder = folder("picture");
    // A row is 64 frames, so these are in three rows, and there are holes between them.
    ram(&folder, &[(0, &page(b'x')), (frame(1), &page(0)), (frame(130), b"x"), (frame(0xf_eff0), b"x")]);

    let (picture, printed) = Picture::draw(&folder, "picture");

    let expected = "\
604 x 138 pixels. A square is a frame of 4 KiB, a row is 256 KiB.
from y = 92    0x0 to 0x3ffff
from y = 105   0x80000 to 0xbffff
from y = 118   0xfefc0000 to 0xfeffffff
slate           1  zeros
blue            3  data
black              no RAM (rows without any RAM are left out)
";
    assert_eq!(printed, expected);
    assert_eq!((picture.width, picture.height), (604, 138));
    for (x, y, colour) in [
        (0, 0, DATA),
        (7, 7, DATA),
        (8, 0, ZEROS),
        (15, 7, ZEROS),
        (16, 0, NO_RAM),
        (511, 7, NO_RAM),
        (0, 8, PAPER),
        (511, 12, PAPER),
        (16, 13, DATA),
        (24, 13, NO_RAM),
        (300, 25, PAPER),
        (48 * 8, 26, DATA),
        (511, 33, NO_RAM),
        (511, 34, PAPER),
    ] {
        assert_eq!(picture.frame_at(x, y), colour, "{x}, {y}");
    }
}

#[test]
fn picture_has_a_legend() {
    let folder = folder("picture-legend");
    let zeros = vec![0; 10 * FRAME_SIZE];
    ram(&folder, &[(0, &page(b'x')), (frame(1), &zeros)]);
    let (picture, _) = Picture::draw(&folder, "picture");
    picture.find("A square is a frame of 4 KiB, a row is 256 KiB.", &FONT_7X13);
    for (line, colour) in [
        ("10 frames  zeros", ZEROS),
        (" 1 frame   data", DATA),
        ("           no RAM (rows without any RAM are left out)", NO_RAM),
    ] {
        let (x, y) = picture.find(line, &FONT_7X13);
        // The swatch is before the text, and in the middle of the line.
        assert_eq!(picture.at(x - 15, y + 6), colour, "{line}");
        assert!(y + 13 < picture.top);
    }
    for unused in ["page table", "changed since the dump"] {
        assert!(picture.find_all(unused, &FONT_7X13).is_empty(), "{unused}");
    }
}

#[test]
fn picture_has_the_addresses_of_its_rows_at_the_left() {
    let folder = folder("picture-labels");
    ram(&folder, &[(0, &vec![1; 1000 * FRAME_SIZE]), (frame(0xf_eff0), b"x"), (frame(0xf_fff0), b"x")]);
    let (picture, _) = Picture::draw(&folder, "picture");
    // The first row of each block, and every eighth one. A label has its row to its right.
    for (label, y) in [("0x0", 0), ("0x200000", 64), ("0xfefc0000", 16 * 8 + 5), ("0xfffc0000", 17 * 8 + 2 * 5)] {
        let (x, top) = picture.find(label, &FONT_6X10);
        assert_eq!(top + 5, picture.top + y + 4, "{label}");
        assert_eq!(x + label.len() * 6 + 8, picture.left(), "{label}");
        assert_eq!([1, 4].map(|x| picture.at(picture.left() - x, top + 5)), [TEXT; 2], "{label}");
    }
}

#[test]
fn labels_that_would_overlap_are_left_out() {
    let blocks: Vec<_> = (0..5000_u64).map(|i| i << 20..(i << 20) + 1 + i % 3000 * (i % 7 / 6)).collect();
    for count in [1, 2, 30, 400, 5000] {
        let canvas = Canvas::new(&blocks[..count]).unwrap();
        let labels = canvas.labels();
        assert_eq!(labels[0], Label { address: 0, y: 0 });
        let is_apart = |pair: &[Label]| pair[0].y + 10 <= pair[1].y && pair[0].address < pair[1].address;
        assert!(labels.windows(2).all(is_apart), "{count}");
        // Nothing is far from a label.
        let ys = labels.iter().map(|label| label.y).chain([canvas.height()]).collect::<Vec<_>>();
        assert!(ys.windows(2).all(|pair| pair[1] - pair[0] < 2 * 64), "{count}");
    }
}

#[test]
fn picture_of_a_larger_guest_has_smaller_squares() {
    let folder = folder("picture-large");
    for (frames, (square, height)) in
        [(8192, (8, 1024)), (8193, (4, 65 * 4)), (65_537, (2, 257 * 2)), (131_073, (1, 257))]
    {
        // There is RAM in every row, so none is left out.
        let pfns = (0..frames).step_by(64).chain([frames - 1]);
        ram(&folder, &pfns.map(|pfn| (frame(pfn), &b"x"[..])).collect::<Vec<_>>());
        let (picture, printed) = Picture::draw(&folder, "picture");
        let what = if square == 1 { "pixel" } else { "square" };
        let expected = format!("pixels. A {what} is a frame of 4 KiB, a row is {} KiB.", 2048 / square);
        assert!(printed.replace(" 1 MiB", " 1024 KiB").replace(" 2 MiB", " 2048 KiB").contains(&expected), "{printed}");
        assert_eq!(picture.height_of_frames(), height);
        assert_eq!([picture.frame_at(0, 0), picture.frame_at(square, 0)], [DATA, NO_RAM]);
    }
}

#[test]
fn pixel_of_several_frames_shows_the_most_important_one() {
    // RAM in so many rows that the picture would be too high with a frame to the pixel.
    let frames: Vec<_> = (0..9000).map(|row| row * 512..row * 512 + 4).collect();
    let mut canvas = Canvas::new(&frames).unwrap();
    assert_eq!(canvas.scale(), "A pixel is 4 frames (16 KiB) and shows the one listed last here; a row is 8 MiB.");
    for (first, shades) in [(0, [Shade::Data, Shade::Zero, Shade::Changed, Shade::Zero]), (512, [Shade::Zero; 4])] {
        (first..).zip(shades).for_each(|(pfn, shade)| canvas.draw(pfn..pfn + 1, shade));
    }
    let (_, squares) = canvas.rows().next().unwrap();
    assert_eq!([squares[0], squares[1], squares[128]], [Shade::Changed as u8, 0, Shade::Zero as u8]);
}

#[test]
fn legend_on_standard_output_lists_a_dozen_blocks() {
    let folder = folder("picture-blocks");
    for (blocks, last_line) in [
        (12, None),
        (13, Some("and 1 more block, see the picture")),
        (100, Some("and 88 more blocks, see the picture")),
    ] {
        let pfns: Vec<_> = (0..blocks).map(|i| (frame(i * 1000), &b"x"[..])).collect();
        ram(&folder, &pfns);
        let (_, printed) = Picture::draw(&folder, "picture");
        assert_eq!(printed.matches("from y = ").count(), 12, "{printed}");
        assert_eq!(printed.lines().find(|line| line.starts_with("and ")), last_line);
    }
}

#[test]
fn picture_shows_what_has_changed_since_a_dump() {
    let folder = folder("picture-since");
    ram(&folder, &[(0, &page(b'a')), (frame(1), &page(b'b')), (frame(2), &page(0)), (frame(3), &page(b'c'))]);
    let then: Pages = [(0, page(b'a')), (1, page(b'B')), (2, page(b'c'))].into();
    for (name, make) in FORMATS {
        fs::write(folder.join(name), make(&then)).unwrap();
        let (picture, printed) = Picture::draw(&folder, &format!("picture --since {name}"));
        assert!(printed.contains("\norange          3  changed since the dump\n"), "{printed}");
        picture.find("3 frames  changed since the dump", &FONT_7X13);
        assert_eq!([0, 8, 16, 24, 32].map(|x| picture.frame_at(x, 0)), [DATA, CHANGED, CHANGED, CHANGED, NO_RAM]);
    }
}

#[test]
fn page_that_is_zero_as_before_has_not_changed() {
    let folder = folder("picture-zeros");
    ram(&folder, &[(0, &page(0)), (frame(5), &page(0))]);
    fs::write(folder.join("then"), raw(&[(3, page(0))].into())).unwrap();
    let (picture, _) = Picture::draw(&folder, "picture --since then");
    assert_eq!([0, 5 * 8].map(|x| picture.frame_at(x, 0)), [ZEROS, ZEROS]);
}

#[test]
fn picture_of_a_guest_without_ram_is_refused() {
    let folder = folder("picture-none");
    ram(&folder, &[]);
    assert!(refusal(&run_in(&folder, "--mock ram picture out.png")).contains("nothing to draw"));
    assert_eq!(names(&folder), ["ram"]);
}

#[test]
fn picture_leaves_an_existing_file_as_it_was() {
    let folder = folder("picture-exists");
    ram(&folder, &[(0, CANARY)]);
    fs::write(folder.join("out"), "precious").unwrap();
    assert_eq!(refusal(&run_in(&folder, "--mock ram picture out")), "output exists: out");
    assert_eq!(fs::read(folder.join("out")).unwrap(), b"precious");
}

#[test]
fn picture_of_a_pv_guest_shows_its_page_tables() {
    let folder = folder("picture-pv");
    ram(&folder, &[(0, &page(b'x')), (frame(100_000), b"x")]);
    let (picture, legend) = Picture::draw(&folder, "--mock-kind pv picture");
    assert!(legend.contains("  page table\n") && legend.contains("  ballooned out\n"), "{legend}");
    // What it has ballooned out fills the row, and no more rows.
    assert_eq!([0, 8].map(|x| picture.frame_at(x, 0)), [DATA, [70, 110, 80]]);
    assert!(picture.height_of_frames() < 200);
    let rows = picture.pixels.chunks(3 * picture.width).skip(picture.top);
    assert!(rows.flat_map(|row| row.chunks(3)).any(|pixel| pixel == [250, 200, 60]));
}

#[test]
fn standard_output_for_a_picture_is_an_error() {
    let folder = folder("picture-stdout");
    ram(&folder, &[(0, CANARY)]);
    let output = run_in(&folder, "picture --mock ram -");
    assert_eq!(refusal(&output), "a picture goes to a file, not to standard output: give its name");
    assert!(!folder.join("-").exists());
}
