//! The bindings that build.rs has just generated.

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
