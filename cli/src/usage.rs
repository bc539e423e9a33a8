//! The command line as clap parses and shows it: usage lines, examples, and checks across arguments.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::args::Args;
use crate::examples;
use crate::printable::printable;

/// The ids of the arguments of [`crate::args::Source`].
const SOURCE: [&str; 7] = ["domain", "mock", "mock_raw", "mock_kind", "dump", "dump_raw", "pod_populate"];

/// The ids of arguments that only have an effect on a guest.
const FOR_A_GUEST: [&str; 6] = ["thorough", "search_limit", "pod_populate", "pause", "live", "copy_by"];

/// What a command works on.
#[derive(Clone, Copy, PartialEq)]
enum Subject {
    Nothing,
    Host,
    /// A guest, and no dump of one.
    LiveGuest,
    /// A guest, or a dump of one.
    Guest,
    /// `diff`: two dumps, or a dump and a guest.
    DumpAndGuest,
}

impl Subject {
    fn of(command: &str) -> Subject {
        match command {
            "completions" | "help" => Subject::Nothing,
            "domains" => Subject::Host,
            "write" => Subject::LiveGuest,
            "diff" => Subject::DumpAndGuest,
            _ => Subject::Guest,
        }
    }

    /// Returns whether an argument can be used; all can but some of [`SOURCE`].
    fn takes(self, argument: &str) -> bool {
        match argument {
            "mock" | "mock_raw" | "mock_kind" => self != Subject::Nothing,
            "domain" | "pod_populate" => !matches!(self, Subject::Nothing | Subject::Host),
            "dump" | "dump_raw" => matches!(self, Subject::Guest | Subject::DumpAndGuest),
            _ => true,
        }
    }
}

/// Returns the command line as clap parses and documents it.
pub(crate) fn command() -> Command {
    let mut command = Args::command()
        .after_help("'xenmap help <COMMAND>' shows the options of a command, with examples")
        .after_long_help(examples::notes(""))
        .mut_subcommands(|command| {
            let notes = examples::notes(command.get_name());
            command.after_long_help(notes)
        });
    // Usage lines need the names, and each command its copies of the global arguments.
    command.build();
    command.mut_subcommands(|command| {
        let subject = Subject::of(command.get_name());
        let command = command.mut_args(|arg| {
            let takes = subject.takes(arg.get_id().as_str());
            if takes { arg } else { arg.hide(true) }
        });
        with_usage(command, subject)
    })
}

/// Adds the guest to the usage line. clap leaves it out, because its arguments are optional for clap.
fn with_usage(mut command: Command, subject: Subject) -> Command {
    let name = format!("xenmap {}", command.get_name());
    let usage = command.render_usage().to_string();
    let Some((_, arguments)) = usage.split_once(&format!("{name} ")) else { return command };
    let literal = command.get_styles().get_literal();
    let domain = format!("{literal}{name} --domain{literal:#} <DOMAIN>");
    let mock = format!("{literal}{name} --mock{literal:#} <FILE>");
    let dump = format!("{literal}{name} --dump{literal:#} <FILE>");
    let guests = |arguments: &str| vec![format!("{domain} {arguments}"), format!("{mock} {arguments}")];
    let lines = match subject {
        Subject::Nothing | Subject::Host => return command,
        Subject::LiveGuest => guests(arguments),
        Subject::Guest => {
            // Only a guest of the host runs.
            let is_dump = command.get_name() == "dump";
            let domain = if is_dump { format!("{domain} <--pause|--live>") } else { domain };
            [domain, mock, dump].map(|start| format!("{start} {arguments}")).to_vec()
        }
        Subject::DumpAndGuest => {
            let (two, one) = (arguments.replace("[NEW]", "<NEW>"), arguments.replace(" [NEW]", ""));
            let mut lines = guests(&one);
            lines.insert(0, format!("{literal}{name}{literal:#} {two}"));
            lines
        }
    };
    command.override_usage(lines.join("\n       "))
}

/// Parses the command line; the first argument is the name of the program.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Args, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    parse_as_they_are(&arguments).map_err(|error| {
        // The error quotes arguments, and a terminal must not obey them. Escaped arguments have the same error.
        let escaped: Vec<OsString> = arguments.iter().map(|arg| printable(&arg.to_string_lossy()).into()).collect();
        parse_as_they_are(&escaped).err().unwrap_or(error)
    })
}

