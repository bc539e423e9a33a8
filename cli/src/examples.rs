//! Examples and exit codes of each command, for the help and the man pages.

use std::fmt::Write;

use clap::builder::Styles;

/// Returns command lines for a command and their purposes; for the whole tool if it is empty.
pub(crate) fn of(command: &str) -> &'static [(&'static str, &'static str)] {
    match command {
        "" => &[
            ("xenmap domains", "List the guests of this host"),
            ("xenmap map --domain web", "Show where the RAM of the guest web is"),
            ("xenmap read --domain 5 0x1000 64", "Show 64 bytes of the RAM of domain 5"),
            ("xenmap dump --domain web --pause --format elf web.elf", "Dump the guest for gdb or drgn"),
            ("xenmap read --dump web.elf 0x1000 64", "Show 64 bytes of a dump"),
            ("xenmap read --mock ram.raw 0 256", "Try it without Xen, on a file"),
        ],
        "domains" => &[
            ("xenmap domains", "List the domains"),
            ("xenmap domains --json | jq -r '.domains[].name'", "Print only their names"),
        ],
        "info" => &[
            ("xenmap info --domain 5", "Show what is known about domain 5"),
            ("xenmap info --domain name:17", "Show what is known about the domain that is called 17"),
            ("xenmap info --domain web --json | jq .pages", "Print how many pages it owns"),
            ("xenmap info --dump web.elf", "Show what a dump says about itself"),
        ],
        "map" => &[
            ("xenmap map --domain web", "Show where the guest's RAM is"),
            ("xenmap map --domain web --thorough --search-limit 600", "Try all frames, with a time limit"),
            ("xenmap map --domain web --json | jq '.extents[].first'", "Print where each extent begins"),
            ("xenmap map --domain web --virtual", "Show what the page tables of vcpu 0 map"),
        ],
        "read" => &[
            ("xenmap read --domain 5 0x1000 64", "Show 64 bytes at a physical address"),
            ("xenmap read --domain 5 --virtual 0xffffffff82000000 64", "Show bytes at a virtual address"),
            (
                "xenmap read --dump web.elf --virtual --symbols System.map linux_banner 64",
                "Show the text that a kernel's symbol names, in a dump",
            ),
            ("xenmap read --domain 5 --binary 1M 64K >bytes", "Copy 64 KiB to a file"),
            ("xenmap read --domain 5 --json 1M 64K | jq '.parts[].hex'", "Print 64 KiB as digits"),
        ],
        "translate" => &[
            ("xenmap translate --domain 5 --virtual 0xffffffff82000000", "Translate an address of the guest's kernel"),
            ("xenmap translate --domain 5 0x1000 0x2000", "Show which frames hold these physical addresses"),
        ],
        "write" => &[
            ("xenmap write --domain 5 0x1000 --text hello", "Write five characters"),
            ("xenmap write --domain 5 0x1000 --hex 'de ad be ef' --yes", "Write four bytes without asking"),
        ],
        "search" => &[
            ("xenmap search --domain web --text password=", "Find some text"),
            ("xenmap search --domain web --hex 'de ad ?? ef'", "Find four bytes, the third of which can be any"),
            ("xenmap search --domain web --text canary --max 1", "Check whether a text occurs"),
            ("xenmap search --dump web.elf --text password=", "Search a dump"),
            (
                "xenmap search --domain web --text hello --utf16 hello --context 32",
                "Find a text in two encodings, and show it",
            ),
        ],
        "dump" => &[
            ("xenmap dump --domain web --pause --format elf web.elf", "Pause a guest, dump it, and let it run again"),
            ("xenmap dump --domain web --live web.raw", "Dump a guest while it is running"),
            (
                "xenmap dump --domain 5 --pause --compress zstd - | ssh host 'cat >5.zst'",
                "Send a compressed dump to another host",
            ),
            ("xenmap dump --dump web.raw --format elf web.elf", "Convert a dump for gdb or drgn"),
        ],
        "diff" => &[
            ("xenmap diff before.elf after.elf", "Compare two dumps"),
            ("xenmap diff --domain web before.elf", "Show what has changed since the dump"),
        ],
        "picture" => &[
            ("xenmap picture --domain web ram.png", "Draw where the guest's RAM is"),
            ("xenmap picture --domain web --since before.elf ram.png", "Mark what has changed since the dump"),
        ],
        "mount" => &[
            (
                "xenmap mount --domain web /mnt",
                "Mount a running guest, so that `gdb -core=/mnt/ram.elf` can look at it",
            ),
            ("xenmap mount --dump vmcore /mnt", "Show a dump in other formats, without converting it"),
        ],
        "completions" => &[
            ("xenmap completions bash >~/.local/share/bash-completion/completions/xenmap", "Install for bash"),
            ("xenmap completions zsh >~/.zfunc/_xenmap", "Install for zsh, if ~/.zfunc is in fpath"),
            ("xenmap completions fish >~/.config/fish/completions/xenmap.fish", "Install for fish"),
        ],
        _ => &[],
    }
}

/// Returns the exit codes of a command and their meanings; of the whole tool if it is empty.
pub(crate) fn exit_codes(command: &str) -> &'static [(&'static str, &'static str)] {
    match command {
        "" => &[
            ("0", "success"),
            ("1", "search found nothing, or diff found a difference"),
            ("2", "error"),
            ("3", "incomplete: some memory could not be read, or --search-limit ended the search for RAM"),
            ("128+N", "dump was interrupted by signal N"),
        ],
        "map" => &[
            ("0", "success"),
            ("2", "error"),
            ("3", "incomplete: --search-limit ended the search for RAM, or a page table could not be read"),
        ],
        "picture" | "mount" => {
            &[("0", "success"), ("2", "error"), ("3", "incomplete: --search-limit ended the search for RAM")]
        }
        "read" => &[("0", "success"), ("2", "error, or no byte could be read"), ("3", "some bytes could not be read")],
        "search" => &[
            ("0", "found"),
            ("1", "not found"),
            ("2", "error"),
            ("3", "incomplete: --search-limit ended the search for RAM"),
        ],
        "dump" => &[
            ("0", "success"),
            ("2", "error; no incomplete file is left"),
            ("3", "incomplete: stderr lists pages that could not be read, or addresses that were not searched"),
            ("128+N", "interrupted by signal N; no file is left"),
        ],
        "diff" => &[
            ("0", "no difference"),
            ("1", "differences"),
            ("2", "error"),
            ("3", "nothing compared: --search-limit ended the search for the guest's RAM"),
        ],
        _ => &[("0", "success"), ("2", "error")],
    }
}

/// Returns what the help of a command shows at its end.
pub(crate) fn notes(command: &str) -> String {
    let styles = Styles::styled();
    let heading = styles.get_header();
    let mut notes = format!("{heading}Examples:{heading:#}\n");
    for (command, purpose) in of(command) {
        let _ = writeln!(notes, "  # {purpose}\n  {command}");
    }
    let _ = writeln!(notes, "\n{heading}Exit codes:{heading:#}");
    for (code, meaning) in exit_codes(command) {
        let _ = writeln!(notes, "  {code:<5}  {meaning}");
    }
    notes
}
