//! What comes in may mean harm, and what is secret stays so.

mod foreign_text;
mod hostile_model;
mod http;
mod messages;
mod secrets;
