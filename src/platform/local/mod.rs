//! The local platform.
mod process;
mod rotate;
pub mod sdl;
pub mod shim;
mod wire;
mod writer;
