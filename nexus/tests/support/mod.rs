//! What the tests of several files share.
#![allow(dead_code, reason = "no test uses all of it")]

pub(crate) mod certificates;
pub(crate) mod log;
