//! Which domain the tool takes for the one that `--domain` names.

use xenmap::mock::{MockDomain, MockHost};
use xenmap::{ForeignMemory, GuestKind};

use crate::called::Called;

/// Domains 1, 2, … of these names.
fn named(names: &[&str]) -> (ForeignMemory, Vec<MockDomain>) {
    let host = MockHost::new();
    let guests = names.iter().map(|name| {
        let guest = host.create_domain(GuestKind::Hvm, 1);
        guest.set_name(name);
        guest
    });
    let guests = guests.collect();
    (host.open().unwrap(), guests)
}

/// The number of the domain that the argument stands for, or the error.
fn found(memory: &ForeignMemory, argument: &str) -> Result<u16, String> {
    let domid = Called::from_argument(argument).and_then(|called| called.domid(memory));
    domid.map(xenmap::Domid::get).map_err(|e| e.to_string())
}

#[test]
fn digits_are_a_number_and_all_else_is_a_name() {
    let (memory, _guests) = named(&["web", "4", "web2", "name:web", "", "name:"]);
    for (argument, domid) in [
        ("3", 3),
        ("4", 4),
        ("web", 1),
        ("web2", 3),
        ("name:web", 1),
        ("name:4", 2),
        ("name:name:web", 4),
        ("", 5),
        ("name:name:", 6),
    ] {
        assert_eq!(found(&memory, argument), Ok(domid), "{argument}");
    }
}

#[test]
fn number_of_no_domain_is_left_to_the_command() {
    let (memory, _guests) = named(&["17"]);
    assert_eq!(found(&memory, "17"), Ok(17));
    assert_eq!(
        found(&memory, "70000").unwrap_err(),
        "70000 does not name a domain whose memory can be mapped: give 0 to 32751"
    );
}

#[test]
fn name_of_no_domain_is_an_error_in_one_line() {
    let (memory, _guests) = named(&["web"]);
    assert_eq!(found(&memory, "we\nb\x1b").unwrap_err(), r#"no domain is called "we\nb\u{1b}"; `domains` lists them"#);
    assert_eq!(found(&memory, "name:1").unwrap_err(), r#"no domain is called "1"; `domains` lists them"#);
}

#[test]
fn name_of_several_domains_is_an_error_that_lists_them() {
    let (memory, guests) = named(&["db", "web", "web"]);
    guests[2].pause();
    for argument in ["web", "name:web"] {
        assert_eq!(
            found(&memory, argument).unwrap_err(),
            r#"2 domains are called "web": 2 (running), 3 (paused); choose one by its number"#
        );
    }
    guests[1].destroy();
    assert_eq!(found(&memory, "web"), Ok(3));
}
