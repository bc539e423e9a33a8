//! Tests of domains and of whole guests: RAM, p2m, page tables.

#[path = "../common/mod.rs"]
mod common;

mod domains;
mod p2m;
mod page_tables;
mod populate_on_demand;
mod ram_map;
mod ram_map_arm64;
mod ram_map_search;
mod toolstack;
mod translate;
mod translate_arm64;
mod translate_pv;
mod vcpu;
