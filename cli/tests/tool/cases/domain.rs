//! Finding the domain that `--domain` names.

use xenmap::mock::{MockDomain, MockHost};
use xenmap::{ForeignMemory, GuestKind};

use crate::called::Called;

/// Makes a host with domains of these names, numbered from 1.
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

/// Returns the number of the domain that the argument names, or the error.
fn found(memory: &ForeignMemory, argument: &str) -> Result<u16, String> {
    let domid = Called::from_argument(argument).and_then(|called| called.domid(memory));
    domid.map(xenmap::Domid::get).map_err(|e| e.to_string())
}

#[test]
fn digits_are_a_number_and_everything_else_is_a_name() {
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
fn number_without_a_domain_is_left_to_the_command() {
    let (memory, _guests) = named(&["17"]);
    assert_eq!(found(&memory, "17"), Ok(17));
    assert!(found(&memory, "70000").unwrap_err().contains("70000"));
}

#[test]
fn name_without_a_domain_is_an_error_in_one_line() {
    let (memory, _guests) = named(&["web"]);
    for (argument, name) in [("we\nb\x1b", r#""we\nb\u{1b}""#), ("name:1", r#""1""#)] {
        let expected = format!("no domain is called {name}; 'xenmap domains' lists them");
        assert_eq!(found(&memory, argument).unwrap_err(), expected);
    }
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
