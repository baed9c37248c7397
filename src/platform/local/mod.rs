//! The local platform.
pub mod sdl;
