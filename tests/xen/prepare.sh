# shellcheck shell=bash disable=SC2154
# Prepares what one boot adds to the shared base: the test programs, the jobs, the list of tests.

triple=x86_64-unknown-linux-gnu
cross='' # the prefix of compiler and binutils
runner=() # the command that runs a program of dom0 on this machine
library_tests='' # the prefix of the unit tests that run too; the others need no Xen
excuses=("$here/mock-only.txt")

# Builds the programs for dom0 into $work/overlay/tests. They are static, because dom0 has only the libraries that
# Debian's Xen tools use, and have a target folder of their own, because the flags differ from a usual build.
build_programs() {
    local file binary
    mkdir -p "$work/overlay/tests" "$work/overlay/lab"
    : >"$work/overlay/lab/plan"
    say "building the programs for dom0"
    if [[ $lane == cost ]]; then
        # Dynamic, because it opens both Debian's libxenforeignmemory and ours.
        build_benches xen_cost ioreq address_space small_reads
        build_library "$work/overlay/tests"
        return
    fi
    if [[ $lane == vmi ]]; then
        build_benches small_reads
        return
    fi
    if [[ $lane == device || $lane == io ]]; then
        build_device_model
        return
    fi
    # The tool as a dom0 without Rust gets it: from the archive.
    CARGO_TARGET_DIR=$lab/cargo "$root/cli/static" "${triple%%-*}" "$work/dist" >"$work/static.log" 2>&1 ||
        { cat "$work/static.log" >&2; die "cli/static failed"; }
    tar -xzf "$work"/dist/*.tar.gz -C "$work/overlay/tests" --strip-components=2 --wildcards '*/bin/xenmap'
    export RUSTFLAGS=-Ctarget-feature=+crt-static
    # With all features, as the tests below, so that the library is built once.
    cargo_build build --release --target "$triple" --all-features --example soak
    "${cross}strip" -o "$work/overlay/tests/soak" "$lab/cargo/$triple/release/examples/soak"
    [[ $lane == contract ]] || return 0
    cargo_build test --no-run --release --target "$triple" --tests --all-features
    # Cargo's list of executables, which has no leftovers of older builds.
    mkdir -p "$work/suite"
    while read -r file binary; do
        "${cross}strip" -o "$work/suite/$file" "$binary"
    done < <(executables tests; [[ ! $library_tests ]] || executables 'unittests src')
    plan_tests
    cp "$work"/suite/* "$work/overlay/tests/"
}

# build_benches NAME...
build_benches() {
    local file binary
    cargo_build bench --no-run --target "$triple" "${@/#/--bench=}"
    while read -r file binary; do
        "${cross}strip" -o "$work/overlay/tests/$file" "$binary"
    done < <(executables benches)
}

# Builds the example that serves a disk, and the program with which guests test it.
build_device_model() {
    RUSTFLAGS=-Ctarget-feature=+crt-static cargo_build build --release --target "$triple" --all-features \
        --example device_model
    "${cross}strip" -o "$work/overlay/tests/device_model" "$lab/cargo/$triple/release/examples/device_model"
    rustc --edition 2024 -O -Ctarget-feature=+crt-static -Cstrip=symbols --target "$triple" "$here/random_io.rs" \
        -o "$work/overlay/tests/random_io" || die "random_io.rs does not compile"
}

cargo_build() {
    (cd "$root" && cargo --color never "$@" --target-dir "$lab/cargo") >"$work/cargo.log" 2>&1 ||
        { cat "$work/cargo.log" >&2; die "the build failed"; }
}

# executables FOLDER: turns cargo's lines "  Executable tests/mapping/main.rs (/path/…)", or tests/mapping.rs, into
# "mapping /path/mapping-0123456789abcdef".
executables() { sed -nE "s|^ *Executable $1/([^/ ]+)(/main)?\.rs \((.*)\)$|\1 \3|p" "$work/cargo.log"; }

# Writes the plan, "file test" per line: all tests except those listed in ${excuses[@]}. This happens before the boot,
# so that an error in a list shows early, and the host knows which results to expect.
plan_tests() {
    local plan=$work/overlay/lab/plan file filter test entry found excused='' wrong=''
    local form='^tests/([^/ .]+)([.]rs)? +([^ #]+) +# *[^ ]'
    for file in "$work"/suite/*; do
        [ -e "$file" ] || continue
        filter=()
        test=$("${runner[@]}" "$file" --list --ignored --format terse) || die "${file##*/} --list failed"
        [ -z "$test" ] || die "ignored tests in tests/${file##*/} (name them in mock-only.txt instead): $test"
        [[ $file != */lib ]] || filter=("$library_tests")
        "${runner[@]}" "$file" --list --format terse "${filter[@]}" | sed -n "s/^\(.*\): test\$/${file##*/} \1/p"
    done >"$work/all-tests"
    [[ ! $library_tests ]] || grep -q "^lib $library_tests" "$work/all-tests" || die "no test begins with $library_tests"
    while IFS= read -r entry; do
        [[ $entry =~ ^[[:space:]]*(#.*)?$ ]] && continue
        if [[ ! $entry =~ $form ]]; then
            wrong+=$'\n'"  not of the form 'tests/FOLDER MODULE::NAME-or-*  # reason': $entry"
            continue
        fi
        file=${BASH_REMATCH[1]} test=${BASH_REMATCH[3]}
        if [[ $test == '*' || $test == *::'*' ]]; then
            found=$(grep "^$file ${test%'*'}" "$work/all-tests" || true)
        else
            found=$(grep -xF "$file $test" "$work/all-tests" || true)
        fi
        [ -n "$found" ] || wrong+=$'\n'"  no such test: $entry"
        excused+="$found"$'\n'
    done < <(cat "${excuses[@]}")
    [ -z "$wrong" ] || die "${excuses[*]}:$wrong"
    { grep -vxF "${excused%$'\n'}" "$work/all-tests" || true; } >"$plan"
    [ -s "$plan" ] || die "no test to run"
    say "$(wc -l <"$plan") tests to run, $(grep -c . <<<"$excused" || true) left out"
}

build_overlay() {
    cp "$here/init" "$work/overlay/init"
    cp "$here"/job-* "$here"/{guest-init,guest-init-disk,greeting} "$work/overlay/lab/"
    printf '%s\n' "XENMAP_TEST_XEN=$kind LAB_JOB=job-$lane LAB_CPUS=$cpus LAB_SHELL=$shell" >"$work/overlay/lab/settings"
    chmod +x "$work/overlay/init"
    pack "$work/overlay" "$work/overlay.cpio"
    cat "$cache/base.cpio" ${kernel:+"$cache/kernel-$kernel.cpio"} ${device_model:+"$device_model/device-model.cpio"} \
        "$work/overlay.cpio" >"$work/initramfs"
}
