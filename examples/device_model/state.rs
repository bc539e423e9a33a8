//! What a restarted process needs to go on: a file that says which server it adopts, and what the guest has written to
//! the registers.
//!
//! Each line is a name and hexadecimal numbers. Positions in queues are not in it, as they change with each request:
//! they are in the guest's memory.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Result;

/// Named lists of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State(Vec<(String, Vec<u64>)>);

impl State {
    pub(crate) fn add(&mut self, name: &str, numbers: impl IntoIterator<Item = u64>) {
        self.0.push((name.to_owned(), numbers.into_iter().collect()));
    }

    /// Returns the lists with a name.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &[u64]> {
        self.0.iter().filter(move |(found, _)| found == name).map(|(_, numbers)| &numbers[..])
    }

    /// Returns the list with a name, which must have `N` numbers.
    pub(crate) fn get<const N: usize>(&self, name: &str) -> Result<[u64; N]> {
        let numbers = self.all(name).next().and_then(|numbers| numbers.try_into().ok());
        numbers.ok_or_else(|| format!("the state has no {N} numbers for {name:?}").into())
    }

    /// Returns the list with a name, as bytes.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        self.all(name).flatten().map(|&number| u8::try_from(number).unwrap_or(0)).collect()
    }

    fn parse(text: &str) -> Result<State> {
        let mut state = State::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(name) = words.next() else { continue };
            let numbers = words.map(|word| u64::from_str_radix(word, 16)).collect::<std::result::Result<Vec<_>, _>>();
            state.add(name, numbers.map_err(|e| format!("{name}: {e}"))?);
        }
        Ok(state)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, numbers) in &self.0 {
            text.push_str(name);
            for number in numbers {
                let _ = write!(text, " {number:x}"); // a String takes everything
            }
            text.push('\n');
        }
        text
    }
}

/// The file that holds the state.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    last: State,
}

impl StateFile {
    pub(crate) fn new(path: PathBuf) -> StateFile {
        StateFile { path, last: State::default() }
    }

    /// Reads the state; `None` if the file does not exist or is empty.
    pub(crate) fn read(path: &Path) -> Result<Option<State>> {
        let error = |e: &dyn std::fmt::Display| format!("cannot read {}: {e}", path.display());
        match fs::read_to_string(path) {
            Ok(text) if text.trim().is_empty() => Ok(None),
            Ok(text) => State::parse(&text).map(Some).map_err(|e| error(&e).into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(error(&e).into()),
        }
    }

    /// Replaces the file, unless the state is still the same. A process that is killed meanwhile leaves the old file.
    pub(crate) fn write(&mut self, state: State) -> io::Result<()> {
        if state != self.last {
            let mut new = self.path.clone().into_os_string();
            new.push(".new");
            fs::write(&new, state.text())?;
            fs::rename(new, &self.path)?;
            self.last = state;
        }
        Ok(())
    }

    /// Removes the file, since there is nothing to go on with.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}
