//! Real servers and real processes for whole-system tests, with nothing left behind.
//!
//! Tests of promises like "a `kill -9` loses nothing" are worth something only against the real RabbitMQ, the real
//! Redis and the real binary. Each is a process of its own on a free port of 127.0.0.1, in a temporary directory of
//! its own, under a watchdog that ends it however the test process ends. Everything blocks and panics: a test reads
//! top to bottom, and a failure shows the server's or the process's last lines.

pub(crate) mod amqp;
pub(crate) mod browser;
pub(crate) mod catalog;
pub(crate) mod checker;
pub(crate) mod fleet;
pub(crate) mod group;
pub(crate) mod http;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod redis;
pub(crate) mod results;
pub(crate) mod server;
pub(crate) mod simulator;
pub(crate) mod tls;
pub(crate) mod wait;
pub(crate) mod watchdog;
