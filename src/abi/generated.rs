//! The bindings as feature `bindgen` has just made them.

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
