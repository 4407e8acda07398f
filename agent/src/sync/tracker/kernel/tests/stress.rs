//! Random work by several threads.
