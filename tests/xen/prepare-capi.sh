# shellcheck shell=bash disable=SC2154
# Our libxenforeignmemory.so.1, and what the capi lane adds to dom0: that library in place of Debian's, where its
# functions are, C programs that use it, and a guest to use them on.

library=lib/x86_64-linux-gnu/libxenforeignmemory.so.1

# build_library FOLDER: puts our libxenforeignmemory.so.1 there.
build_library() {
    say "building our libxenforeignmemory.so.1"
    link_libraries
    # Not static, as the other programs are.
    env -u RUSTFLAGS CARGO_TARGET_DIR="$lab/cargo" CARGO_BUILD_TARGET=$triple CC="${cross}gcc -L$work/link" \
        OBJCOPY="${cross}objcopy" AR="${cross}ar" "$root/capi/install" "$work/capi" >"$work/capi.log" 2>&1 ||
        { cat "$work/capi.log" >&2; die "capi/install failed"; }
    cp -L "$work/capi/lib/${library##*/}" "$1/"
}

# $work/link: dom0's own libraries, under the names that a linker looks for.
link_libraries() {
    local name
    mkdir -p "$work/link"
    for name in libxenforeignmemory libxentoolcore libxentoollog; do
        ln -s "$cache/base/${library%/*}/$name.so.1" "$work/link/$name.so"
    done
}

# compile SOURCE PROGRAM: of C, for dom0.
compile() {
    "${cross}gcc" -O2 -Wall -pthread "$1" -o "$2" "-L$work/link" -lxenforeignmemory -lxentoolcore -lxentoollog ||
        die "$1 does not compile"
}

# build_stub FILE: in one piece from 1 MiB on, where nothing is in a guest's way.
build_stub() { gcc -m32 -nostdlib -static -Wl,--build-id=none -Wl,-Ttext-segment=0x100000 "$here/stub.S" -o "$1"; }

prepare_capi() {
    local overlay=$work/overlay source
    mkdir -p "$overlay/${library%/*}" "$overlay/lab/original"
    build_library "$overlay/${library%/*}"
    cp "$cache/base/$library" "$overlay/lab/original/"
    (cd "$overlay" && sha256sum "$library") >"$overlay/lab/library.sha256"
    write_probes >"$overlay/lab/probes"
    build_stub "$overlay/lab/stub"
    for source in "$root"/capi/tests/xen_*.c; do compile "$source" "$overlay/tests/$(basename "$source" .c)"; done
}

# For the kernel's uprobe_events: probes on the returns of what opens and what maps, with what it returned.
write_probes() {
    local call address size
    for call in open map map2 map_resource; do
        read -r address size _ < <("${cross}nm" -DS "$work/overlay/$library" | grep " T xenforeignmemory_$call@@") ||
            die "$library has no xenforeignmemory_$call"
        probe_returns $call $((16#$address)) $((16#$size))
    done
}

# probe_returns CALL ADDRESS SIZE: of the function that does it.
probe_returns() { echo "r:capi/$1 /$library:$(file_offset "$2") ret=\$retval"; }

# file_offset ADDRESS: in the library, by the segment that holds it.
file_offset() {
    local offset start size
    while read -r offset start size; do
        if (($1 >= start && $1 < start + size)); then
            printf '0x%x\n' $(($1 - start + offset))
            return
        fi
    done < <(readelf -lW "$work/overlay/$library" | awk '$1 == "LOAD" { print $2, $3, $5 }')
    die "nothing of $library is at $1"
}
