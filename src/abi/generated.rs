//! The bindings as build.rs has just made them.

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
