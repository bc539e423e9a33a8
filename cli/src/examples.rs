//! Examples and exit codes of each command, for the help and the man pages.

use std::fmt::Write;

pub(crate) struct Example {
    pub(crate) command: &'static str,
    pub(crate) purpose: &'static str,
}

const fn example(command: &'static str, purpose: &'static str) -> Example {
    Example { command, purpose }
}

/// Returns the examples of a command; of the whole tool if it is empty.
pub(crate) fn of(command: &str) -> &'static [Example] {
    match command {
        "" => {
            const {
                &[
                    example("xenmap domains", "List the guests of this host"),
                    example("xenmap map --domain web", "Show where the RAM of the guest web is"),
                    example("xenmap read --domain 5 0x1000 64", "Show 64 bytes of the RAM of domain 5"),
                    example("xenmap dump --domain web --pause --format elf web.elf", "Dump the guest for gdb or drgn"),
                    example("xenmap read --mock ram.raw 0 256", "Try it without Xen, on a file"),
                ]
            }
        }
        "domains" => {
            const {
                &[
                    example("xenmap domains", "List the domains"),
                    example("xenmap domains --json | jq -r '.domains[].name'", "Print only their names"),
                ]
            }
        }
        "info" => {
            const {
                &[
                    example("xenmap info --domain 5", "Show what is known about domain 5"),
                    example("xenmap info --domain name:17", "Show what is known about the domain that is called 17"),
                    example("xenmap info --domain web --json | jq .pages", "Print how many pages it owns"),
                ]
            }
        }
        "map" => {
            const {
                &[
                    example("xenmap map --domain web", "Show where the guest's RAM is"),
                    example(
                        "xenmap map --domain web --thorough --search-limit 600",
                        "Try all frames, with a time limit",
                    ),
                    example("xenmap map --domain web --json | jq '.extents[].first'", "Print where each extent begins"),
                ]
            }
        }
        "read" => {
            const {
                &[
                    example("xenmap read --domain 5 0x1000 64", "Show 64 bytes at a physical address"),
                    example(
                        "xenmap read --domain 5 --virtual 0xffffffff82000000 64",
                        "Show bytes at a virtual address",
                    ),
                    example("xenmap read --domain 5 --binary 1M 64K >bytes", "Copy 64 KiB to a file"),
                ]
            }
        }
        "write" => {
            const {
                &[
                    example("xenmap write --domain 5 0x1000 --text hello", "Write five characters"),
                    example(
                        "xenmap write --domain 5 0x1000 --hex 'de ad be ef' --yes",
                        "Write four bytes without asking",
                    ),
                ]
            }
        }
        "search" => {
            const {
                &[
                    example("xenmap search --domain web --text password=", "Find some text"),
                    example(
                        "xenmap search --domain web --hex 'de ad ?? ef'",
                        "Find bytes, of which the third is unknown",
                    ),
                    example("xenmap search --domain web --text canary --max 1", "Check whether a text occurs"),
                ]
            }
        }
        "dump" => {
            const {
                &[
                    example(
                        "xenmap dump --domain web --pause --format elf web.elf",
                        "Dump a guest that is paused meanwhile",
                    ),
                    example("xenmap dump --domain web --live web.raw", "Dump a guest while it runs"),
                    example(
                        "xenmap dump --domain web --pause --format lime --compress zstd - | ssh host 'cat >web.lime.zst'",
                        "Send a compressed dump to another host",
                    ),
                ]
            }
        }
        "diff" => {
            const {
                &[
                    example("xenmap diff before.elf after.elf", "Compare two dumps"),
                    example("xenmap diff --domain web before.elf", "Show what has changed since the dump"),
                ]
            }
        }
        "picture" => {
            const {
                &[
                    example("xenmap picture --domain web ram.png", "Draw where the guest's RAM is"),
                    example(
                        "xenmap picture --domain web --since before.elf ram.png",
                        "Mark what has changed since the dump",
                    ),
                ]
            }
        }
        "completions" => {
            const {
                &[
                    example(
                        "xenmap completions bash >~/.local/share/bash-completion/completions/xenmap",
                        "Install for bash",
                    ),
                    example("xenmap completions zsh >~/.zfunc/_xenmap", "Install for zsh, if ~/.zfunc is in fpath"),
                    example("xenmap completions fish >~/.config/fish/completions/xenmap.fish", "Install for fish"),
                ]
            }
        }
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
            ("3", "incomplete: a dump lacks frames, or --search-limit ended the search for RAM"),
            ("128+N", "dump was interrupted by signal N"),
        ],
        "map" | "picture" => {
            &[("0", "success"), ("2", "error"), ("3", "incomplete: --search-limit ended the search for RAM")]
        }
        "search" => &[
            ("0", "found"),
            ("1", "not found"),
            ("2", "error"),
            ("3", "incomplete: --search-limit ended the search for RAM"),
        ],
        "dump" => &[
            ("0", "success"),
            ("2", "error; no file is left"),
            ("3", "incomplete: stderr lists frames that could not be read, or says where RAM was not searched for"),
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
    let mut notes = String::from("Examples:\n");
    for Example { command, purpose } in of(command) {
        let _ = writeln!(notes, "  # {purpose}\n  {command}");
    }
    notes.push_str("\nExit codes:\n");
    for (code, meaning) in exit_codes(command) {
        let _ = writeln!(notes, "  {code:<5}  {meaning}");
    }
    notes
}
