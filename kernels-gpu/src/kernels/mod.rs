//! One file per kernel.
