#!/usr/bin/env python3
"""Checks that volatility3, gdb and drgn read dumps of a simulated guest, and its mount, at the right addresses.

readers.py TOOL FOLDER: dumps with the tool (cli/) into FOLDER, which must not exist; mounting needs root and /dev/fuse.
tests/readers runs it. The checks
are those of the lab (tests/xen/readers.py), and each must fail for a dump that is off by one page.
"""

import contextlib
import re
import struct
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("xen")))
import readers  # noqa: E402

PAGE = readers.PAGE
BANNER = "Linux version 6.1.0-test (a@b) (gcc 12.2.0, GNU ld 2.40) #1 SMP TEST"
# Within a page, across a page border, and in another extent.
PLACES = [0x15010, 0x1FFF0, 0x400010]


def make_ram(path):
    with open(path, "wb") as file:
        # 64 frames, and two more at 4 MiB. Frame n is filled with the number n + 1.
        for frame in [*range(64), 1024, 1025]:
            file.seek(frame * PAGE)
            file.write(struct.pack("<Q", frame + 1) * (PAGE // 8))
        for place in PLACES:
            file.seek(place)
            file.write(BANNER.encode() + b"\n\0")


def shifted(path, form):
    """Writes a copy of the dump in which each page has the address of the next one."""
    content = bytearray(path.read_bytes())

    def add(offset, number):
        struct.pack_into("<Q", content, offset, struct.unpack_from("<Q", content, offset)[0] + number)

    dump = readers.FORMATS[form](path)
    if form == "raw":
        content = bytes(PAGE) + content
    elif form == "lime":
        for _, place, _ in dump.runs():
            add(place - 24, PAGE), add(place - 16, PAGE)
    elif form == "elf":
        (table,), (count,) = dump.unpack("Q", 0x20), dump.unpack("H", 0x38)
        for header in range(table, table + count * 56, 56):
            if dump.unpack("I", header)[0] == 1:
                add(header + 16, PAGE), add(header + 24, PAGE)
    else:
        (table,), (count,) = dump.unpack("Q", 0x28), dump.unpack("H", 0x3C)
        start, size, _, _, entry = dump.unpack("QQQQQ", table + (count - 1) * 64 + 0x18)
        for offset in range(start, start + size, entry):
            add(offset, 1)
    broken = path.with_name(f"{path.name}-shifted")
    broken.write_bytes(content)
    return broken


def fails(function, *arguments):
    """Checks that a check fails."""
    try:
        function(*arguments)
    except AssertionError as error:
        return f"{function.__name__}: {error}".splitlines()[0]
    raise AssertionError("a dump that is off by one page passed")


def has_the_pages(path, form):
    dump = readers.FORMATS[form](path)
    found = dump.find(re.escape(BANNER.encode()) + rb"\n\0")
    assert found == PLACES, readers.hexes(found)
    for frame in [0, 63, 1024, 1025]:
        number = struct.unpack_from("<Q", dump.page(frame), PAGE - 8)[0]
        assert number == frame + 1, f"frame {frame} holds {number}"


def volatility_does_not_read(path, cache):
    found = [address for address, text in readers.banners(path, cache).items() if text == BANNER]
    advice = "volatility3 now reads .xen_p2m: update docs/introspection.md, and check the addresses"
    assert found and found != PLACES, advice


def gdb_finds_the_banners(path):
    for place in PLACES:
        readers.gdb_reads("gdb", path, place, BANNER)


def drgn_finds_the_banners(path):
    for place in PLACES:
        readers.drgn_reads(path, place, BANNER.encode())


@contextlib.contextmanager
def mounted(tool, source, directory):
    directory.mkdir()
    with subprocess.Popen([tool, "mount", *source, directory], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline().startswith(b"mounted at"), "it could not be mounted"
            yield directory
        finally:
            process.terminate()


def main():
    tool, folder = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    folder.mkdir()
    make_ram(folder / "ram")
    good = True

    def check(name, function, *arguments):
        nonlocal good
        good &= readers.check(name, function, *arguments)

    for kind in ("pvh", "pv"):
        for form in readers.FORMATS:
            dump = folder / f"{kind}.{form}"
            command = [tool, "--mock", folder / "ram", "--mock-kind", kind, "dump", "--format", form, dump]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            broken = shifted(dump, form)
            cases = [("pages_are_at_their_addresses", has_the_pages, (form,))]
            if form == "elf":
                cases += [("gdb_finds_the_banners", gdb_finds_the_banners, ())]
                cases += [("drgn_finds_the_banners", drgn_finds_the_banners, ())]
            if (kind, form) == ("pv", "xen"):
                check("pv_xen_volatility_does_not_read_it", volatility_does_not_read, dump, folder / "cache")
            else:
                arguments = (form, folder / "cache", BANNER, PLACES)
                cases += [("volatility_finds_the_banners", readers.banner_is_at, arguments)]
            for name, function, arguments in cases:
                check(f"{kind}_{form}_{name}", function, dump, *arguments)
                check(f"{kind}_{form}_{name}_or_fails", fails, function, broken, *arguments)
        with mounted(tool, ["--mock", folder / "ram", "--mock-kind", kind], folder / f"{kind}-mount") as mount:
            check(f"{kind}_mount_gdb_finds_the_banners", gdb_finds_the_banners, mount / "ram.elf")
            check(f"{kind}_mount_drgn_finds_the_banners", drgn_finds_the_banners, mount / "ram.elf")
            for form, file in (("raw", "ram"), ("elf", "ram.elf"), ("lime", "ram.lime")):
                arguments = (mount / file, form, folder / "cache", BANNER, PLACES)
                check(f"{kind}_mount_{form}_volatility_finds_the_banners", readers.banner_is_at, *arguments)
        names, _ = readers.xen_sections(folder / f"{kind}.xen")
        print("|", *(name.decode() for name in names))
    sys.exit(not good)


main()
