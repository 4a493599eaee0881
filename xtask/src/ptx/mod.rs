//! PTX as text: reading it, the post-pass over what rustc emits, and the facts an audit looks at.

pub mod bounds;
pub mod facts;
pub mod post;
pub mod scan;

#[cfg(test)]
mod tests;
