//! The store, from the outside: only what [`Bucket`] offers.

mod answers;
mod conformance;
mod local;
mod lost_answers;
mod virtual_hosted;