fn parse_as_they_are(arguments: &[OsString]) -> Result<Args, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        check(command, matches).map_err(|problem| problem.error(command.clone()))?;
    }
    Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// A wrong combination of arguments, which are named by their ids.
enum Problem {
    NotForCommand(&'static str),
    Conflict(&'static str, &'static str),
    Missing(&'static str),
    MissingGuest(&'static str),
}

/// Checks the arguments of [`SOURCE`] against each other and against the command. clap cannot: it checks what an
/// argument requires and excludes before it propagates global arguments.
fn check(command: &Command, matches: &ArgMatches) -> Result<(), Problem> {
    let subject = Subject::of(command.get_name());
    // Not every command has every argument, and clap panics if asked for another one.
    let is_given = |id| {
        matches.try_contains_id(id).is_ok_and(|is_there| is_there)
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    if let Some(id) = SOURCE.into_iter().find(|id| is_given(id) && !subject.takes(id)) {
        return Err(Problem::NotForCommand(id));
    }
    let has_new = subject == Subject::DumpAndGuest && is_given("new");
    let mut for_a_guest = SOURCE.into_iter().chain(FOR_A_GUEST);
    if let Some(id) = for_a_guest.find(|id| has_new && is_given(id)) {
        return Err(Problem::Conflict("new", id));
    }
    let given: Vec<&str> = ["domain", "mock", "dump"].into_iter().filter(|id| is_given(id)).collect();
    if let [one, other, ..] = given[..] {
        return Err(Problem::Conflict(other, one));
    }
    for (id, needs) in [("mock_raw", "mock"), ("mock_kind", "mock"), ("dump_raw", "dump")] {
        if is_given(id) && !is_given(needs) {
            return Err(Problem::Missing(needs));
        }
    }
    if let Some(id) = FOR_A_GUEST.into_iter().find(|id| is_given("dump") && is_given(id)) {
        return Err(Problem::Conflict("dump", id));
    }
    if let Some(id) = ["thorough", "search_limit"].into_iter().find(|id| is_given("virtual") && is_given(id)) {
        return Err(Problem::Conflict("virtual", id));
    }
    if !given.is_empty() || has_new {
        return Ok(());
    }
    match subject {
        Subject::Nothing | Subject::Host => Ok(()),
        Subject::LiveGuest => Err(Problem::MissingGuest("<--domain <DOMAIN>|--mock <FILE>>")),
        Subject::Guest => Err(Problem::MissingGuest("<--domain <DOMAIN>|--mock <FILE>|--dump <FILE>>")),
        Subject::DumpAndGuest => Err(Problem::MissingGuest("<NEW|--domain <DOMAIN>|--mock <FILE>>")),
    }
}

impl Problem {
    /// Returns the error that clap itself would return.
    fn error(self, mut command: Command) -> clap::Error {
        let shown = |id: &str| command.get_arguments().find(|arg| arg.get_id() == id).map(ToString::to_string);
        let string = |text: Option<String>| ContextValue::String(text.unwrap_or_default());
        let strings = |text: Option<String>| ContextValue::Strings(text.into_iter().collect());
        let (kind, context) = match self {
            Problem::NotForCommand(id) => {
                let command = (ContextKind::InvalidSubcommand, ContextValue::String(command.get_name().to_owned()));
                (ErrorKind::ArgumentConflict, vec![command, (ContextKind::PriorArg, string(shown(id)))])
            }
            Problem::Conflict(one, other) => {
                let one = (ContextKind::InvalidArg, string(shown(one)));
                (ErrorKind::ArgumentConflict, vec![one, (ContextKind::PriorArg, string(shown(other)))])
            }
            Problem::Missing(id) => {
                (ErrorKind::MissingRequiredArgument, vec![(ContextKind::InvalidArg, strings(shown(id)))])
            }
            Problem::MissingGuest(arguments) => {
                let mut tips = vec!["'xenmap domains' lists the domains of this host".into()];
                let examples = examples::of(command.get_name());
                if let Some((line, _)) = examples.iter().find(|(line, _)| line.contains("--domain")) {
                    tips.push(format!("for example, {line}").into());
                }
                let missing = (ContextKind::InvalidArg, strings(Some(arguments.to_owned())));
                let tips = (ContextKind::Suggested, ContextValue::StyledStrs(tips));
                (ErrorKind::MissingRequiredArgument, vec![missing, tips])
            }
        };
        let mut error = clap::Error::new(kind).with_cmd(&command);
        for (kind, value) in context {
            error.insert(kind, value);
        }
        error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
        error
    }
}
