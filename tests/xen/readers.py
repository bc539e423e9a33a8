#!/usr/bin/env python3
"""Reads the dumps that a job has exported, with gdb, volatility3 and drgn, and with parsers of its own.

readers.py FOLDER contract|speed|capi pv|pvh|arm64: FOLDER has a folder for each guest, with the dumps and a file
`facts`, which has a name and a value per line. Prints PASS and FAIL lines, as the jobs do. Nothing here shares code
with the tool that wrote the dumps. Each check compares addresses: what a program finds must be where the guest has it.
"""

import errno
import json
import mmap
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import drgn

PAGE = 4096
# xl dump-core leaves these out for any guest that is not PV, RAM or not: the VGA window and the MMIO below 4 GiB.
LEFT_OUT = (range(0xA0, 0xC0), range(0xF0000, 0x100000))
# wc_version, wc_sec and wc_nsec of struct shared_info (x86).
CLOCK = range(0xC00, 0xC0C)
NO_FRAME = (1 << 64) - 1
# The first RAM bank of an arm64 guest, the RAM of the lab's Linux guest, and the frames that stub-arm64.S fills.
ARM_BANK = range(0x4000_0000 // PAGE, 0x1_0000_0000 // PAGE)
ARM_LINUX = ARM_BANK[: (128 << 20) // PAGE]
ARM_STUB = ARM_BANK[1 : (32 << 20) // PAGE]


class Dump:
    """A dump. `places` maps each frame to its page's offset in the file."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.places = {}

    def unpack(self, form, offset):
        return struct.unpack_from("<" + form, self.bytes, offset)

    def page(self, frame):
        place = self.places[frame]
        return self.bytes[place : place + PAGE]

    def read(self, address, length):
        frames = range(address // PAGE, (address + length - 1) // PAGE + 1)
        start = address % PAGE
        return b"".join(map(self.page, frames))[start : start + length]

    def add_range(self, address, offset, length):
        assert address % PAGE == 0 and length % PAGE == 0 and length > 0, f"{length:#x} bytes at {address:#x}"
        for at in range(0, length, PAGE):
            frame = (address + at) // PAGE
            assert frame not in self.places, f"frame {frame:#x} twice"
            self.places[frame] = offset + at

    def find(self, pattern):
        """Returns the addresses where a regular expression matches, also across page borders."""
        found = []
        for first, place, length in self.runs():
            for match in re.compile(pattern).finditer(self.bytes, place, place + length):
                found.append(first * PAGE + match.start() - place)
        return found

    def runs(self):
        """Returns runs of frames that are consecutive in the guest and in the file: [first frame, offset, bytes]."""
        runs = []
        for frame in sorted(self.places):
            place = self.places[frame]
            if runs and runs[-1][0] * PAGE + runs[-1][2] == frame * PAGE and runs[-1][1] + runs[-1][2] == place:
                runs[-1][2] += PAGE
            else:
                runs.append([frame, place, PAGE])
        return runs


def raw(path):
    """Leaves out the file's holes, which read as zeros: for a PVH guest they are nearly 4 GiB."""
    dump, end = Dump(path), 0
    with open(path, "rb") as file:
        while end < len(dump.bytes):
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # the rest is a hole
                    break
                raise
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            dump.add_range(start, start, end - start)
    return dump


def elf(path):
    """Reads the loadable segments of an ELF core."""
    dump = Dump(path)
    (table,), (entry, count) = dump.unpack("Q", 0x20), dump.unpack("HH", 0x36)
    for index in range(count):
        kind, _, offset, _, address, in_file, in_memory = dump.unpack("IIQQQQQ", table + index * entry)
        if kind == 1:
            assert in_file == in_memory, "a segment is not completely in the file"
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
    """Reads a dump of xl dump-core. If dump-core was stopped early, the table of frames at the end is missing, and the
    pages are those of `frames_if_cut_off`, in ascending order."""
    dump = Dump(path)
    (table,), (count,) = dump.unpack("Q", 0x28), dump.unpack("H", 0x3C)
    # By position, because the names are at the very end of the file.
    pages, pages_size = dump.unpack("QQ", table + (count - 2) * 64 + 0x18)
    frames, frames_size, _, _, entry = dump.unpack("QQQQQ", table + (count - 1) * 64 + 0x18)
    if frames + frames_size <= len(dump.bytes):
        numbers = [dump.unpack("Q", at)[0] for at in range(frames, frames + frames_size, entry)]
        assert len(numbers) == pages_size // PAGE
    else:
        numbers = frames_if_cut_off[: max(0, len(dump.bytes) - pages) // PAGE]
    for index, frame in enumerate(numbers):
        if frame != NO_FRAME:  # padding
            dump.add_range(frame * PAGE, pages + index * PAGE, PAGE)
    return dump


def low_frames():
    """Returns the frames below 4 GiB in the order in which xl dump-core writes them for a guest that is not PV, as if
    all were RAM. So a dump that was stopped early must not have reached the end of RAM."""
    return [frame for frame in range(1 << 20) if not any(frame in left for left in LEFT_OUT)]


def xen_sections(path):
    """Returns the sections of a dump of xl dump-core: the names in order, and the kinds and entry sizes. The names are
    None if dump-core was stopped early."""
    dump = Dump(path)
    (table,), (count, names) = dump.unpack("Q", 0x28), dump.unpack("HH", 0x3C)
    headers = [dump.unpack("IIQQQQIIQQ", table + index * 64) for index in range(count)]
    start, size = headers[names][4:6]
    text = dump.bytes[start : start + size]
    # Volatility3 relies on the order of the names, others on the offset in each header.
    in_order = text.removesuffix(b"\0").split(b"\0") if len(text) == size else None
    if in_order:
        assert in_order == [text[at : text.index(b"\0", at)] for at, *_ in headers], in_order
    return in_order, [(header[1], header[9]) for header in headers]


def only_the_clock_differs(page, other):
    """Xen sets the wall clock in the shared info page of a guest that is not PV, even while the guest is paused."""
    return page[: CLOCK.start] == other[: CLOCK.start] and page[CLOCK.stop :] == other[CLOCK.stop :]


def same(ours, theirs, special, may_lack=()):
    """Checks that ours has every page of theirs, except those it may lack. `special` are frames of Xen."""
    lacking = [frame for frame in theirs.places if frame not in ours.places and frame not in may_lack]
    assert not lacking, f"{len(lacking)} frames are missing, the first is {lacking[0]:#x}"
    both = [frame for frame in theirs.places if frame in ours.places]
    different = [frame for frame in both if ours.page(frame) != theirs.page(frame)]
    if len(different) == 1 and different[0] in special:
        different = [frame for frame in different if not only_the_clock_differs(ours.page(frame), theirs.page(frame))]
    assert not different, f"{len(different)} of {len(both)} frames differ, the first is {different[0]:#x}"
    filled = sum(1 for frame in both if theirs.page(frame).count(0) != PAGE)
    assert filled > 1000, f"only {filled} of {len(both)} pages are not empty, which proves nothing"
    return f"{len(both)} pages are equal, {filled} of them not empty"


def frames_of(extents):
    return {frame for extent in extents for frame in range(extent["first"] // PAGE, extent["last"] // PAGE + 1)}


def output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    return done.stdout + done.stderr


def banners(path, cache):
    """Returns the kernel banners that volatility3 finds, as {address: text}. It finds them in order, and stops at the
    first that is too close to the end of RAM to read what follows, such as the one in a PVH guest's console."""
    vol = Path(sys.executable).with_name("vol")
    cache.mkdir(exist_ok=True)
    # With this interpreter, because the script's first line names the folder that it was installed in.
    out = output_of(sys.executable, vol, "--offline", "-q", "--cache-path", cache, "-f", path, "banners.Banners")
    rows = (line.split("\t", 1) for line in out.splitlines() if line.startswith("0x") and "\t" in line)
    return {int(address, 16): text.strip() for address, text in rows}


def banner_is_at(path, form, cache, version, truth):
    """Checks that volatility3 finds the text at exactly these addresses."""
    found = [address for address, text in banners(path, cache).items() if text == version]
    if form == "xen":  # here, volatility3 finds nothing across a page border
        found, truth = ([at for at in places if at % PAGE <= PAGE - len(version)] for places in (found, truth))
    assert truth and sorted(found) == sorted(truth), f"found at {hexes(found)}, expected at {hexes(truth)}"
    return f"at {hexes(found)}"


def gdb_reads(gdb, path, address, text):
    out = output_of(gdb, "-nx", "-batch", f"-core={path}", "-ex", f"x/s {address:#x}")
    assert f'{address:#x}:\t"{text}' in out, out


def drgn_reads(path, address, content):
    program = drgn.Program()
    program.set_core_dump(path)
    found = program.read(address, len(content), physical=True)
    assert found == content, found[:64]


def hexes(addresses):
    return " ".join(f"{address:#x}" for address in addresses) or "no address"


def check(name, function, *arguments):
    try:
        detail = function(*arguments)
        print(f"PASS readers::{name}")
        if detail:
            print(f"| {detail}")
    except Exception as error:  # any error fails this check only
        print(f"FAIL readers::{name}")
        for line in f"{type(error).__name__}: {error}".splitlines()[-20:]:
            print(f"| {line}")
        return False
    finally:
        sys.stdout.flush()
    return True


def holds_its_own_addresses(dump, frames):
    """Checks that each of these frames holds what the stub guest (stub.S, stub-arm64.S) has written."""
    wrong = [frame for frame in frames if dump.page(frame) != struct.pack("<Q", frame * PAGE).ljust(PAGE, b"\0")]
    assert not wrong, f"{len(wrong)} of {len(frames)} frames are wrong, the first is {wrong[0]:#x}"
    return f"{len(frames)} frames hold what the guest wrote"


def stub_holds_its_own_addresses_in_dump_core(path):
    """Checks the frames from 2 MiB to the end of the dump."""
    dump = xen(path, low_frames())
    frames = [frame for frame in dump.places if frame >= 512]
    assert len(frames) > 3000, f"only {len(frames)} frames"
    return holds_its_own_addresses(dump, frames)


def stub_holds_its_own_addresses_in_elf(path):
    """Checks all of its RAM except the frame of its program."""
    dump = elf(path)
    ram = {frame for frame in dump.places if frame in ARM_BANK}
    assert ram == {*ARM_STUB, ARM_STUB.start - 1}, f"{len(ram)} frames of RAM"
    return holds_its_own_addresses(dump, ARM_STUB)


FORMATS = {"raw": raw, "elf": elf, "lime": lime, "xen": xen}


class Guest:
    def __init__(self, folder):
        self.folder, self.kind = folder, folder.name
        self.facts = dict(line.split(" ", 1) for line in (folder / "facts").read_text().splitlines())
        self.canary = f"XENMAP-TMPFS-{self.kind}"
        self.tmpfs = int(self.facts.get("tmpfs") or "-1", 16)
        extents = json.loads((folder / "map").read_text())["extents"]
        self.special = frames_of(extent for extent in extents if extent["kind"] == "special")
        self.end_of_ram = max(extent["last"] for extent in extents if extent["kind"] == "ram") + 1
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
        assert set(ARM_LINUX) <= ours.places.keys(), "our dump lacks a frame"
        assert not core.places, "xl dump-core now has frames: update docs/arm64.md, and compare them"
        sizes = (f"{len(dump.places)} frames in {len(dump.bytes)} bytes" for dump in (core, ours))
        return "xl dump-core: {}; ours: {}".format(*sizes)

    def search_found_every_string(self):
        """Checks that `search` found all strings and nothing else, in every format."""
        lines = (self.folder / "strings").read_text().splitlines()  # "ADDRESS TEXT"
        strings = {int(address, 16): text for address, text in (line.split(" ", 1) for line in lines)}
        for name, read in FORMATS.items():
            dump = read(self.folder / name)
            found = dump.find(b"XENMAP-")
            assert found == sorted(strings), f"search: {hexes(sorted(strings))}, {name}: {hexes(found)}"
            for address, text in strings.items():
                assert dump.read(address, len(text)) == text.encode(), f"{name} at {address:#x}: not {text}"
        assert strings.get(self.tmpfs) == self.canary, self.facts["tmpfs"]
        return f"{len(strings)} strings are where the search found them, in {len(FORMATS)} formats"

    def banner_places(self):
        """Returns where the raw dump has the version, followed by any white space and NUL. A hole reads as NULs."""
        return raw(self.folder / "raw").find(re.escape(self.facts["version"].encode()) + rb"\s*(\0|\Z)")

    def volatility_finds_the_banner(self, dump):
        path, cache = self.folder / dump, self.folder.parent / "cache"
        if dump == "raw":
            path = self.raw_up_to_the_end_of_ram()
        return banner_is_at(path, dump, cache, self.facts["version"], self.banner_places())

    def raw_up_to_the_end_of_ram(self):
        """Returns a copy. With the holes after a PVH guest's RAM, nearly 4 GiB, volatility3 takes half a minute."""
        copy = self.folder / "raw-ram"
        subprocess.run(["cp", "--sparse=always", self.folder / "raw", copy], check=True)
        os.truncate(copy, self.end_of_ram)
        return copy

    def volatility_reads_no_core_of_a_pv_guest(self, dump):
        found = banners(self.folder / dump, self.folder.parent / "cache")
        wrong = [address for address, text in found.items() if text == self.facts["version"]]
        assert wrong, "volatility3 finds no banner at all"
        reads = set(wrong) == set(self.banner_places())
        assert not reads, "volatility3 now reads .xen_p2m: update docs/introspection.md, and check the addresses"

    def sections_are_those_of_dump_core(self):
        """Checks that the sections are the same, in the same order. We have no shared info, and a dump-core that was
        stopped early has no names."""
        (names, kinds), (core_names, core_kinds) = xen_sections(self.folder / "xen"), xen_sections(self.folder / "core")
        shared_info = 4
        assert core_names is None or core_names.pop(shared_info) == b".xen_shared_info", core_names
        core_kinds.pop(shared_info)
        # Ours has no registers of vcpus, and so no entry size for them.
        registers = 3
        core_kinds[registers] = kinds[registers]
        assert kinds == core_kinds, f"{kinds} {core_kinds}"
        assert core_names in (None, names), f"{names} {core_names}"
        return " ".join(name.decode() for name in names)

    def gdb_reads_the_canary(self, gdb):
        gdb_reads(gdb, self.folder / "elf", self.tmpfs, self.canary)

    def drgn_reads_the_canary(self):
        page = raw(self.folder / "raw").page(self.tmpfs // PAGE)
        assert page.startswith(self.canary.encode(), self.tmpfs % PAGE), "the raw dump does not have it there"
        drgn_reads(self.folder / "elf", self.tmpfs // PAGE * PAGE, page)

    def drgn_knows_the_kernel(self):
        program = drgn.Program()
        program.set_core_dump(self.folder / "elf")
        version = self.facts["version"]
        release = program["UTS_RELEASE"].string_().decode()
        assert release == version.split()[2], release
        # Uses the kernel's own page tables, which the dump's notes lead to.
        found = program.read(int(self.facts["symbol"].split()[0], 16), len(version))
        assert found == version.encode(), found

    def formats_hold_the_same(self):
        dumps = [elf(self.folder / "elf"), lime(self.folder / "lime"), xen(self.folder / "xen")]
        assert all(dump.places.keys() == dumps[0].places.keys() for dump in dumps)
        same(dumps[0], dumps[1], self.special)
        holes = raw(self.folder / "raw")
        lacking = {frame for frame in holes.places if frame not in dumps[0].places}
        same(dumps[0], holes, self.special, may_lack=lacking)
        assert all(holes.page(frame).count(0) == PAGE for frame in lacking), "raw has data that no other format has"
        in_holes = dumps[0].places.keys() - holes.places.keys()
        assert all(dumps[0].page(frame).count(0) == PAGE for frame in in_holes), "raw has holes where there is data"
        return same(dumps[0], dumps[2], self.special)

    def map_is_what_is_dumped(self):
        assert elf(self.folder / "elf").places.keys() == self.mapped

    def equals_core(self):
        return same(elf(self.folder / "elf"), xen(self.folder / "core", low_frames()), self.special)

    def thorough_equals_core(self):
        return same(elf(self.folder / "thorough"), xen(self.folder / "core"), self.special)

    def lacks_only_xens_frames(self):
        ours, core = elf(self.folder / "elf"), xen(self.folder / "core")
        summary = same(ours, core, self.special, may_lack=self.special)
        return f"{summary}; ours leaves out {len(core.places.keys() - ours.places.keys())} frames of Xen"


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
        guest.check("search_found_every_string", guest.search_found_every_string)
        for dump in FORMATS:
            if guest.kind == "pv" and dump == "xen":
                for core in ("xen", "core"):
                    name = f"volatility_reads_no_{core}_of_a_pv_guest"
                    guest.check(name, guest.volatility_reads_no_core_of_a_pv_guest, core)
            else:
                guest.check(f"volatility_finds_the_banner_in_{dump}", guest.volatility_finds_the_banner, dump)
        if kind != "arm64":
            guest.check("xen_has_the_sections_of_dump_core", guest.sections_are_those_of_dump_core)
        guest.check("drgn_reads_the_canary_in_elf", guest.drgn_reads_the_canary)
        if guest.kind == "pvh":  # a PV guest's page tables hold machine addresses
            guest.check("drgn_knows_the_kernel_in_elf", guest.drgn_knows_the_kernel)


if __name__ == "__main__":
    main()
