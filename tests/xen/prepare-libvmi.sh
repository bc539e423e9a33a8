# shellcheck shell=bash disable=SC2154
# Builds libvmi.c with the libvmi that a developer has built in $libvmi/build, and adds to dom0 that library and those
# that it needs.

find_libvmi() {
    need gcc:gcc
    libvmi_so=$libvmi/build/libvmi/libvmi.so
    [ -e "$libvmi_so" ] || die "$libvmi_so is missing: build libvmi there, as README.md says"
}

build_for_libvmi() {
    local overlay=$work/overlay folder=lib/x86_64-linux-gnu library
    mkdir -p "$overlay/$folder"
    gcc -O2 -Wall -I"$libvmi" "$here/libvmi.c" -o "$overlay/tests/libvmi" "$libvmi_so" ||
        die "libvmi.c does not compile"
    LD_LIBRARY_PATH=$(dirname "$libvmi_so") ldd "$overlay/tests/libvmi" | sed -n 's/.* => \([^ ]*\) .*/\1/p' |
        while read -r library; do
            [ -e "$cache/base/$folder/${library##*/}" ] || cp -L "$library" "$overlay/$folder/"
        done
    # libvmi opens these by the names that packages for developers have.
    for library in libxenctrl libxenstore; do
        ln -s "$(basename "$cache/base/$folder/$library".so.*)" "$overlay/$folder/$library.so"
    done
}
