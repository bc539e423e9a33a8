# shellcheck shell=bash disable=SC2034,SC2154
# What differs for an arm64 dom0: packages, cross-built programs, and a QEMU that emulates an arm64 machine. `run`
# sources this file last, so its definitions replace those of the others.

arch=arm64
triple=aarch64-unknown-linux-gnu
cross=aarch64-linux-gnu-
library=lib/aarch64-linux-gnu/libxenforeignmemory.so.1
excuses+=("$here/x86-only.txt")
library_tests=mapping::copy:: # the assembly for arm64
needed=(qemu-system-aarch64:qemu-system-arm aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu cpio:cpio
        /usr/aarch64-linux-gnu/include/stdio.h:libc6-dev-arm64-cross gdb-multiarch:gdb-multiarch
        /usr/include/xenforeignmemory.h:libxen-dev xz:xz-utils)

# Kernels with pages of 4 KiB and of 16 KiB.
packages=(xen-hypervisor-4.17-arm64 xen-utils-4.17 xenstore-utils linux-image-arm64 linux-image-6.12-arm64-16k
          busybox-static strace)
programs+=(usr/lib/xen-4.17/bin/test-{resource,paging-mempool})
# Each kernel has some of these built in.
modules=(drivers/xen/{xen-privcmd,xen-evtchn,xen-gntdev,xen-gntalloc,xenfs/xenfs}.ko
         drivers/virtio/virtio_mmio.ko
         fs/netfs/netfs.ko fs/fscache/fscache.ko net/9p/{9pnet,9pnet_virtio}.ko fs/9p/9p.ko)
download_size=170
recipe+=("$here/arm64.sh")

unpack_packages() {
    local all=$cache/all base=$cache/base deb program
    say "unpacking $(find "$debs" -name '*.deb' | wc -l) packages"
    mkdir -p "$all"/{4k,16k} "$base"/{bin,dev,proc,sys,tmp,lib}
    for deb in "$debs"/*.deb; do
        case ${deb##*/} in
        linux-image-[0-9]*-arm64-16k_*) unpack_kernel 16k "$deb" ;;
        linux-image-[0-9]*-arm64_*) unpack_kernel 4k "$deb" ;;
        lib* | zlib* | xen* | strace_* | busybox-static_*) dpkg -x "$deb" "$all" ;;
        esac
    done
    cp "$all"/boot/xen-4.17-arm64 "$cache/xen"
    cp "$all/bin/busybox" "$base/bin/"
    for program in "${programs[@]}"; do install -D "$all/$program" "$base/$program"; done
    copy_libraries
    pack "$base" "$cache/base.cpio"
    rm -rf "$all"
}

# unpack_kernel PAGE_SIZE PACKAGE: also packs a cpio with the modules, and the kernel for guests. (One of the packages
# has no files: it only depends on the current kernel.)
unpack_kernel() {
    local from=$all/$1 to=$cache/kernel-$1 module
    dpkg -x "$2" "$from"
    [ -e "$from/boot" ] || return 0
    cp "$from"/boot/vmlinuz-* "$cache/vmlinuz-$1"
    mkdir -p "$to/lib/modules"
    cp "$cache/vmlinuz-$1" "$to/vmlinuz"
    for module in "${modules[@]}"; do
        find "$from/lib/modules" -path "*/kernel/$module*" -exec cp {} "$to/lib/modules/" \;
    done
    find "$to" -name '*.xz' -exec xz -d {} + # newer kernels compress modules
    pack "$to" "$cache/kernel-$1.cpio"
}

