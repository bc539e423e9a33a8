//! The command line as clap sees it: usage lines, what is shown after the help, and the checks of several arguments.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use crate::args::{self, Args, SearchArgs};
use crate::examples;
use crate::printable::printable;

/// What a command is used on.
#[derive(Clone, Copy, PartialEq)]
enum Subject {
    Nothing,
    Host,
    Guest,
    /// `diff`: two dumps, or a dump and a guest.
    DumpAndGuest,
}

impl Subject {
    fn of(command: &str) -> Subject {
        match command {
            "completions" | "help" => Subject::Nothing,
            "domains" => Subject::Host,
            "diff" => Subject::DumpAndGuest,
            _ => Subject::Guest,
        }
    }

    /// Returns whether the argument, if it is one of [`args::Source`], can be used.
    fn takes(self, argument: &str) -> bool {
        match argument {
            "mock" | "mock_raw" | "mock_kind" => self != Subject::Nothing,
            "domain" | "pod_populate" => matches!(self, Subject::Guest | Subject::DumpAndGuest),
            _ => true,
        }
    }
}

/// Returns the command line as clap parses and documents it.
pub(crate) fn command() -> Command {
    let mut command = Args::command().after_help(examples::notes(""));
    command = command.mut_subcommands(|command| {
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

/// Adds the guest to the usage line that clap makes, which has only what clap itself requires.
fn with_usage(mut command: Command, subject: Subject) -> Command {
    let name = format!("xenmap {}", command.get_name());
    let usage = command.render_usage().to_string();
    let Some((_, arguments)) = usage.split_once(&format!("{name} ")) else { return command };
    let literal = command.get_styles().get_literal();
    let domain = format!("{literal}{name} --domain{literal:#} <DOMAIN>");
    let mock = format!("{literal}{name} --mock{literal:#} <FILE>");
    let lines = match subject {
        Subject::Nothing | Subject::Host => return command,
        Subject::Guest if command.get_name() == "dump" => {
            // A simulated guest does not run.
            vec![format!("{domain} <--pause|--live> {arguments}"), format!("{mock} {arguments}")]
        }
        Subject::Guest => vec![format!("{domain} {arguments}"), format!("{mock} {arguments}")],
        Subject::DumpAndGuest => {
            let (two, one) = (arguments.replace("[NEW]", "<NEW>"), arguments.replace(" [NEW]", ""));
            vec![format!("{literal}{name}{literal:#} {two}"), format!("{domain} {one}"), format!("{mock} {one}")]
        }
    };
    command.override_usage(lines.join("\n       "))
}

/// Parses the command line; the first argument is the name of the program.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Args, clap::Error> {
    let arguments: Vec<OsString> = arguments.collect();
    parse_as_they_are(&arguments).map_err(|error| {
        // clap quotes arguments, and a terminal must not obey what is in them. Escaped ones have the same error.
        let escaped: Vec<OsString> = arguments.iter().map(|arg| printable(&arg.to_string_lossy()).into()).collect();
        parse_as_they_are(&escaped).err().unwrap_or(error)
    })
}

fn parse_as_they_are(arguments: &[OsString]) -> Result<Args, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    let args = Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    check(&command, &matches, &args)?;
    Ok(args)
}

/// Checks the arguments of [`args::Source`] against each other and against the command. clap cannot: it checks what an
/// argument requires and excludes before it propagates global arguments.
fn check(command: &Command, matches: &ArgMatches, args: &Args) -> Result<(), clap::Error> {
    let Some(name) = matches.subcommand_name() else { return Ok(()) };
    let subject = Subject::of(name);
    let mut command = command.find_subcommand(name).cloned().unwrap_or_default();
    let mut error = |kind, context: &[(ContextKind, &str)]| {
        let mut error = clap::Error::new(kind).with_cmd(&command);
        for (kind, text) in context {
            let text = (*text).to_owned();
            let missing = error.kind() == ErrorKind::MissingRequiredArgument;
            error.insert(*kind, if missing { ContextValue::Strings(vec![text]) } else { ContextValue::String(text) });
        }
        error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
        Err(error)
    };
    let conflict = |arg, with| [(ContextKind::InvalidArg, arg), (ContextKind::PriorArg, with)];

    for id in matches.ids() {
        let id = id.as_str();
        let is_given = matches.value_source(id) == Some(ValueSource::CommandLine);
        if is_given && !subject.takes(id) {
            let option = format!("--{}", id.replace('_', "-"));
            let context = [(ContextKind::InvalidSubcommand, name), (ContextKind::PriorArg, &option)];
            return error(ErrorKind::ArgumentConflict, &context);
        }
    }
    let source = &args.source;
    let is_guest_given = source.mock.is_some() || source.domain.is_some();
    if source.mock.is_some() && source.domain.is_some() {
        return error(ErrorKind::ArgumentConflict, &conflict("--mock <FILE>", "--domain <DOMAIN>"));
    }
    if source.mock.is_none() && (source.mock_raw || source.mock_kind.is_some()) {
        return error(ErrorKind::MissingRequiredArgument, &[(ContextKind::InvalidArg, "--mock <FILE>")]);
    }
    if let args::Command::Diff { new: Some(_), search, .. } = &args.command {
        let guest = if source.mock.is_some() { "--mock <FILE>" } else { "--domain <DOMAIN>" };
        let option = if search.thorough { "--thorough" } else { "--search-limit <SECONDS>" };
        if is_guest_given {
            return error(ErrorKind::ArgumentConflict, &conflict("[NEW]", guest));
        }
        if *search != SearchArgs::default() {
            return error(ErrorKind::ArgumentConflict, &conflict("[NEW]", option));
        }
        return Ok(());
    }
    let missing = match subject {
        Subject::Nothing | Subject::Host => return Ok(()),
        _ if is_guest_given => return Ok(()),
        Subject::Guest => "<--domain <DOMAIN>|--mock <FILE>>",
        Subject::DumpAndGuest => "<NEW|--domain <DOMAIN>|--mock <FILE>>",
    };
    error(ErrorKind::MissingRequiredArgument, &[(ContextKind::InvalidArg, missing)]).map_err(
        |mut error: clap::Error| {
            let tips = ["'xenmap domains' lists the domains of this host".to_owned()];
            let example =
                examples::of(name).iter().map(|example| example.command).find(|line| line.contains("--domain"));
            let tips = tips.into_iter().chain(example.map(|line| format!("for example: {line}")));
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips.map(Into::into).collect()));
            error
        },
    )
}
