//! A primary and a shadow with a real link between them, on directories of their own.

mod crash;
mod direction;
mod frozen;
mod histories;
mod kernel;
mod pair;
mod power;
mod racing;
