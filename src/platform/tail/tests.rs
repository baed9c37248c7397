//! Tails of real files.

mod model;

use super::*;
