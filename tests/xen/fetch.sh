# shellcheck shell=bash disable=SC2034,SC2154
# Downloads and unpacks Debian's Xen, kernel and tools under $lab (target/xen-lab), and builds the files that all boots
# share: $cache/xen.elf, vmlinuz and base.cpio. It installs nothing.

arch=amd64
# The packages of dom0; apt adds their dependencies.
packages=(xen-hypervisor-4.17-amd64 xen-utils-4.17 xenstore-utils linux-image-amd64 busybox-static strace)
# The programs that dom0 gets.
programs=(usr/lib/xen-4.17/bin/{xl,xenstored,xenconsoled,xenconsole,xen-init-dom0,libxl-save-helper}
          usr/bin/{strace,xenstore-ls})
# Xen's devices; virtio and 9p for the shared folder; what the device lane's guests, and dom0, need to mount a disk.
modules=(drivers/xen/{xen-privcmd,xen-evtchn,xen-gntdev,xen-gntalloc,xenfs/xenfs}.ko
         drivers/virtio/{virtio,virtio_ring,virtio_pci_legacy_dev,virtio_pci_modern_dev,virtio_pci}.ko
         fs/netfs/netfs.ko fs/fscache/fscache.ko net/9p/{9pnet,9pnet_virtio}.ko fs/9p/9p.ko
         drivers/block/{virtio_blk,loop}.ko
         crypto/crc32c_generic.ko lib/crc16.ko fs/mbcache.ko fs/jbd2/jbd2.ko fs/ext4/ext4.ko)
extra_libraries=(libxenforeignmemory.so.1 libgcc_s.so.1) # a bench opens them
recipe=("$here/fetch.sh") # $cache depends on these files and on the packages

# From PyPI: programs that read dumps.
reader_packages=(volatility3==2.28.2 pefile==2024.8.26 drgn==0.3.0)

say() { printf '%s\n' "xen-lab: $*"; }
die() { printf '%s\n' "xen-lab: $*" >&2; exit 1; }

# PROGRAM-OR-FILE:PACKAGE, where the package is Debian's.
needed=(qemu-system-x86_64:qemu-system-x86 cpio:cpio gdb:gdb)
needed_for_c=(gcc:gcc /usr/include/xenforeignmemory.h:libxen-dev)

