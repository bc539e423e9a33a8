# shellcheck shell=bash disable=SC2154
# Builds our libxenforeignmemory.so.1, and what the capi lane adds to dom0: that library in place of Debian's, the
# places of its functions, C programs that use it, and a guest for them.

library=lib/x86_64-linux-gnu/libxenforeignmemory.so.1

# build_library FOLDER: builds our libxenforeignmemory.so.1 into it.
build_library() {
    say "building our libxenforeignmemory.so.1"
    link_libraries
    # Without the RUSTFLAGS for static programs.
    env -u RUSTFLAGS CARGO_TARGET_DIR="$lab/cargo" CARGO_BUILD_TARGET=$triple CC="${cross}gcc -L$work/link" \
        OBJCOPY="${cross}objcopy" AR="${cross}ar" "$root/capi/install" "$work/capi" >"$work/capi.log" 2>&1 ||
        { cat "$work/capi.log" >&2; die "capi/install failed"; }
    cp -L "$work/capi/lib/${library##*/}" "$1/"
}

# Links dom0's own libraries in $work/link, under the names that a linker looks for.
link_libraries() {
    local name
    mkdir -p "$work/link"
    for name in libxenforeignmemory libxentoolcore libxentoollog; do
        ln -s "$cache/base/${library%/*}/$name.so.1" "$work/link/$name.so"
    done
}

# compile SOURCE PROGRAM: compiles C for dom0.
compile() {
    "${cross}gcc" -O2 -Wall -pthread "$1" -o "$2" "-L$work/link" -lxenforeignmemory -lxentoolcore -lxentoollog ||
        die "$1 does not compile"
}

# build_stub FILE: links it at 1 MiB, in one segment; a guest has nothing else there.
build_stub() { gcc -m32 -nostdlib -static -Wl,--build-id=none -Wl,-Ttext-segment=0x100000 "$here/stub.S" -o "$1"; }

prepare_capi() {
    local overlay=$work/overlay source
    mkdir -p "$overlay/${library%/*}" "$overlay/lab/original"
    build_library "$overlay/${library%/*}"
    cp "$cache/base/$library" "$overlay/lab/original/"
    (cd "$overlay" && sha256sum "$library") >"$overlay/lab/library.sha256"
    write_probes >"$overlay/lab/probes"
    build_stub "$overlay/lab/stub"
    [[ $kind == arm64 ]] || prepare_hvm
    for source in "$root"/capi/tests/xen_*.c; do compile "$source" "$overlay/tests/$(basename "$source" .c)"; done
}

# The disk of HVM guests: what serves it, and its boot sector.
prepare_hvm() {
    build_device_model
    gcc -m32 -nostdlib -static -Wl,--build-id=none -Wl,-Ttext=0x7c00 -Wl,--oformat=binary "$here/boot.S" \
        -o "$work/overlay/lab/boot"
}

# Writes probes for the kernel's uprobe_events, on the returns of the functions that open and map, with their results.
write_probes() {
    local call address size
    for call in open map map2 map_resource; do
        read -r address size _ < <("${cross}nm" -DS "$work/overlay/$library" | grep " T xenforeignmemory_$call@@") ||
            die "$library has no xenforeignmemory_$call"
        probe_returns $call $((16#$address)) $((16#$size))
    done
}

# probe_returns CALL ADDRESS SIZE: writes the probes for one function.
probe_returns() { echo "r:capi/$1 /$library:$(file_offset "$2") ret=\$retval"; }

# file_offset ADDRESS: the address's offset in the library's file.
file_offset() {
    local offset start size
    while read -r offset start size; do
        if (($1 >= start && $1 < start + size)); then
            printf '0x%x\n' $(($1 - start + offset))
            return
        fi
    done < <(readelf -lW "$work/overlay/$library" | awk '$1 == "LOAD" { print $2, $3, $5 }')
    die "no segment of $library contains $1"
}
