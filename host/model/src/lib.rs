//! Every decision of the host.
#![forbid(unsafe_code)]
