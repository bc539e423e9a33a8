# shellcheck shell=bash disable=SC2154
# Our libxenforeignmemory.so.1, and what the capi lane adds to dom0: that library in place of Debian's, where its
# functions are, C programs that use it, and a guest to use them on.

libraries=lib/x86_64-linux-gnu
library=$libraries/libxenforeignmemory.so.1

need_capi_packages() {
    local missing=()
    command -v gcc >/dev/null || missing+=(gcc)
    [ -e /usr/include/xenforeignmemory.h ] || missing+=(libxen-dev)
    ((${#missing[@]} == 0)) || { echo "xen-lab: these packages are missing: apt-get install ${missing[*]}" >&2; exit 2; }
}

# build_library FOLDER: puts our libxenforeignmemory.so.1 there.
build_library() {
    say "building our libxenforeignmemory.so.1"
    # Not static, as the other programs are.
    env -u RUSTFLAGS CARGO_TARGET_DIR="$lab/cargo" "$root/capi/install" "$work/capi" >"$work/capi.log" 2>&1 ||
        { cat "$work/capi.log" >&2; die "capi/install failed"; }
    cp -L "$work/capi/lib/${library##*/}" "$1/"
}

prepare_capi() {
    local overlay=$work/overlay source
    mkdir -p "$overlay/$libraries" "$overlay/lab/original"
    build_library "$overlay/$libraries"
    cp "$cache/base/$library" "$overlay/lab/original/"
    (cd "$overlay" && sha256sum "$library") >"$overlay/lab/library.sha256"
    write_probes >"$overlay/lab/probes"
    # In one piece from 1 MiB on, where nothing is in a guest's way.
    gcc -m32 -nostdlib -static -Wl,--build-id=none -Wl,-Ttext-segment=0x100000 "$here/stub.S" -o "$overlay/lab/stub"
    for source in "$root"/tests/capi/xen_*.c; do
        gcc -O2 -Wall -pthread "$source" -o "$overlay/tests/$(basename "$source" .c)" \
            -lxenforeignmemory -lxentoolcore -lxentoollog || die "$source does not compile"
    done
}

# For the kernel's uprobe_events: a probe on each return of what opens and what maps, with what it returned.
write_probes() {
    local call offset
    for call in open map map2 map_resource; do
        offset=$(file_offset "$work/overlay/$library" xenforeignmemory_$call)
        echo "r:capi/$call /$library:$offset ret=\$retval"
    done
}

# file_offset FILE FUNCTION: by the function's address and the segment that holds it.
file_offset() {
    local address offset start size
    address=$((16#$(nm -D "$1" | sed -n "s/ T $2@@.*//p")))
    while read -r offset start size; do
        if ((address >= start && address < start + size)); then
            printf '0x%x\n' $((address - start + offset))
            return
        fi
    done < <(readelf -lW "$1" | awk '$1 == "LOAD" { print $2, $3, $5 }')
    die "$2 is not in $1"
}
