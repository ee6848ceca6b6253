//! A network between a process and a server that can be made bad at run time.
//!
//! It forwards TCP from a port of its own to a server's. [`Proxy::restore`] makes it a good network again; connections
//! that lost bytes meanwhile are reset then, for a stream with a hole in it is one that no network delivers. The port
//! stays the same for the proxy's life, also while connections are refused and while the server is down.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt::set_socket_linger;

use super::ports;

/// How soon a thread that waits for bytes sees that its connection is over.
const POLL_EVERY: Duration = Duration::from_millis(10);
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks on their way in one direction; a sender that is faster waits, as with a full window.
const CHUNKS_ON_THE_WAY: usize = 64;

/// A network to one server. Dropping it cuts its connections.
pub(crate) struct Proxy {
    port: u16,
    network: Arc<Network>,
}

struct Network {
    server_port: u16,
    listener: Mutex<Option<TcpListener>>,
    connections: Mutex<Vec<Weak<Connection>>>,
    swallows: AtomicBool,
    to_server_ms: AtomicU64,
    to_client_ms: AtomicU64,
    is_over: AtomicBool,
}

impl Proxy {
    /// A good network to the server on this port of 127.0.0.1.
    pub(crate) fn to(server_port: u16) -> Self {
        let port = ports::free();
        let network = Arc::new(Network {
            server_port,
            listener: Mutex::new(None),
            connections: Mutex::new(Vec::new()),
            swallows: AtomicBool::new(false),
            to_server_ms: AtomicU64::new(0),
            to_client_ms: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        });
        let proxy = Self { port, network };
        proxy.restore();
        let network = Arc::clone(&proxy.network);
        thread::spawn(move || network.accept());
        proxy
    }

    /// Where clients connect to.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Half open: connections stay and new ones are accepted, and not a byte comes through, nor the end of a
    /// connection.
    pub(crate) fn swallow(&self) {
        self.network.swallows.store(true, Ordering::SeqCst);
    }

    /// What is sent from now on arrives so much later.
    pub(crate) fn delay(&self, to_server: Duration, to_client: Duration) {
        let ms = |delay: Duration| u64::try_from(delay.as_millis()).expect("a delay of this age");
        self.network.to_server_ms.store(ms(to_server), Ordering::SeqCst);
        self.network.to_client_ms.store(ms(to_client), Ordering::SeqCst);
    }

    /// Closes all connections; new ones are let in.
    pub(crate) fn cut(&self) {
        self.network.end_all(Connection::cut);
    }

    /// The same with a reset (RST) instead of an orderly end.
    pub(crate) fn reset(&self) {
        self.network.end_all(Connection::reset);
    }

    /// New connections are refused, as by a machine where nobody listens; those there are go on.
    pub(crate) fn refuse(&self) {
        if let Some(listener) = lock(&self.network.listener).take() {
            // A process that another test is starting has it, too, until it is a program of its own.
            rustix::net::shutdown(&listener, rustix::net::Shutdown::Read).expect("a listener of ours");
        }
    }

    /// A good network again.
    pub(crate) fn restore(&self) {
        self.delay(Duration::ZERO, Duration::ZERO);
        if self.network.swallows.swap(false, Ordering::SeqCst) {
            self.network.end_all(|connection| {
                if connection.has_a_hole.load(Ordering::SeqCst) {
                    connection.reset();
                }
            });
        }
        let mut listener = lock(&self.network.listener);
        if listener.is_none() {
            let opened =
                TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).expect("the proxy's port is free");
            opened.set_nonblocking(true).expect("a listener of ours");
            *listener = Some(opened);
        }
    }

    /// Connections that are open now.
    pub(crate) fn connections(&self) -> usize {
        let connections = lock(&self.network.connections);
        connections.iter().filter_map(Weak::upgrade).filter(|connection| !connection.is_over()).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.network.is_over.store(true, Ordering::SeqCst);
        self.cut();
    }
}

