//! Symbols of a Linux kernel as addresses, by a file that lists them: System.map, /proc/kallsyms, or an ISF of volatility3.
//!
//! The kernel may have been moved when it was booted (KASLR). Its VMCOREINFO note has the addresses of some symbols, which
//! tell how far.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::Result;
use crate::image::{foreign, open_file};
use crate::kernel::{self, Kernel};
use crate::number::number;

/// The largest file that is read.
const MAX_BYTES: u64 = 1 << 30;
/// The longest line that is read.
const MAX_LINE: u64 = 64 << 10;

/// An address on the command line: a number, or a symbol and the distance from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Number(u64),
    Symbol(String, u64),
}

impl Address {
    fn symbol(&self) -> Option<&str> {
        match self {
            Address::Number(_) => None,
            Address::Symbol(name, _) => Some(name),
        }
    }
}

/// Parses an address. What begins with a letter is a symbol.
pub(crate) fn address(text: &str) -> std::result::Result<Address, String> {
    let (name, distance) = text.split_once('+').unwrap_or((text, "0"));
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.$".contains(c));
    if is_name { Ok(Address::Symbol(name.to_owned(), number(distance)?)) } else { Ok(Address::Number(number(text)?)) }
}

/// Returns addresses as numbers. `file` lists symbols.
pub(crate) fn resolve(addresses: &[Address], file: Option<&Path>, kernel: &Kernel<'_>) -> Result<Vec<u64>> {
    let has_symbols = addresses.iter().any(|address| address.symbol().is_some());
    let symbols = if has_symbols { Some(Symbols::new(addresses, file, kernel)?) } else { None };
    let resolve = |address: &Address| match (address, &symbols) {
        (Address::Number(number), _) => Ok(*number),
        (Address::Symbol(name, distance), Some(symbols)) => Ok(symbols.find(name)?.wrapping_add(*distance)),
        (Address::Symbol(name, _), None) => Err(format!("{name} is no address").into()),
    };
    addresses.iter().map(resolve).collect()
}

/// Some of the symbols that a file lists, and how far the kernel was moved.
struct Symbols {
    file: String,
    listed: Listed,
    moved_by: u64,
}

/// Symbols of a file by name.
type Listed = HashMap<String, Symbol>;

struct Symbol {
    address: u64,
    /// It is not an address in the kernel, and was not moved with it.
    is_absolute: bool,
    /// Whether there is another symbol of that name with another address.
    is_ambiguous: bool,
}

impl Symbols {
    fn new(addresses: &[Address], file: Option<&Path>, kernel: &Kernel<'_>) -> Result<Symbols> {
        let given: Vec<&str> = addresses.iter().filter_map(Address::symbol).collect();
        let no_file = || {
            format!(
                "{} is no number, and a symbol needs --virtual and --symbols FILE, which is the kernel's System.map, its \
                 /proc/kallsyms, or an ISF of volatility3",
                given.join(", ")
            )
        };
        let path = file.ok_or_else(no_file)?;
        let file = path.display().to_string();
        let note = kernel.note()?.ok_or(
            "there is no VMCOREINFO note of a Linux kernel, which says where the kernel's symbols are: give addresses",
        )?;
        let known: HashMap<&str, u64> = kernel::symbols(note).collect();
        let wanted: HashSet<&str> = known.keys().copied().chain(given).collect();
        let listed = list(path, &wanted).map_err(|e| format!("cannot use {file} as a list of symbols: {e}"))?;
        let distance = |(name, address): (&&str, &u64)| {
            let symbol = listed.get(*name).filter(|symbol| !symbol.is_ambiguous)?;
            Some(address.wrapping_sub(symbol.address))
        };
        let mut distances = known.iter().filter_map(distance);
        let moved_by =
            distances.next().ok_or_else(|| format!("{file} is not of this kernel: it has none of its symbols"))?;
        if distances.any(|distance| distance != moved_by) {
            return Err(format!("{file} is not of this kernel: its symbols have other distances").into());
        }
        Ok(Symbols { file, listed, moved_by })
    }

