//! Model providers: the wire formats, and the registry that builds them from Provider documents.

pub mod openai;
