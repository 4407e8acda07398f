//! A primary and a shadow with a real link between them, on directories of their own.

mod crash;
mod direction;
mod histories;
mod kernel;
mod pair;
