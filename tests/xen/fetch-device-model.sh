# shellcheck shell=bash disable=SC2154
# Downloads what only the capi and io lanes need from Debian, into a cpio of its own: the device model of HVM guests with its
# firmware, and Xen's own tests. See fetch.sh for the rest.

device_model_packages=(qemu-system-xen xen-utils-4.17)
device_model_programs=(usr/libexec/xen-qemu-system-i386 usr/lib/xen-4.17/bin/test-{resource,paging-mempool})
# hvmloader and its BIOS; the option ROM with which the BIOS boots a kernel without a disk; a keymap, which QEMU
# requires even without a keyboard.
device_model_data=(usr/lib/xen-4.17/boot/hvmloader usr/share/seabios/bios-256k.bin
                   usr/share/qemu/{linuxboot.bin,keymaps/en-us})

# Sets $device_model to the folder for these package versions and this recipe, and fills it if it is new. own_apt reads
# the locals.
fetch_device_model() {
    local debs packages=("${device_model_packages[@]}")
    exec 9>"$lab/lock"
    flock 9
    find_device_model || { update_own_lists; find_device_model; } || die "apt finds no candidate for: ${packages[*]}"
    if [ ! -e "$device_model/complete" ]; then
        say "downloading Debian's device model of HVM guests (40 MB)"
        download_device_model || { update_own_lists; find_device_model && download_device_model; } ||
            { cat "$lab/apt/log" >&2; die "the download failed"; }
        unpack_device_model
        touch "$device_model/complete"
    fi
    exec 9>&-
}

find_device_model() {
    local uris
    debs=$lab/apt/archives
    uris=$(own_apt install --print-uris "${packages[@]}" 2>"$lab/apt/log") || return
    device_model=$lab/device-model-$(cat - "$here/fetch-device-model.sh" <<<"$uris" | sha256sum | cut -c1-16)
    debs=$device_model/debs
}

download_device_model() {
    rm -rf "$lab"/device-model-*
    mkdir -p "$device_model"
    own_apt install --download-only "${packages[@]}" >"$lab/apt/log" 2>&1
}

unpack_device_model() {
    local all=$device_model/all tree=$device_model/tree deb file
    local ld=$all/lib64/ld-linux-x86-64.so.2 libs=$all/lib/x86_64-linux-gnu:$all/usr/lib/x86_64-linux-gnu
    mkdir -p "$all" "$tree/lib/x86_64-linux-gnu"
    for deb in "$debs"/*.deb; do
        case ${deb##*/} in lib* | zlib* | xen* | seabios* | qemu-system-*) dpkg -x "$deb" "$all" ;; esac
    done
    for file in "${device_model_programs[@]}" "${device_model_data[@]}"; do install -D "$all/$file" "$tree/$file"; done
    for file in "${device_model_programs[@]}"; do "$ld" --library-path "$libs" --list "$all/$file"; done |
        sed -n 's/.* => \([^ ]*\) .*/\1/p' | sort -u | while read -r file; do
        [ -e "$cache/base/lib/x86_64-linux-gnu/${file##*/}" ] || cp -L "$file" "$tree/lib/x86_64-linux-gnu/"
    done
    pack "$tree" "$device_model/device-model.cpio"
    rm -rf "$all" "$debs"
}
