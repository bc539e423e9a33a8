//! Virtual addresses of a dump, by its registers or by its kernel's note.

use std::fs;
use std::path::{Path, PathBuf};

use xenmap::FRAME_SIZE;

use crate::dumps::*;
use crate::harness::*;
use crate::packed::*;

/// Where an x86-64 kernel maps its image.
const IMAGE: u64 = 0xFFFF_FFFF_8000_0000;

/// Adds a table to pages: its frame, the index of an entry, and the frame that the entry leads to.
fn table(pages: &mut Pages, pfn: u64, index: usize, to: u64) {
    let entry = (frame(to) | 3).to_le_bytes();
    pages.entry(pfn).or_insert(page(0))[index * 8..index * 8 + 8].copy_from_slice(&entry);
}

/// Returns pages with four levels of tables in frames 1 to 4. They lead the 10th page of the image to frame 11, which
/// holds a text, and the next one to frame 12, which is missing.
fn pages() -> Pages {
    let mut pages = Pages::new();
    for (pfn, index, to) in [(1, 511, 2), (2, 510, 3), (3, 0, 4), (4, 9, 11), (4, 10, 12)] {
        table(&mut pages, pfn, index, to);
    }
    let mut text = page(0);
    text[..6].copy_from_slice(b"canary");
    pages.insert(11, text);
    pages
}

/// Returns a note of QEMU with these registers CR0, CR3 and CR4.
fn qemu_note([cr0, cr3, cr4]: [u64; 3]) -> Vec<u8> {
    let mut state = vec![0; 440];
    state[0] = 1;
    for (at, register) in [(392, cr0), (416, cr3), (424, cr4)] {
        state[at..at + 8].copy_from_slice(&register.to_le_bytes());
    }
    note(b"QEMU\0", 0, &state)
}

/// CR0 with paging and protection, and CR4 with PAE.
const PAGING: u64 = 1 << 31 | 1;
const PAE: u64 = 1 << 5;

/// Returns the text of a kernel's note. Its tables are where `phys_base` says.
fn kernel(more: &str) -> String {
    format!(
        "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_top_pgt)={:x}\nNUMBER(phys_base)=-4096\n{more}",
        IMAGE + 0x2000
    )
}

fn folder_with(test: &str, dump: &[u8]) -> PathBuf {
    let folder = folder(test);
    fs::write(folder.join("dump"), dump).unwrap();
    folder
}

#[track_caller]
fn assert_canary(folder: &Path, args: &str) {
    let address = IMAGE + 0x9000;
    let output = run_in(folder, &format!("read --dump dump --virtual {address} 6 --binary {args}"));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("canary", ""), "{args}");
    let output = run_in(folder, &format!("translate --dump dump --virtual {address} {args} --json"));
    assert_eq!(json(&output)["translations"][0]["physical"], frame(11), "{args}");
}

#[test]
fn registers_of_qemus_notes_lead_to_the_tables() {
    let notes = [
        note(b"CORE\0", 1, &[0; 336]),
        note(b"CORE\0", 1, &[0; 336]),
        qemu_note([PAGING, frame(5), PAE]),
        qemu_note([PAGING, frame(1) | 0xFFF, PAE]),
    ];
    for dump in [
        elf_with_notes(&pages(), &notes.concat()),
        kdump(&pages(), METHODS[1].1, &Kdump { notes: &notes.concat(), ..Kdump::default() }),
    ] {
        let folder = folder_with("virtual-qemu", &dump);
        assert_canary(&folder, "--vcpu 1");
        assert_canary(&folder, "--cr3 0x1000");
        let line = refusal(&run_in(&folder, "read --dump dump --virtual 0 1")).to_owned();
        assert_eq!(line, "cannot read at 0x5000: not in the dump");
        let line = refusal(&run_in(&folder, "read --dump dump --virtual 0 1 --vcpu 2")).to_owned();
        assert_eq!(line, "the dump lacks the control registers of vcpu 2");
    }
}

#[test]
fn address_that_leads_out_of_the_dump_says_so() {
    let folder = folder_with("virtual-missing", &elf(&pages()));
    let output = run_in(&folder, &format!("read --dump dump --virtual --cr3 0x1000 {} 8200", IMAGE + 0x9FFE));
    let expected = "\
ffffffff80009ffe  00 00                                             |..|
ffffffff8000a000  -- 4096 bytes cannot be read: not in the dump
ffffffff8000b000  -- 4102 bytes cannot be read: no translation
ffffffff8000c006
";
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(3), expected));
    let line = refusal(&run_in(&folder, "translate --dump dump --virtual --cr3 0x9000 5")).to_owned();
    assert_eq!(line, "cannot read at 0x9000: not in the dump");
}

#[test]
fn vcpus_of_a_core_of_xl_lead_to_the_tables() {
    let pages = pages();
    let mut context = vec![0; 2 * 5168];
    // CR0 to CR4 of vcpu 1.
    context[5168 + 4984..][..40].copy_from_slice(&words(&[PAGING, 0, 0, frame(1), PAE]));
    let pfns = words(&pages.keys().copied().collect::<Vec<u64>>());
    let dump = xen_with(&pages, &[(".xen_pfn", &pfns, 8), (".xen_prstatus", &context, 5168)]);
    assert_canary(&folder_with("virtual-xen", &dump), "--vcpu 1");
}