# need PROGRAM-OR-FILE:PACKAGE...: fails if one is missing.
need() {
    local pair missing=()
    for pair; do
        [[ ${pair%:*} == /* && -e ${pair%:*} ]] || command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
    if ((${#missing[@]})); then
        echo "xen-lab: these packages are missing: apt-get install ${missing[*]}" >&2
        exit 2
    fi
    command -v apt-get >/dev/null || die "apt-get is needed to download Debian's Xen; use Debian 12"
    command -v cargo >/dev/null || die "cargo is needed to build the test programs"
}

# apt with a state of its own: an empty list of installed packages, so that it downloads all dependencies, regardless
# of what this machine has; and its own caches and locks, so that it does not need root.
own_apt() {
    mkdir -p "$debs/partial" "$lab/apt/lists/partial"
    : >"$lab/apt/status"
    local lists=()
    # Our own lists, once the machine's were missing or stale (see fetch).
    [ -e "$lab/apt/use-own-lists" ] && lists=(-o "Dir::State::lists=$lab/apt/lists")
    LC_ALL=C apt-get -qy --no-install-recommends -o "Dir::State::status=$lab/apt/status" -o "Dir::Cache=$lab/apt" \
        -o "Dir::Cache::archives=$debs/" -o APT::Sandbox::User="$(id -un)" -o APT::Architecture=$arch \
        -o APT::Architectures::=$arch -o Debug::NoLocking=1 "${lists[@]}" "$@" </dev/null
}

update_own_lists() {
    say "downloading package lists (apt-get update, into $lab/apt/lists)"
    touch "$lab/apt/use-own-lists"
    own_apt update >"$lab/apt/log" 2>&1 || true
}

# Sets $cache to the folder for these package versions and this recipe, and fills it if it is new.
fetch() {
    mkdir -p "$lab/apt"
    exec 9>"$lab/lock" # another run may be fetching too
    flock 9
    if ! find_packages; then
        update_own_lists
        find_packages || { cat "$lab/apt/log" >&2; die "apt finds no candidate for: ${packages[*]}"; }
    fi
    if [ ! -e "$cache/complete" ]; then
        say "downloading Debian's Xen, kernel and tools (${download_size:-100} MB)"
        if ! download; then
            # The lists name versions that the mirror no longer has.
            update_own_lists
            if ! find_packages || ! download; then
                cat "$lab/apt/log" >&2
                die "the download failed"
            fi
        fi
        unpack_packages
        touch "$cache/complete"
    fi
    exec 9>&-
}

find_packages() {
    local uris
    debs=$lab/apt/archives # apt creates a lock there even if it downloads nothing
    uris=$(own_apt install --print-uris "${packages[@]}" 2>"$lab/apt/log") || return
    debs=$lab/debs-$(sha256sum <<<"$uris" | cut -c1-16)
    cache=$lab/cache-$(cat - "${recipe[@]}" <<<"$uris" | sha256sum | cut -c1-16)
}

download() {
    find "$lab" -maxdepth 1 \( -name 'cache-*' -o -name 'debs-*' ! -path "$debs" \) -exec rm -rf {} +
    own_apt install --download-only "${packages[@]}" >"$lab/apt/log" 2>&1
}

unpack_packages() {
    local all=$cache/all base=$cache/base deb lib module
    local ld=$all/lib64/ld-linux-x86-64.so.2 libs=$all/lib/x86_64-linux-gnu:$all/usr/lib/x86_64-linux-gnu
    say "unpacking $(find "$debs" -name '*.deb' | wc -l) packages"
    mkdir -p "$all" "$base"/{bin,dev,proc,sys,tmp,lib64,lib/x86_64-linux-gnu,lib/modules}
    for deb in "$debs"/*.deb; do
        case ${deb##*/} in
        linux-image-[0-9]*)
            dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$all" --wildcards './boot/vmlinuz-*' "${modules[@]/#/*/kernel/}" ;;
        lib* | zlib* | xen* | strace_* | busybox-static_*) dpkg -x "$deb" "$all" ;;
        esac
    done
    gunzip -c "$all"/boot/xen-4.17-amd64.gz >"$cache/xen.elf"
    cp "$all"/boot/vmlinuz-* "$cache/vmlinuz"
    for module in "${modules[@]}"; do cp "$all"/lib/modules/*/kernel/"$module" "$base/lib/modules/"; done
    cp "$all/bin/busybox" "$base/bin/"
    # The loader lists the libraries of each program.
    for program in "${programs[@]}"; do
        install -D "$all/$program" "$base/$program"
        "$ld" --library-path "$libs" --list "$all/$program"
    done | sed -n 's/.* => \([^ ]*\) .*/\1/p' >"$cache/libraries"
    for lib in "${extra_libraries[@]}"; do
        find "$all/lib" "$all/usr/lib" -name "$lib" >>"$cache/libraries"
    done
    sort -u "$cache/libraries" | while read -r lib; do cp -L "$lib" "$base/lib/x86_64-linux-gnu/"; done
    cp -L "$ld" "$base/lib64/"
    cp "$cache/vmlinuz" "$base/vmlinuz"
    pack "$base" "$cache/base.cpio"
    rm -rf "$all"
}

# pack FOLDER FILE: as a cpio for the kernel. It is not compressed, because the emulated machine unpacks slower than it
# reads.
pack() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >"$2"; }

# Installs the programs that read dumps into a Python environment, and sets $readers to its folder.
install_readers() {
    readers=$all_labs/readers-$(sha256sum <<<"${reader_packages[*]}" | cut -c1-16)
    exec 9>"$all_labs/lock"
    flock 9
    if [ ! -e "$readers/complete" ]; then
        say "installing ${reader_packages[*]}"
        rm -rf "$readers"
        python3 -m venv "$readers" || die "python3 -m venv failed"
        "$readers/bin/pip" install --quiet --disable-pip-version-check "${reader_packages[@]}" || die "pip failed"
        touch "$readers/complete"
    fi
    exec 9>&-
}
