//! Driver layer.