#[test]
fn machine_addresses_of_a_pv_guest_are_found_in_its_core() {
    // In the tables, each frame has its number plus 0x1000.
    let mut pages = pages();
    for (pfn, index, to) in [(1, 511, 2), (2, 510, 3), (3, 0, 4), (4, 9, 11), (4, 10, 12)] {
        table(&mut pages, pfn, index, 0x1000 + to);
    }
    let folder = folder_with("virtual-pv", &xen_p2m(&pages));
    let args = format!("--dump dump --virtual --cr3 {} {}", frame(0x1001), IMAGE + 0x9000);
    assert_eq!(text(&run_in(&folder, &format!("read {args} 6 --binary")).stdout), "canary");
    let translated = json(&run_in(&folder, &format!("translate {args} --json")));
    let translation = &translated["translations"][0];
    assert_eq!(
        [&translation["physical"], &translation["mfn"]],
        [&serde_json::json!(frame(11)), &serde_json::json!(0x100B)]
    );
    let line = refusal(&run_in(&folder, "read --dump dump --virtual 0 1")).to_owned();
    assert_eq!(line, "the dump of a PV guest lacks the registers of its vcpus: give --cr3");
    // The table of machine frames is kept.
    assert!(run_in(&folder, "dump --dump dump xen --format xen").status.success());
    assert_eq!(
        text(&run_in(&folder, &format!("read {} 6 --binary", args.replace("dump dump", "dump xen"))).stdout),
        "canary"
    );
}

#[test]
fn note_of_the_kernel_leads_to_the_tables() {
    let text = kernel("");
    let core = elf_with_notes(&pages(), &note(b"VMCOREINFO\0", 0, text.as_bytes()));
    assert_canary(&folder_with("virtual-note", &core), "");
    let dump = kdump(&pages(), METHODS[1].1, &Kdump { vmcoreinfo: text.as_bytes(), ..Kdump::default() });
    assert_canary(&folder_with("virtual-note", &dump), "");
    // In its memory.
    let mut pages = pages();
    let note = note(b"VMCOREINFO\0", 0, text.as_bytes());
    pages.insert(200, page(0));
    pages.get_mut(&200).unwrap()[100..100 + note.len()].copy_from_slice(&note);
    for (name, make) in FORMATS.into_iter().filter(|(name, _)| *name != "xen-p2m") {
        assert_canary(&folder_with(&format!("virtual-note-{name}"), &make(&pages)), "");
    }
    assert_canary(&folder_with("virtual-note-avml", &avml(&pages)), "");
}

#[test]
fn note_of_a_kernel_with_five_levels_is_understood() {
    let mut pages = pages();
    table(&mut pages, 0, 511, 1);
    let text = kernel("NUMBER(pgtable_l5_enabled)=1\n").replace("-4096", "-8192");
    let core = elf_with_notes(&pages, &note(b"VMCOREINFO\0", 0, text.as_bytes()));
    assert_canary(&folder_with("virtual-five", &core), "");
}

#[test]
fn note_of_an_arm64_kernel_leads_to_the_tables() {
    // Three levels for 39 bits, in frames 2 to 4: the tables are those of x86 without the first.
    let mut pages = pages();
    for (pfn, index, to) in [(2, 510, 3), (3, 0, 4), (4, 9, 11)] {
        table(&mut pages, pfn, index, to);
    }
    // An entry for a page has the access flag, and is of the same type as one for a table.
    pages.get_mut(&4).unwrap()[9 * 8 + 1] |= 4;
    let voffset = 0xFFFF_FF80_0000_0000_u64;
    let text = format!(
        "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)={:x}\nNUMBER(VA_BITS)=39\n\
         NUMBER(kimage_voffset)={voffset:#x}\nNUMBER(TCR_EL1_T1SZ)=0x19\n",
        voffset + frame(2)
    );
    let mut core = elf_with_notes(&pages, &note(b"VMCOREINFO\0", 0, text.as_bytes()));
    assert_canary(&folder_with("virtual-arm64", &core), "");
    // The same tables as those of a program. The machine of the core is arm64's.
    core[18] = 183;
    let folder = folder_with("virtual-arm64-program", &core);
    let output = run_in(&folder, "read --dump dump --virtual --ttbr0 0x2000 0x7f80009000 6 --binary");
    assert_eq!((crate::harness::text(&output.stdout), crate::harness::text(&output.stderr)), ("canary", ""));
}

#[test]
fn dump_without_a_way_to_the_tables_needs_a_base() {
    for (name, make) in FORMATS.into_iter().filter(|(name, _)| *name != "xen-p2m") {
        let folder = folder_with(&format!("virtual-none-{name}"), &make(&pages()));
        assert_canary(&folder, "--cr3 0x1000");
        let line = refusal(&run_in(&folder, "read --dump dump --virtual 0 1")).to_owned();
        let expected = "the dump has neither a vcpu's page tables nor a Linux kernel's note (VMCOREINFO) that leads to \
                        them: give --cr3";
        assert_eq!(line, expected, "{name}");
    }
}

#[test]
fn tables_that_refer_to_themselves_end() {
    let mut pages = Pages::new();
    (0..512).for_each(|index| table(&mut pages, 1, index, 1));
    let folder = folder_with("virtual-cycle", &elf(&pages));
    let output = run_in(&folder, "read --dump dump --virtual --cr3 0x1000 0xffffffffffffffff 1 --binary");
    assert_eq!(output.stdout, pages[&1][FRAME_SIZE - 1..]);
}
