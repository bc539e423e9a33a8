//! `xenmap translate`, run as a person does.

use serde_json::{Value, json};

use super::read::ram_with_page_tables;
use crate::harness::*;

#[test]
fn virtual_address_leads_to_a_physical_one_and_its_frame() {
    let folder = folder("translate-virtual");
    ram_with_page_tables(&folder);
    let args = "--mock ram translate 0xffff800000000ffb 0xffff800000001000 --virtual --cr3 0x1000";
    let output = run_in(&folder, args);
    let expected = "\
virtual address:     0xffff800000000ffb
physical address:    0x9ffb
guest frame (gfn):   0x9

virtual address:     0xffff800000001000
physical address:    0x7000
guest frame (gfn):   0x7
";
    assert_eq!((text(&output.stdout), text(&output.stderr)), (expected, ""));
    assert!(output.status.success());
    let output = run_in(&folder, &format!("{args} --json"));
    let expected = json!({"translations": [
        {"virtual": 0xFFFF_8000_0000_0FFB_u64, "physical": 0x9FFB, "gfn": 9},
        {"virtual": 0xFFFF_8000_0000_1000_u64, "physical": 0x7000, "gfn": 7},
    ]});
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected);
}

#[test]
fn physical_address_of_a_pv_guest_leads_to_a_machine_frame() {
    let folder = folder("translate-pv");
    ram(&folder, &[(0, b"a"), (frame(2), b"c")]);
    let output = run_in(&folder, "--mock ram --mock-kind pv translate 0x2003 --json");
    assert!(text(&output.stdout).starts_with("{\"translations\":[{\"physical\":8195,\"mfn\":"), "{output:?}");
    let object = json(&output);
    let mfn = object["translations"][0]["mfn"].as_u64().unwrap();
    // The frames of the simulated machine begin far above the guest's.
    assert!(mfn > 2, "{object}");
    assert_eq!(object, json!({"translations": [{"physical": 0x2003, "mfn": mfn}]}));
    let output = run_in(&folder, "--mock ram --mock-kind pv translate 0x2003");
    assert_eq!(text(&output.stdout), format!("physical address:    0x2003\nmachine frame (mfn): {mfn:#x}\n"));
    let output = run_in(&folder, "--mock ram --mock-kind pv translate 0x1000");
    let expected = "physical address 0x1000: the guest's p2m has no machine frame for it";
    assert_eq!(refusal(&output), expected);
}

#[test]
fn address_without_translation_does_not_hide_the_others() {
    let folder = folder("translate-none");
    ram_with_page_tables(&folder);
    let args = "--mock ram translate 0 0xffff800000000000 --virtual --cr3 0x1000";
    let reason = "virtual address 0x0: its entry in the PML4 (level 4) is not present";
    let output = run_in(&folder, args);
    assert_eq!(refusal(&output), reason);
    let expected = "\
virtual address:     0xffff800000000000
physical address:    0x9000
guest frame (gfn):   0x9
";
    assert_eq!(text(&output.stdout), expected);
    let output = run_in(&folder, &format!("{args} --json"));
    let expected = json!({"translations": [
        {"virtual": 0, "error": reason},
        {"virtual": 0xFFFF_8000_0000_0000_u64, "physical": 0x9000, "gfn": 9},
    ]});
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn address_past_the_last_frame_is_refused() {
    let folder = folder("translate-far");
    ram(&folder, &[(0, b"a")]);
    let output = run_in(&folder, "--mock ram translate 0xffffffffffffffff");
    assert!(refusal(&output).contains("the highest is 0xffffffffff"), "{}", text(&output.stderr));
}
