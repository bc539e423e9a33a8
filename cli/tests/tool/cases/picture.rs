//! `xenmap picture`, run as a person does.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use crate::dumps::*;
use crate::harness::*;

const NO_RAM: [u8; 3] = [16, 18, 24];
const ZEROS: [u8; 3] = [52, 62, 82];
const DATA: [u8; 3] = [64, 140, 220];
const CHANGED: [u8; 3] = [255, 130, 40];
const LINE: [u8; 3] = [120, 120, 120];

struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    fn open(path: &Path) -> Picture {
        let mut decoder = png::Decoder::new(BufReader::new(File::open(path).unwrap()));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb);
        Picture { width: info.width as usize, height: info.height as usize, pixels }
    }

    fn at(&self, x: usize, y: usize) -> [u8; 3] {
        *self.pixels[(y * self.width + x) * 3..].first_chunk().unwrap()
    }
}

#[test]
fn picture_shows_each_frame_of_a_small_guest_as_a_square() {
    let folder = folder("picture");
    // A row is 64 frames, so these are in three rows, and there are holes between them.
    ram(&folder, &[(0, &page(b'x')), (frame(1), &page(0)), (frame(130), b"x"), (frame(0xf_eff0), b"x")]);
    let output = run_in(&folder, "--mock ram picture out.png");

    let expected = "\
512 x 34 pixels, 8 x 8 for a frame; a row is 256 KiB
from y = 0     0x0 to 0x3ffff
from y = 13    0x80000 to 0xbffff
from y = 26    0xfefc0000 to 0xfeffffff
slate           1  zeros
blue            3  data
black, and grey lines where rows are left out: no RAM
";
    assert_eq!((text(&output.stdout), text(&output.stderr)), (expected, ""));
    let picture = Picture::open(&folder.join("out.png"));
    assert_eq!((picture.width, picture.height), (512, 34));
    for (x, y, colour) in [
        (0, 0, DATA),
        (7, 7, DATA),
        (8, 0, ZEROS),
        (15, 7, ZEROS),
        (16, 0, NO_RAM),
        (0, 8, NO_RAM),
        (0, 10, LINE),
        (511, 10, LINE),
        (16, 13, DATA),
        (24, 13, NO_RAM),
        (300, 23, LINE),
        (48 * 8, 26, DATA),
        (511, 33, NO_RAM),
    ] {
        assert_eq!(picture.at(x, y), colour, "{x}, {y}");
    }
}

#[test]
fn picture_of_a_larger_guest_has_smaller_squares() {
    let folder = folder("picture-large");
    for (frames, (square, height)) in
        [(8192, (8, 1024)), (8193, (4, 65 * 4)), (65_537, (2, 257 * 2)), (131_073, (1, 257))]
    {
        // There is RAM in every row, so no gap is left out.
        let pfns = (0..frames).step_by(64).chain([frames - 1]);
        ram(&folder, &pfns.map(|pfn| (frame(pfn), &b"x"[..])).collect::<Vec<_>>());
        let output = run_in(&folder, &format!("--mock ram picture {frames}.png"));
        let expected = format!("512 x {height} pixels, {square} x {square} for a frame;");
        assert!(text(&output.stdout).starts_with(&expected), "{}", text(&output.stdout));
        let picture = Picture::open(&folder.join(format!("{frames}.png")));
        assert_eq!((picture.width, picture.height), (512, height));
        assert_eq!([picture.at(0, 0), picture.at(square, 0)], [DATA, NO_RAM]);
    }
}

#[test]
fn picture_shows_what_has_changed_since_a_dump() {
    let folder = folder("picture-since");
    ram(&folder, &[(0, &page(b'a')), (frame(1), &page(b'b')), (frame(2), &page(0)), (frame(3), &page(b'c'))]);
    let then: Pages = [(0, page(b'a')), (1, page(b'B')), (2, page(b'c'))].into();
    for (name, make) in FORMATS {
        fs::write(folder.join(name), make(&then)).unwrap();
        let output = run_in(&folder, &format!("--mock ram picture {name}.png --since {name}"));
        assert!(text(&output.stdout).contains("\norange          3  changed since the dump\n"));
        let picture = Picture::open(&folder.join(format!("{name}.png")));
        assert_eq!([0, 8, 16, 24, 32].map(|x| picture.at(x, 0)), [DATA, CHANGED, CHANGED, CHANGED, NO_RAM]);
    }
}

#[test]
fn page_that_is_zero_as_before_has_not_changed() {
    let folder = folder("picture-zeros");
    ram(&folder, &[(0, &page(0)), (frame(5), &page(0))]);
    fs::write(folder.join("then"), raw(&[(3, page(0))].into())).unwrap();
    run_in(&folder, "--mock ram picture out.png --since then");
    let picture = Picture::open(&folder.join("out.png"));
    assert_eq!([0, 5 * 8].map(|x| picture.at(x, 0)), [ZEROS, ZEROS]);
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
    let output = run_in(&folder, "--mock ram --mock-kind pv picture out.png");
    let legend = text(&output.stdout);
    assert!(legend.contains("  page table\n") && legend.contains("  ballooned out\n"), "{legend}");
    let picture = Picture::open(&folder.join("out.png"));
    // What it has ballooned out fills the row, and no more rows.
    assert_eq!([0, 8].map(|x| picture.at(x, 0)), [DATA, [70, 110, 80]]);
    assert!(picture.height < 200);
    assert!(picture.pixels.chunks(3).any(|pixel| pixel == [250, 200, 60]));
}
