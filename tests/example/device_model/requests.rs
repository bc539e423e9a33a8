//! The disk's answers to single requests.

use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, virtio_blk_config,
};
use xenmap::Gfn;

use super::program::model::Model;
use super::{Machine, chain};

const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x3000;

/// Serves a request whose data the device reads (`out`) and writes (`room`), of this many bytes. Returns the status,
/// and how many bytes the device says that it has written.
fn serve(machine: &Machine, model: &Model, kind: u32, sector: u64, [out, room]: [u32; 2]) -> (u32, u32) {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    machine.domain.write(Gfn::containing(HEADER).unwrap(), 0, &header);
    let chain = chain(&[(HEADER, 16), (DATA, out)], &[(DATA, room), (STATUS, 1)]);
    let len = model.device.disk.serve(model.server.cache(), chain, 0).unwrap();
    let status = machine.domain.read(Gfn::containing(STATUS).unwrap(), 0, 1);
    (status[0].into(), len)
}

/// The status is the last byte, so it counts only if all before it was written (virtio 1.2, 2.7.8.2).
#[test]
fn length_of_an_answer_counts_no_byte_that_was_not_written() {
    let machine = Machine::new();
    let model = machine.open(false, None).unwrap();
    for (kind, sector, data, expected) in [
        (VIRTIO_BLK_T_IN, 0, [0, 512], (VIRTIO_BLK_S_OK, 513)),
        (VIRTIO_BLK_T_IN, u64::MAX, [0, 512], (VIRTIO_BLK_S_IOERR, 0)),
        (VIRTIO_BLK_T_OUT, 0, [512, 0], (VIRTIO_BLK_S_OK, 1)),
        (VIRTIO_BLK_T_OUT, 0, [512, 8], (VIRTIO_BLK_S_OK, 0)),
        (VIRTIO_BLK_T_OUT, u64::MAX, [512, 0], (VIRTIO_BLK_S_IOERR, 1)),
        (VIRTIO_BLK_T_DISCARD, 0, [16, 8], (VIRTIO_BLK_S_OK, 0)),
        (VIRTIO_BLK_T_FLUSH, 0, [0, 0], (VIRTIO_BLK_S_OK, 1)),
        (VIRTIO_BLK_T_GET_ID, 0, [0, 8], (VIRTIO_BLK_S_OK, 9)),
        (VIRTIO_BLK_T_GET_ID, 0, [0, 20], (VIRTIO_BLK_S_OK, 21)),
        (VIRTIO_BLK_T_GET_ID, 0, [0, 21], (VIRTIO_BLK_S_OK, 20)),
        (99, 0, [0, 0], (VIRTIO_BLK_S_UNSUPP, 1)),
    ] {
        let answer = serve(&machine, &model, kind, sector, data);
        assert_eq!(answer, expected, "kind {kind}, sector {sector:x}, {data:?} bytes");
    }
}

#[test]
fn as_much_is_cleared_at_once_as_the_configuration_says() {
    const DISK: u64 = 128 << 20;
    let machine = Machine::new();
    machine.disk.set_len(DISK).unwrap();
    let model = machine.open(false, None).unwrap();
    let configuration = model.device.disk.configuration();
    let limit = |at: usize| u32::try_from(configuration.read(at as u64, 4)).unwrap();
    let frame = Gfn::containing(DATA).unwrap();
    for (kind, sectors, ranges, flags) in [
        (
            VIRTIO_BLK_T_DISCARD,
            limit(offset_of!(virtio_blk_config, max_discard_sectors)),
            limit(offset_of!(virtio_blk_config, max_discard_seg)),
            0,
        ),
        (
            VIRTIO_BLK_T_WRITE_ZEROES,
            limit(offset_of!(virtio_blk_config, max_write_zeroes_sectors)),
            limit(offset_of!(virtio_blk_config, max_write_zeroes_seg)),
            VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
        ),
    ] {
        assert!(u64::from(sectors) * u64::from(ranges) * 512 <= 64 << 20, "is done in about 0.1 s");
        machine.disk.write_all_at(b"data", DISK / 2 - 4).unwrap();
        let clear = |sectors: u32, ranges| {
            let range = [&[0; 8][..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
            machine.domain.write(frame, 0, &range.repeat(ranges as usize));
            serve(&machine, &model, kind, 0, [16 * ranges, 0]).0
        };
        assert_eq!(clear(sectors + 1, 1), VIRTIO_BLK_S_IOERR);
        assert_eq!(clear(1, ranges + 1), VIRTIO_BLK_S_IOERR);
        assert_eq!(clear(sectors, ranges), VIRTIO_BLK_S_OK);
        let mut last = [0xEE; 4];
        machine.disk.read_exact_at(&mut last, DISK / 2 - 4).unwrap();
        assert_eq!(last, [0; 4]);
    }
}