# Copies the libraries of the kept programs, and their libraries. (The loader, which knows them, is an arm64 program.)
copy_libraries() {
    local wanted library libraries=$base/lib/aarch64-linux-gnu
    mkdir -p "$libraries"
    wanted=$(needed_by "${programs[@]/#/$base/}"; printf '%s\n' "${extra_libraries[@]}")
    while [[ $wanted ]]; do
        for library in $wanted; do
            find "$all/lib" "$all/usr/lib" -name "$library" -exec cp -L {} "$libraries/" \;
            [ -e "$libraries/$library" ] || die "no package has $library"
        done
        wanted=$(needed_by "$libraries"/* | while read -r library; do
            [ -e "$libraries/$library" ] || echo "$library"
        done)
    done
    mv "$libraries/ld-linux-aarch64.so.1" "$base/lib/"
    ln -s ../ld-linux-aarch64.so.1 "$libraries/"
}

needed_by() { "${cross}readelf" -d "$@" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u; }

# Unpacks a Rust that builds for arm64, and has the installed cargo use it.
install_rust() {
    rust=$lab/rust-$(declare -f download_rust download_debs | sha256sum | cut -c1-16)
    exec 9>"$lab/lock"
    flock 9
    if [ ! -e "$rust/complete" ]; then
        say "downloading Rust for arm64 (200 MB)"
        rm -rf "$lab"/rust-*
        download_rust >"$lab/rust.log" 2>&1 || { cat "$lab/rust.log" >&2; die "the download of Rust failed"; }
        touch "$rust/complete"
    fi
    exec 9>&-
    runner=("$rust/usr/bin/qemu-aarch64-static")
    export RUSTC=$rust/rustc RUSTDOC=$rust/rustdoc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
}

# Downloads Rust with its compiler's libraries, a standard library for arm64, and a QEMU that runs single programs.
download_rust() {
    local program standard_library='libstd-rust-web[^_]*'
    local links_to='libllvm[0-9]+|libz3-4|libedit2|libxml2|libicu72|libffi8|libbsd0|libmd0'
    download_debs amd64 rustc-web "rustc-web|$standard_library|$links_to" || return
    download_debs arm64 libstd-rust-web-dev "$standard_library" || return
    download_debs amd64 qemu-user-static qemu-user-static || return
    find "$rust/usr/bin" -name 'qemu-*' ! -name qemu-aarch64-static -delete # 40 others
    for program in rustc rustdoc; do
        cat >"$rust/$program" <<'END'
#!/bin/sh
here=${0%/*}
LD_LIBRARY_PATH=$here/usr/lib/x86_64-linux-gnu exec "$here/usr/bin/${0##*/}" --sysroot "$here/usr" "$@"
END
        chmod +x "$rust/$program"
    done
}

# download_debs ARCHITECTURE PACKAGE NAMES: unpacks PACKAGE and its dependencies as far as the regular expression NAMES
# matches them. It runs in a subshell, because apt has a different state here.
download_debs() (
    arch=$1 lab=$rust/$1 debs=$rust/$1/debs
    mkdir -p "$lab/apt" "$debs"
    update_own_lists
    mapfile -t names < <(own_apt install --print-uris "$2" | sed -nE "s/^'.*' ($3)_.*/\1/p")
    ((${#names[@]})) || { cat "$lab/apt/log"; return 1; }
    cd "$debs" && own_apt download "${names[@]}" || return
    for deb in *.deb; do dpkg -x "$deb" "$rust" || return; done
    rm -rf "$lab"
)

build_stub() {
    "${cross}gcc" -nostdlib -static -o "$work/stub" "$here/stub-arm64.S"
    "${cross}objcopy" -O binary -j .text "$work/stub" "$1"
}

# On arm64, Xen lets no kernel of its domains single-step a program (MDSCR_EL1 reads as zero), so the kernel can only
# probe instructions that it simulates. `ret` is one of them; a function may have several.
probe_returns() {
    local address
    "${cross}objdump" -d --start-address="$2" --stop-address=$(($2 + $3)) "$work/overlay/$library" |
        sed -n 's/^ *\([0-9a-f]*\):.*\tret$/\1/p' | while read -r address; do
        echo "p:capi/$1 /$library:$(file_offset $((16#$address))) ret=%x0"
    done
}

# Builds the stub guest and the program that reads frames, for the contract lane.
prepare_guests() {
    build_stub "$work/overlay/lab/stub"
    link_libraries
    compile "$here/frames.c" "$work/overlay/lab/frames"
}

# guest-loader puts dom0's kernel and initramfs into the machine's memory, and Xen finds them by the device tree. Dom0's
# own memory begins at 3 GiB, as Xen's log says.
qemu_command() {
    # src/mapping/copy/aarch64.rs has code for processors with and without atomic instructions (LSE). cortex-a57 has
    # none, and no pages of 16 KiB.
    local processor=cortex-a57
    [[ $kernel == 4k ]] || processor=neoverse-n1
    qemu=(qemu-system-aarch64 -machine 'virt,gic-version=3,virtualization=on' -cpu "$processor" -smp "$cpus" -m 5120)
    qemu+=(-net none -display none -no-reboot -kernel "$cache/xen")
    if counts_instructions; then
        # As on x86, the emulated clock counts instructions.
        qemu+=(-accel 'tcg,thread=single' -icount 'shift=0,sleep=off')
    else
        qemu+=(-accel 'tcg,thread=multi')
    fi
    qemu+=(-append "console=dtuart dom0_mem=1024M bootscrub=0 loglvl=warning guest_loglvl=warning")
    # kpti=off: the emulated processor lacks the flaw that KPTI guards against, and KPTI would make system calls several
    # times slower.
    qemu+=(-device "guest-loader,addr=0x49000000,kernel=$cache/vmlinuz-$kernel,bootargs=console=hvc0 quiet kpti=off")
    qemu+=(-device "guest-loader,addr=0x4f000000,initrd=$work/initramfs")
    mkdir "$work/export" # a folder for dumps
    qemu+=(-fsdev "local,id=export,path=$work/export,security_model=none")
    qemu+=(-global virtio-mmio.force-legacy=false -device 'virtio-9p-device,fsdev=export,mount_tag=export')
}
