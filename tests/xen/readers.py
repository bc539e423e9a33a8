#!/usr/bin/env python3
"""Reads the dumps that a job has exported: with gdb, volatility3, drgn, and by the formats' descriptions.

readers.py FOLDER contract|speed|capi pv|pvh|arm64: in FOLDER is a folder for each guest, with the dumps and `facts`,
lines of a name and a value. Prints PASS and FAIL lines, as the jobs do. Nothing here shares code with the tool that
wrote the dumps.
"""

import json
import mmap
import struct
import subprocess
import sys
from pathlib import Path

import drgn

PAGE = 4096
# What xl dump-core leaves out of any guest that is not PV, RAM or not: the VGA window and the MMIO below 4 GiB.
LEFT_OUT = (range(0xA0, 0xC0), range(0xF0000, 0x100000))
# wc_version, wc_sec and wc_nsec of struct shared_info (x86).
CLOCK = range(0xC00, 0xC0C)
NO_FRAME = (1 << 64) - 1
# Where the RAM of an arm64 guest is, that of the lab's Linux guest, and the frames that stub-arm64.S fills.
ARM_BANK = range(0x4000_0000 // PAGE, 0x1_0000_0000 // PAGE)
ARM_LINUX = ARM_BANK[: (128 << 20) // PAGE]
ARM_STUB = ARM_BANK[1 : (32 << 20) // PAGE]


class Dump:
    """A dump as {frame: where its page is in the file}."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.places = {}

    def unpack(self, form, offset):
        return struct.unpack_from("<" + form, self.bytes, offset)

    def page(self, frame):
        place = self.places[frame]
        return self.bytes[place : place + PAGE]

    def add_range(self, address, offset, length):
        assert address % PAGE == 0 and length % PAGE == 0 and length > 0, f"{length:#x} bytes at {address:#x}"
        for at in range(0, length, PAGE):
            frame = (address + at) // PAGE
            assert frame not in self.places, f"frame {frame:#x} twice"
            self.places[frame] = offset + at


def elf(path):
    """An ELF core: its loadable segments."""
    dump = Dump(path)
    (table,), (entry, count) = dump.unpack("Q", 0x20), dump.unpack("HH", 0x36)
    for index in range(count):
        kind, _, offset, _, address, in_file, in_memory = dump.unpack("IIQQQQQ", table + index * entry)
        if kind == 1:
            assert in_file == in_memory, "a segment that is not whole in the file"
            dump.add_range(address, offset, in_file)
    return dump


def lime(path):
    dump, at = Dump(path), 0
    while at < len(dump.bytes):
        magic, version, first, last, _ = dump.unpack("IIQQQ", at)
        assert (magic, version) == (0x4C694D45, 1), f"no LiME header at {at:#x}"
        at += 32
        dump.add_range(first, at, last + 1 - first)
        at += last + 1 - first
    return dump


def xen(path, frames_if_cut_off=()):
    """What xl dump-core writes. If it was ended half way, the table of frames at the end of the file is missing; the
    pages are in ascending order of these frames."""
    dump = Dump(path)
    (table,), (count,) = dump.unpack("Q", 0x28), dump.unpack("H", 0x3C)
    # Not by name: the names are the very last thing in the file.
    pages, pages_size = dump.unpack("QQ", table + (count - 2) * 64 + 0x18)
    frames, frames_size, _, _, entry = dump.unpack("QQQQQ", table + (count - 1) * 64 + 0x18)
    if frames + frames_size <= len(dump.bytes):
        numbers = [dump.unpack("Q", at)[0] for at in range(frames, frames + frames_size, entry)]
        assert len(numbers) == pages_size // PAGE
    else:
        numbers = frames_if_cut_off[: max(0, len(dump.bytes) - pages) // PAGE]
    for index, frame in enumerate(numbers):
        if frame != NO_FRAME:  # which pads the end
            dump.add_range(frame * PAGE, pages + index * PAGE, PAGE)
    return dump


def only_the_clock_differs(page, other):
    """Xen sets the wall clock in the shared info page of a guest that is not PV, also while the guest is paused."""
    return page[: CLOCK.start] == other[: CLOCK.start] and page[CLOCK.stop :] == other[CLOCK.stop :]


def same(ours, theirs, special, may_lack=()):
    """Every page of theirs is in ours, but for those that ours may lack; `special` are Xen's."""
    lacking = [frame for frame in theirs.places if frame not in ours.places and frame not in may_lack]
    assert not lacking, f"{len(lacking)} frames are missing, the first is {lacking[0]:#x}"
    both = [frame for frame in theirs.places if frame in ours.places]
    different = [frame for frame in both if ours.page(frame) != theirs.page(frame)]
    if len(different) == 1 and different[0] in special:
        different = [frame for frame in different if not only_the_clock_differs(ours.page(frame), theirs.page(frame))]
    assert not different, f"{len(different)} of {len(both)} frames differ, the first is {different[0]:#x}"
    filled = sum(1 for frame in both if theirs.page(frame).count(0) != PAGE)
    assert filled > 1000, f"only {filled} of {len(both)} pages are not empty: that proves nothing"
    return f"{len(both)} pages are equal, {filled} of them not empty"


def frames_of(extents):
    return {frame for extent in extents for frame in range(extent["first"] // PAGE, extent["last"] // PAGE + 1)}


def output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


def check(name, function, *arguments):
    try:
        told = function(*arguments)
        print(f"PASS readers::{name}")
        if told:
            print(f"| {told}")
    except Exception as error:  # whatever goes wrong is this check's result
        print(f"FAIL readers::{name}")
        for line in f"{type(error).__name__}: {error}".splitlines()[-20:]:
            print(f"| {line}")
    sys.stdout.flush()


def holds_its_own_addresses(dump, frames):
    """What the stub guest (stub.S, stub-arm64.S) has written into each of these frames."""
    wrong = [frame for frame in frames if dump.page(frame) != struct.pack("<Q", frame * PAGE).ljust(PAGE, b"\0")]
    assert not wrong, f"{len(wrong)} of {len(frames)} frames are wrong, the first is {wrong[0]:#x}"
    return f"{len(frames)} frames hold what the guest has written"


def stub_holds_its_own_addresses_in_dump_core(path):
    """From 2 MiB on, as far as the dump goes."""
    dump = xen(path, [frame for frame in range(1 << 20) if not any(frame in left for left in LEFT_OUT)])
    frames = [frame for frame in dump.places if frame >= 512]
    assert len(frames) > 3000, f"only {len(frames)} frames"
    return holds_its_own_addresses(dump, frames)


def stub_holds_its_own_addresses_in_elf(path):
    """In all of its RAM but the frame of its program."""
    dump = elf(path)
    ram = {frame for frame in dump.places if frame in ARM_BANK}
    assert ram == {*ARM_STUB, ARM_STUB.start - 1}, f"{len(ram)} frames of RAM"
    return holds_its_own_addresses(dump, ARM_STUB)


class Guest:
    def __init__(self, folder):
        self.folder, self.kind = folder, folder.name
        self.facts = dict(line.split(" ", 1) for line in (folder / "facts").read_text().splitlines())
        self.canary = f"XENMAP-TMPFS-{self.kind}"
        extents = json.loads((folder / "map").read_text())["extents"]
        self.special = frames_of(extent for extent in extents if extent["kind"] == "special")
        self.mapped = frames_of(extent for extent in extents if extent["kind"] not in ("ballooned out", "broken"))

    def check(self, name, function, *arguments):
        check(f"{self.kind}_{name}", function, *arguments)

    def equals_what_xens_library_maps(self):
        theirs = Dump(self.folder / "frames")
        theirs.add_range(ARM_LINUX.start * PAGE, 0, len(theirs.bytes))
        assert [*theirs.places] == [*ARM_LINUX], f"{len(theirs.places)} frames"
        return same(elf(self.folder / "elf"), theirs, self.special)

    def has_what_core_lacks(self):
        ours, core = elf(self.folder / "elf"), xen(self.folder / "core")
        assert set(ARM_LINUX) <= ours.places.keys(), "a frame is missing in ours"
        assert not core.places, "xl dump-core has frames by now: say so in the README, and compare them"
        told = (f"{len(dump.places)} frames in {len(dump.bytes)} bytes" for dump in (core, ours))
        return "xl dump-core: {}; ours: {}".format(*told)

    def gdb_reads_the_canary(self, gdb):
        out = output_of(gdb, "-nx", "-batch", f"-core={self.folder}/elf", "-ex", f"x/s {self.facts['tmpfs']}")
        assert f'"{self.canary}' in out, out

    def volatility_finds_the_banner(self, dump):
        vol = Path(sys.executable).with_name("vol")
        cache = self.folder.parent / "cache"
        cache.mkdir(exist_ok=True)
        # Not by its first line, which names the folder that it was installed in.
        out = output_of(sys.executable, vol, "--offline", "-q", "--cache-path", cache, "-f", self.folder / dump, "banners.Banners")
        banners = [line.split("\t", 1)[1].strip() for line in out.splitlines() if "\t" in line]
        assert self.facts["version"] in banners, out

    def drgn_reads_the_canary(self):
        program = drgn.Program()
        program.set_core_dump(self.folder / "elf")
        found = program.read(int(self.facts["tmpfs"], 16), len(self.canary), physical=True)
        assert found == self.canary.encode(), found

    def drgn_knows_the_kernel(self):
        program = drgn.Program()
        program.set_core_dump(self.folder / "elf")
        version = self.facts["version"]
        release = program["UTS_RELEASE"].string_().decode()
        assert release == version.split()[2], release
        # By the kernel's own page tables, which the dump's notes lead to.
        found = program.read(int(self.facts["symbol"].split()[0], 16), len(version))
        assert found == version.encode(), found

    def formats_hold_the_same(self):
        dumps = [elf(self.folder / "elf"), lime(self.folder / "lime"), xen(self.folder / "xen")]
        assert all(dump.places.keys() == dumps[0].places.keys() for dump in dumps)
        same(dumps[0], dumps[1], self.special)
        return same(dumps[0], dumps[2], self.special)

    def map_is_what_is_dumped(self):
        assert elf(self.folder / "elf").places.keys() == self.mapped

    def equals_core(self):
        ours = elf(self.folder / "elf")
        frames = sorted(frame for frame in ours.places if not any(frame in left for left in LEFT_OUT))
        return same(ours, xen(self.folder / "core", frames), self.special)

    def thorough_equals_core(self):
        return same(elf(self.folder / "thorough"), xen(self.folder / "core"), self.special)

    def lacks_only_xens_frames(self):
        ours, core = elf(self.folder / "elf"), xen(self.folder / "core")
        told = same(ours, core, self.special, may_lack=self.special)
        return f"{told}; {len(core.places.keys() - ours.places.keys())} of Xen's are left out"


def main():
    folder, lane, kind = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    folders = sorted(path.parent for path in folder.glob("*/facts"))
    assert folders, "no guest was exported"
    if lane == "capi":
        check("stub_dump_core_holds_what_it_wrote", stub_holds_its_own_addresses_in_dump_core, folder / "stub/core")
        return
    if kind == "arm64":
        check("stub_dump_holds_what_it_wrote", stub_holds_its_own_addresses_in_elf, folder / "stub/elf")
    for guest in map(Guest, folders):
        if lane == "speed":
            guest.check("thorough_dump_equals_dump_core", guest.thorough_equals_core)
            guest.check("dump_lacks_only_frames_of_xens", guest.lacks_only_xens_frames)
            continue
        guest.check("formats_hold_the_same_pages", guest.formats_hold_the_same)
        guest.check("map_is_what_is_dumped", guest.map_is_what_is_dumped)
        if kind == "arm64":
            guest.check("dump_equals_what_xens_library_maps", guest.equals_what_xens_library_maps)
            guest.check("dump_has_what_dump_core_lacks", guest.has_what_core_lacks)
        else:
            guest.check("dump_equals_dump_core", guest.equals_core)
        gdb = "gdb-multiarch" if kind == "arm64" else "gdb"
        guest.check("gdb_reads_the_canary_in_elf", guest.gdb_reads_the_canary, gdb)
        for dump in ("elf", "lime", "xen"):
            guest.check(f"volatility_finds_the_banner_in_{dump}", guest.volatility_finds_the_banner, dump)
        guest.check("drgn_reads_the_canary_in_elf", guest.drgn_reads_the_canary)
        if guest.kind == "pvh":  # a PV guest's page tables hold machine addresses
            guest.check("drgn_knows_the_kernel_in_elf", guest.drgn_knows_the_kernel)


main()
