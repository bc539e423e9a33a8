//! What a restarted process needs to go on: a file that says which server it adopts, for which disk, and what the guest
//! has written to the registers.
//!
//! Each line is a name and hexadecimal numbers, and the last one is the end. Positions in queues are not in it, as they
//! change with each request: they are in the guest's memory.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::Result;

/// The last line, by which a part of a file is told from the whole.
const END: &str = "end";

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

    /// Returns the only list with a name.
    fn only(&self, name: &str) -> Result<&[u64]> {
        let mut lists = self.all(name);
        match (lists.next(), lists.next()) {
            (Some(numbers), None) => Ok(numbers),
            _ => Err(damaged(name)),
        }
    }

    /// Returns the list with a name, which must have `N` numbers.
    pub(crate) fn get<const N: usize>(&self, name: &str) -> Result<[u64; N]> {
        self.only(name)?.try_into().map_err(|_| damaged(name))
    }

    /// Returns the number with a name.
    pub(crate) fn number<T: TryFrom<u64>>(&self, name: &str) -> Result<T> {
        let [number] = self.get(name)?;
        T::try_from(number).map_err(|_| damaged(name))
    }

    /// Returns the list with a name, which must be `len` bytes.
    pub(crate) fn bytes(&self, name: &str, len: usize) -> Result<Vec<u8>> {
        let bytes: Option<Vec<u8>> = self.only(name)?.iter().map(|&number| u8::try_from(number).ok()).collect();
        bytes.filter(|bytes| bytes.len() == len).ok_or_else(|| damaged(name))
    }

    fn parse(text: &str) -> Result<State> {
        let mut state = State::default();
        let mut lines = text.lines();
        if lines.next_back() != Some(END) {
            return Err("its end is missing".into());
        }
        for line in lines {
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
        text + END + "\n"
    }
}

/// The error of a state whose numbers with this name make no sense.
pub(crate) fn damaged(name: &str) -> Box<dyn Error + Send + Sync> {
    format!("the state is damaged: {name}").into()
}

/// The file that holds the state.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    /// What the file says; `None` if nobody can go on from it.
    state: Option<State>,
}

impl StateFile {
    /// Reads the file, if it exists.
    pub(crate) fn open(path: PathBuf) -> Result<StateFile> {
        let state = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
            Ok(text) => State::parse(&text).map(Some),
        };
        let state = state.map_err(|e| format!("cannot read {}: {e}", path.display()))?;
        Ok(StateFile { path, state })
    }

    /// Returns what the file says; `None` if nobody can go on from it.
    pub(crate) fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// Replaces the file, unless the state is still the same. A process that is killed meanwhile leaves the old file.
    /// The file need not survive a crash of the host, as the guest does not.
    ///
    /// If that fails, removes the file: from an old state, another process would write to memory that the guest now
    /// uses for something else.
    pub(crate) fn write(&mut self, state: State) -> Result<()> {
        if self.state.as_ref() == Some(&state) {
            return Ok(());
        }
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        if let Err(e) = fs::write(&new, state.text()).and_then(|()| fs::rename(&new, &self.path)) {
            let _ = fs::remove_file(new); // may hold a part of the state, or not exist
            self.remove().map_err(|e| format!("remove {} before the next start: {e}", self.path.display()))?;
            return Err(format!("cannot write {}: {e}", self.path.display()).into());
        }
        self.state = Some(state);
        Ok(())
    }

    /// Removes the file, since there is nothing to go on with.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.state = None;
        fs::remove_file(&self.path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
    }
}
