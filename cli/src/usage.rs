//! Command lines that make no sense, although each option by itself does.

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::failure::Failure;

/// Says that the options of a command make no sense together, as clap would. `path` leads to the command:
/// `["region", "pack"]`.
pub(crate) fn usage(path: &[&str], message: String) -> Failure {
    let mut root = crate::Cli::command();
    root.build();
    let mut command = &mut root;
    for name in path {
        command = command.find_subcommand_mut(name).expect("the command is running, so it exists");
    }
    Failure::Usage(command.error(ErrorKind::ArgumentConflict, message))
}