    fn find(&self, name: &str) -> Result<u64> {
        let symbol = self.listed.get(name).ok_or_else(|| format!("{} has no symbol {name}", self.file))?;
        if symbol.is_ambiguous {
            return Err(format!("{} has several symbols {name}: give the address", self.file).into());
        }
        Ok(if symbol.is_absolute { symbol.address } else { symbol.address.wrapping_add(self.moved_by) })
    }
}

/// Returns those of some symbols that a file lists.
fn list(path: &Path, wanted: &HashSet<&str>) -> Result<Listed> {
    let file = open_file(path)?;
    if file.metadata()?.len() > MAX_BYTES {
        return Err("it is larger than 1 GiB".into());
    }
    let mut file = BufReader::new(file.take(MAX_BYTES));
    let head = file.fill_buf()?;
    if let Some(foreign) = foreign::identify(head) {
        return Err(foreign.into());
    }
    let mut listed = Listed::new();
    let mut add = |name: &str, address: u64, is_absolute: bool| {
        if wanted.contains(name) {
            let symbol = Symbol { address, is_absolute, is_ambiguous: false };
            let first = listed.entry(name.to_owned()).or_insert(symbol);
            first.is_ambiguous |= first.address != address;
        }
    };
    if head.starts_with(b"{") {
        let mut json = serde_json::Deserializer::from_reader(file);
        let symbols = Isf { add: |name: &str, address: u64| add(name, address, false) };
        json.deserialize_map(symbols).and_then(|()| json.end()).map_err(|e| format!("it is not an ISF: {e}"))?;
    } else {
        let mut bytes = Vec::new();
        while file.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)? > 0 {
            if bytes.len() as u64 == MAX_LINE {
                return Err("it is not a list of symbols: it has too long a line".into());
            }
            let line = std::str::from_utf8(&bytes).map_err(|_| "it is not a list of symbols")?;
            // Address, type and name; in /proc/kallsyms a module may follow.
            let mut words = line.split_ascii_whitespace();
            let address = words.next().map(|word| u64::from_str_radix(word, 16));
            let (Some(Ok(address)), Some(kind), Some(name)) = (address, words.next(), words.next()) else {
                return Err(format!("it has a line that is not an address, a type and a name: {line:.80}").into());
            };
            add(name, address, kind.eq_ignore_ascii_case("a"));
            bytes.clear();
        }
    }
    if !listed.is_empty() && listed.values().all(|symbol| symbol.address == 0) {
        return Err("all addresses in it are 0: read /proc/kallsyms as root".into());
    }
    Ok(listed)
}

/// Reads an ISF (volatility3's `schemas`), of which only the addresses of symbols are needed, and keeps nothing of it:
/// `add` gets each symbol.
struct Isf<F> {
    add: F,
}

impl<'de, F: FnMut(&str, u64)> Visitor<'de> for Isf<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with symbols")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> std::result::Result<(), M::Error> {
        let mut has_symbols = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "symbols" {
                map.next_value_seed(IsfSymbols { add: &mut self.add })?;
                has_symbols = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if has_symbols { Ok(()) } else { Err(M::Error::missing_field("symbols")) }
    }
}

struct IsfSymbols<F> {
    add: F,
}

#[derive(Deserialize)]
struct IsfSymbol {
    #[serde(default)]
    address: u64,
}

impl<'de, F: FnMut(&str, u64)> DeserializeSeed<'de> for IsfSymbols<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, u64)> Visitor<'de> for IsfSymbols<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("symbols by name")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> std::result::Result<(), M::Error> {
        while let Some((name, IsfSymbol { address })) = map.next_entry::<String, _>()? {
            (self.add)(&name, address);
        }
        Ok(())
    }
}
