# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_xenmap_global_optspecs
    string join \n color= domain= mock= mock-raw mock-kind= dump= dump-raw pod-populate h/help V/version
end

function __fish_xenmap_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_xenmap_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_xenmap_using_subcommand
    set -l cmd (__fish_xenmap_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c xenmap -n "__fish_xenmap_needs_command" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_needs_command" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_needs_command" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_needs_command" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_needs_command" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_needs_command" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_needs_command" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_needs_command" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_needs_command" -s V -l version -d 'Print version'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "domains" -d 'List the domains of the host'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "info" -d 'Show information about a guest and its host, or about a dump'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "map" -d 'Show where a guest\'s RAM is'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "read" -d 'Show bytes of a guest\'s memory, as `hexdump -vC` does'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "translate" -d 'Translate addresses to physical addresses, and to the frames that Xen knows them by'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "write" -d 'Change bytes of a guest\'s memory'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "search" -d 'Search a guest\'s RAM for bytes, and print the address of each match'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "dump" -d 'Write a guest\'s RAM to a file or to standard output'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "diff" -d 'Compare two dumps, or a dump and a guest, page by page'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "picture" -d 'Draw where a guest\'s RAM is, as a PNG image'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "mount" -d 'Mount a directory whose files are dumps of a guest\'s RAM at the moment when they are read'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "completions" -d 'Print a shell completion script'
complete -c xenmap -n "__fish_xenmap_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l json -d 'Print a JSON object'
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand domains" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l json -d 'Print a JSON object'
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand info" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l search-limit -d 'Stop looking for RAM after this many seconds without finding any; 0 means never [default: 60, or 0 with --thorough]' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l vcpu -d 'Use the page tables of this vcpu' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l cr3 -l ttbr0 -d 'Use this page-table base instead of the vcpu\'s (CR3; on Arm TTBR0)' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l thorough -d 'Try every frame number; slow, but finds all memory that Xen lends to the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l virtual -d 'Treat the address as virtual, and translate it with a vcpu\'s page tables'
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l json -d 'Print a JSON object; with --virtual, one for each range'
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand map" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l vcpu -d 'Use the page tables of this vcpu' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l cr3 -l ttbr0 -d 'Use this page-table base instead of the vcpu\'s (CR3; on Arm TTBR0)' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l symbols -d 'Take symbols of a Linux kernel as addresses, by this file: System.map, /proc/kallsyms, or an ISF of volatility3' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l virtual -d 'Treat the address as virtual, and translate it with a vcpu\'s page tables'
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l binary -d 'Write the bytes themselves, to a file or a pipe'
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l json -d 'Print a JSON object'
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand read" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l vcpu -d 'Use the page tables of this vcpu' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l cr3 -l ttbr0 -d 'Use this page-table base instead of the vcpu\'s (CR3; on Arm TTBR0)' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l symbols -d 'Take symbols of a Linux kernel as addresses, by this file: System.map, /proc/kallsyms, or an ISF of volatility3' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l virtual -d 'Treat the address as virtual, and translate it with a vcpu\'s page tables'
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l json -d 'Print a JSON object'
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand translate" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l text -d 'The bytes as text' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l hex -d 'The bytes as hexadecimal digits, such as "de ad be ef"' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l utf16 -d 'The bytes as text in UTF-16 (little-endian), as Windows has it' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l vcpu -d 'Use the page tables of this vcpu' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l cr3 -l ttbr0 -d 'Use this page-table base instead of the vcpu\'s (CR3; on Arm TTBR0)' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l symbols -d 'Take symbols of a Linux kernel as addresses, by this file: System.map, /proc/kallsyms, or an ISF of volatility3' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l virtual -d 'Treat the address as virtual, and translate it with a vcpu\'s page tables'
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l yes -d 'Write without asking, even if the guest is running'
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand write" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l text -d 'Search for this text; can be repeated' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l hex -d 'Search for these bytes, such as "de ad ?? ef", where ? stands for any hexadecimal digit; can be repeated' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l utf16 -d 'Search for this text in UTF-16 (little-endian), as Windows has it; can be repeated' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l search-limit -d 'Stop looking for RAM after this many seconds without finding any; 0 means never [default: 60, or 0 with --thorough]' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l context -d 'Show each match with N bytes before and after it, as `read` does' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l max -d 'Stop after this many matches, of all patterns together' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l thorough -d 'Try every frame number; slow, but finds all memory that Xen lends to the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l json -d 'Print a JSON object for each match, one per line'
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand search" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l format -d 'Choose the file format' -r -f -a "raw\t'Sparse file with each page at the offset that is its address; missing pages look like zeros'
elf\t'ELF core, for gdb, drgn and volatility3'
lime\t'LiME, for volatility3'
xen\t'The format of `xl dump-core`'"
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l compress -d 'Compress the dump' -r -f -a "zstd\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l search-limit -d 'Stop looking for RAM after this many seconds without finding any; 0 means never [default: 60, or 0 with --thorough]' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l copy-by -d 'Choose how to copy to an uncompressed file [default: single]' -r -f -a "single\t'In one thread'
threads\t'In several threads'
workers\t'In several processes'"
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l live -d 'Let the guest run: its pages are copied at different moments'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l pause -d 'Pause the guest until the dump is written'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l thorough -d 'Try every frame number; slow, but finds all memory that Xen lends to the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l json -d 'Print the summary as a JSON object; on stderr if the dump goes to standard output'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand dump" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l raw -d 'Treat a dump as raw even if it looks like another format' -r -f -a "old\t''
new\t''
both\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l search-limit -d 'Stop looking for RAM after this many seconds without finding any; 0 means never [default: 60, or 0 with --thorough]' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l thorough -d 'Try every frame number; slow, but finds all memory that Xen lends to the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l json -d 'Print a JSON object'
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand diff" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l search-limit -d 'Stop looking for RAM after this many seconds without finding any; 0 means never [default: 60, or 0 with --thorough]' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l since -d 'Mark the pages that differ from this dump, in any format that `diff` reads' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l thorough -d 'Try every frame number; slow, but finds all memory that Xen lends to the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l raw -d 'Treat the dump as raw even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand picture" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l search-limit -d 'Stop looking for RAM after this many seconds without finding any; 0 means never [default: 60, or 0 with --thorough]' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l thorough -d 'Try every frame number; slow, but finds all memory that Xen lends to the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand mount" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l color -d 'When to use colors' -r -f -a "auto\t''
always\t''
never\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l domain -d 'Use this domain of the host, by its number or name' -r
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l mock -d 'Simulate a guest with this file as its RAM; Xen is not needed' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l mock-kind -d 'Set the kind of the simulated guest' -r -f -a "pv\t''
pvh\t''"
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l dump -d 'Use this dump in place of a guest' -r -F
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l mock-raw -d 'Treat the --mock file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l dump-raw -d 'Treat the --dump file as raw RAM even if it looks like another format'
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -l pod-populate -d 'Access the memory of a populate-on-demand guest even if that may crash the guest'
complete -c xenmap -n "__fish_xenmap_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "domains" -d 'List the domains of the host'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "info" -d 'Show information about a guest and its host, or about a dump'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "map" -d 'Show where a guest\'s RAM is'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "read" -d 'Show bytes of a guest\'s memory, as `hexdump -vC` does'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "translate" -d 'Translate addresses to physical addresses, and to the frames that Xen knows them by'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "write" -d 'Change bytes of a guest\'s memory'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "search" -d 'Search a guest\'s RAM for bytes, and print the address of each match'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "dump" -d 'Write a guest\'s RAM to a file or to standard output'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "diff" -d 'Compare two dumps, or a dump and a guest, page by page'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "picture" -d 'Draw where a guest\'s RAM is, as a PNG image'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "mount" -d 'Mount a directory whose files are dumps of a guest\'s RAM at the moment when they are read'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "completions" -d 'Print a shell completion script'
complete -c xenmap -n "__fish_xenmap_using_subcommand help; and not __fish_seen_subcommand_from domains info map read translate write search dump diff picture mount completions help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
