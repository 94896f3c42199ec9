//! Fabric (paper 3.1): what the owner of a node gives, and the book kept about it.

#![cfg_attr(not(test), no_std)]

mod ledger;

pub use ledger::{Amounts, Bytes, Ceilings, Ledger, Short};
