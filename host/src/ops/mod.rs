//! Launchers.
