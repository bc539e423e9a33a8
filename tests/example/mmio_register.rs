//! Runs `examples/mmio_register.rs` on the simulated host.

use crate::example;

#[test]
fn guest_uses_the_register() {
    let output = example("mmio_register").output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    let expected = "serving domain 1 at 0xe0000000\nthe guest reads 1, then 2\nit writes 40, and reads 41\n";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert!(output.status.success());
}
