//! Peers that send too much, break HTTP/2, or send nothing: they lose their connections, and no other peer is
//! affected.

mod control_frames;
mod floods;
mod idle;
mod shut_out;
