//! Commands for many slices at once: what there is, and what is to be done to it.

pub(crate) mod change;
mod choice;
pub(crate) mod ls;
mod place;
mod table;
pub(crate) mod verify;
