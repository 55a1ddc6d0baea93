//! The locks of what is tested under every schedule: those of std here, those of a model checker in its tests.

pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