impl Network {
    fn accept(self: Arc<Self>) {
        while !self.is_over.load(Ordering::SeqCst) {
            let accepted = lock(&self.listener).as_ref().map(TcpListener::accept);
            match accepted {
                // Where the server is down, the client's connection ends at once, as behind a load balancer.
                Some(Ok((client, _))) => drop(self.connect(client)),
                _ => thread::sleep(POLL_EVERY),
            }
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, self.server_port))?;
        for socket in [&client, &server] {
            socket.set_nonblocking(false)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(POLL_EVERY))?;
            socket.set_write_timeout(Some(POLL_EVERY))?;
        }
        let connection = Arc::new(Connection {
            client,
            server,
            is_over: AtomicBool::new(false),
            has_a_hole: AtomicBool::new(false),
        });
        let mut connections = lock(&self.connections);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(&connection));
        drop(connections);
        for to_server in [true, false] {
            let (sender, receiver) = mpsc::sync_channel(CHUNKS_ON_THE_WAY);
            let (network, reading) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || network.read(&reading, to_server, &sender));
            let (network, writing) = (Arc::clone(self), Arc::clone(&connection));
            thread::spawn(move || network.write(&writing, to_server, &receiver));
        }
        Ok(())
    }

    fn end_all(&self, end: impl Fn(&Connection)) {
        lock(&self.connections).iter().filter_map(Weak::upgrade).for_each(|connection| end(&connection));
    }

    fn read(&self, connection: &Connection, to_server: bool, sender: &SyncSender<Sent>) {
        let (mut from, _) = connection.ends(to_server);
        let delay_ms = if to_server { &self.to_server_ms } else { &self.to_client_ms };
        let mut chunk = vec![0; CHUNK_BYTES];
        while !connection.is_over() {
            let read = match from.read(&mut chunk) {
                Err(error) if is_timeout(&error) => continue,
                read => read.unwrap_or(0),
            };
            if self.swallows.load(Ordering::SeqCst) {
                connection.has_a_hole.store(true, Ordering::SeqCst);
                if read == 0 {
                    // The end is swallowed, too: the other side is to see nothing.
                    thread::sleep(POLL_EVERY);
                }
                continue;
            }
            let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::SeqCst));
            // Fails when the writer has ended, and then so does this.
            if sender.send(Sent { due, bytes: chunk[..read].to_vec() }).is_err() || read == 0 {
                return;
            }
        }
    }

    fn write(&self, connection: &Connection, to_server: bool, sent: &Receiver<Sent>) {
        let (_, mut to) = connection.ends(to_server);
        while !connection.is_over() {
            let Sent { due, bytes } = match sent.recv_timeout(POLL_EVERY) {
                Ok(sent) => sent,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            while Instant::now() < due && !connection.is_over() {
                thread::sleep((due - Instant::now().min(due)).min(POLL_EVERY));
            }
            if self.swallows.load(Ordering::SeqCst) {
                connection.has_a_hole.store(true, Ordering::SeqCst);
                continue;
            }
            if bytes.is_empty() {
                // One side is done; what comes the other way may still be on its way.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() && !connection.is_over() {
                match to.write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if is_timeout(&error) => {}
                    Err(_) => return connection.cut(),
                }
            }
        }
    }
}

/// Bytes on their way; none are the end of the stream.
struct Sent {
    due: Instant,
    bytes: Vec<u8>,
}

/// Both ends; they close when the last of its threads lets go.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    is_over: AtomicBool,
    has_a_hole: AtomicBool,
}

impl Connection {
    fn ends(&self, to_server: bool) -> (&TcpStream, &TcpStream) {
        if to_server { (&self.client, &self.server) } else { (&self.server, &self.client) }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn cut(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        for socket in [&self.client, &self.server] {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Closing a socket that does not linger sends a reset.
    fn reset(&self) {
        for socket in [&self.client, &self.server] {
            let _ = set_socket_linger(socket, Some(Duration::ZERO));
        }
        self.is_over.store(true, Ordering::SeqCst);
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
