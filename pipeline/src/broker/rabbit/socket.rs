//! Attempts to connect that leave nothing behind.
//!
//! lapin gives every connection a thread that lives as long as its socket does. Where the other side accepts and says
//! nothing, giving up waiting ends neither, and a process that tries for hours would gather hundreds of both. So the
//! socket is known here, too, and is shut down with an attempt that fails or is given up, and with a connection that
//! is lost. A connection that works is closed by lapin, in order: what was sent on it must arrive.

use std::{
    io,
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lapin::{
    AsyncTcpStream, Connection, ConnectionProperties, runtime,
    tcp::OwnedTLSConfig,
    uri::{AMQPScheme, AMQPUri},
};

/// The socket of a connection, or of an attempt to make one. Dropping it ends the attempt.
#[derive(Default)]
pub(super) struct Socket {
    slot: Arc<Mutex<Slot>>,
    is_connected: bool,
}

#[derive(Default)]
struct Slot {
    socket: Option<TcpStream>,
    is_over: bool,
}

impl Slot {
    /// `false` when nobody waits for it any more.
    fn keep(&mut self, socket: TcpStream) -> bool {
        self.socket = Some(socket);
        !self.is_over
    }
}

impl Socket {
    /// Connects; when this is dropped before it has, so is everything it made.
    pub(super) async fn connect(
        uri: AMQPUri,
        properties: ConnectionProperties,
        tls: OwnedTLSConfig,
    ) -> lapin::Result<(Connection, Self)> {
        let socket = Self::default();
        let slot = Arc::clone(&socket.slot);
        let connect = Connection::connector(
            uri,
            runtime::default_runtime()?,
            async move |uri: AMQPUri, runtime| {
                let AMQPUri { scheme, authority, .. } = uri;
                let found = tokio::net::lookup_host((authority.host.as_str(), authority.port)).await?;
                let stream = AsyncTcpStream::connect(&runtime, found.collect::<Vec<_>>()).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    let own = TcpStream::from(plain.get_ref().as_fd().try_clone_to_owned()?);
                    if !lock(&slot).keep(own) {
                        return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into());
                    }
                }
                match scheme {
                    AMQPScheme::AMQP => Ok(stream),
                    AMQPScheme::AMQPS => Ok(stream.into_tls(&authority.host, tls.as_ref()).await?),
                }
            },
            properties,
        );
        let connection = connect.await?;
        Ok((connection, socket))
    }

    /// The attempt has come to its end: from here on lapin closes the connection, in order.
    pub(super) fn is_connected(&mut self) {
        self.is_connected = true;
    }

    /// Ends it without a word.
    pub(super) fn end(&self) {
        let mut slot = lock(&self.slot);
        slot.is_over = true;
        if let Some(socket) = slot.socket.take() {
            // Fails where it has ended already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.is_connected {
            self.end();
        }
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener, time::Duration};

    use tokio::time::timeout;

    use super::*;

    fn threads_of_lapin() -> usize {
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names.filter(|name| name.starts_with("lapin")).count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_attempt_that_is_given_up_leaves_neither_socket_nor_thread() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let uri: AMQPUri = format!("amqp://guest:guest@127.0.0.1:{port}/%2f").parse().unwrap();
        for _ in 0..3 {
            let connect =
                Socket::connect(uri.clone(), ConnectionProperties::default(), OwnedTLSConfig::default());
            timeout(Duration::from_millis(300), connect).await.map(|_| ()).expect_err("nobody answered");
            let (mut accepted, _) = silent.accept().unwrap();
            accepted.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut header = Vec::new();
            accepted.read_to_end(&mut header).expect("the socket is still open");
            assert_eq!(header, b"AMQP\0\0\x09\x01");
        }
        let gone = async {
            while threads_of_lapin() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(10), gone).await.expect("its threads end");
        silent.set_nonblocking(true).unwrap();
        assert!(silent.accept().is_err(), "lapin has tried again by itself");
    }
}
