//! A real RabbitMQ node, as it comes out of its package, in a temporary directory of its own.
//!
//! Nothing of the machine's own node is shared: not the node name, the cookie, the port mapper (epmd), the
//! configuration or the data; so test processes may run side by side, and as any user. The package's wrapper in
//! `/usr/sbin` changes the user; the scripts below `/usr/lib` do not. All ports are bound to 127.0.0.1.
//!
//! A node takes four seconds of processor time to start, nearly all of it for loading code: it loads every module of
//! every plugin it could enable. A plugin directory with nothing in it but RabbitMQ itself saves a third of that. What
//! is left is the reason for [`shared`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::group::Group;
use super::ports;
use super::server::{Server, find_program, try_find_program};
use super::tls::{self, Certificates};
use super::wait::eventually;

const SCRIPTS: &[&str] = &["/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin"];
const ERLANG: &[&str] = &["/usr/lib/erlang/bin", "/usr/local/lib/erlang/bin"];
const COOKIE: &str = "shelfmill-tests";
const PATIENCE: Duration = Duration::from_secs(20);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Few schedulers, since a machine of many cores would start many, and none that waits busily for work.
const ERLANG_ARGUMENTS: &str = concat!(
    "+S 2:2 +SDcpu 2:2 +SDio 2 +A 1 +sbwt none +sbwtdcpu none +sbwtdio none ",
    "-kernel inet_dist_use_interface {127,0,0,1}",
);

/// A quorum queue's counts are as old as its last tick; every 5 s is the default.
const ADVANCED_CONFIG: &str = "[{rabbit, [{quorum_tick_interval, 200}]}].\n";

/// A running or killed node. Dropping it kills it and removes its data.
pub(crate) struct RabbitMq {
    server: Server,
    port: u16,
    tls_port: Option<u16>,
    distribution_port: u16,
    mapper_port: u16,
    _mapper: Group,
}

/// What a queue holds; at most about 200 ms old for a quorum queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) ready: u64,
    pub(crate) unacked: u64,
    /// `quorum`, `classic` or `stream`.
    pub(crate) kind: String,
    pub(crate) consumers: u64,
}

/// The node that all tests of this process share; use run names of your own. It cannot be killed, for it is not `mut`.
pub(crate) fn shared() -> &'static RabbitMq {
    static SHARED: OnceLock<RabbitMq> = OnceLock::new();
    SHARED.get_or_init(RabbitMq::start)
}

pub(crate) struct Builder {
    tls: bool,
}

impl Builder {
    /// Adds a port that speaks TLS.
    pub(crate) fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Starts the node and returns when it speaks AMQP.
    pub(crate) fn start(self) -> RabbitMq {
        RabbitMq::launch(self.tls.then(ports::free))
    }
}

impl RabbitMq {
    pub(crate) fn builder() -> Builder {
        Builder { tls: false }
    }

    /// Starts a node for one test, and returns when it speaks AMQP.
    pub(crate) fn start() -> Self {
        Self::builder().start()
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// Where it listens, for a proxy before it.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The same node by another port: a proxy's.
    pub(crate) fn url_by(&self, port: u16) -> String {
        self.url().replace(&self.port.to_string(), &port.to_string())
    }

    /// # Panics
    /// Without [`Builder::tls`].
    pub(crate) fn tls_url(&self) -> String {
        format!("amqps://guest:guest@localhost:{}/%2f", self.tls_port())
    }

    pub(crate) fn tls_port(&self) -> u16 {
        self.tls_port.expect("started with TLS")
    }

    /// Who signed the node's certificate (PEM).
    pub(crate) fn ca_file(&self) -> &'static Path {
        &tls::certificates().ca
    }

    /// What `rabbitmqctl` prints. It takes about a second; do not ask in a loop.
    ///
    /// # Panics
    /// When `rabbitmqctl` fails.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap_or_else(|error| panic!("rabbitmqctl {args:?}: {error}"))
    }

    /// All queues of the default virtual host, by name.
    ///
    /// # Panics
    /// When the node does not answer.
    pub(crate) fn queues(&self) -> BTreeMap<String, Queue> {
        // A busy node now and then refuses somebody who only looks.
        let listed = eventually(PATIENCE, "the list of queues", || self.list_queues());
        listed.lines().map(parse_queue).collect()
    }

    /// Whether the process of ours with that number has a connection for that.
    pub(crate) fn has_connection(&self, process: u32, purpose: &str) -> bool {
        // Their names are among what they say of themselves.
        let told = self.ctl(&["list_connections", "client_properties", "--no-table-headers"]);
        let its = [format!("-{process}-"), format!("({purpose})")];
        told.lines().any(|connection| its.iter().all(|part| connection.contains(part)))
    }

    pub(crate) fn kill(&mut self) {
        self.server.kill();
    }

    pub(crate) fn stop(&mut self) {
        self.server.stop();
    }

    /// Starts again on the same ports and data; stops it first if it runs.
    pub(crate) fn restart(&mut self) {
        self.server.stop();
        self.run();
        self.elect_leaders();
    }

    /// Has every quorum queue without a leader elect one, as docs/operations.md tells an operator to: one that was killed
    /// soon after it was declared does not by itself. (Seen of RabbitMQ 3.10.8.)
    fn elect_leaders(&self) {
        const ELECT: &str = "[ra:trigger_election(Server) || Queue <- rabbit_amqqueue:list(), \
             amqqueue:get_type(Queue) =:= rabbit_quorum_queue, \
             Server <- [amqqueue:get_pid(Queue)], ra_leaderboard:lookup_leader(element(1, Server)) =:= undefined].";
        self.ctl(&["eval", ELECT]);
    }

    /// The process of a queue does nothing any more, until the node is restarted.
    pub(crate) fn hold_queue(&self, queue: &str) {
        self.ctl(&["eval", &format!("sys:suspend(whereis(list_to_atom(\"%2F_{queue}\"))).")]);
    }

    pub(crate) fn pause(&mut self) {
        self.server.pause();
    }

    pub(crate) fn resume(&mut self) {
        self.server.resume();
    }

    fn launch(tls_port: Option<u16>) -> Self {
        let [port, distribution_port, mapper_port] = [(); 3].map(|()| ports::free());
        let server = Server::new("rabbitmq", tls_port.into_iter().chain([port, distribution_port]).collect());
        let mapper = Group::spawn(find_program("epmd", ERLANG), |command| {
            command.args(["-address", "127.0.0.1", "-port", &mapper_port.to_string()]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
        });
        let mut node = Self { server, port, tls_port, distribution_port, mapper_port, _mapper: mapper };
        node.write_files();
        node.run();
        node
    }

    fn run(&mut self) {
        let environment = self.environment();
        let (port, tls_port) = (self.port, self.tls_port);
        self.server.launch(
            &find_program("rabbitmq-server", SCRIPTS),
            |command| clear_and_set(command, &environment),
            || speaks_amqp(port).and_then(|()| tls_port.map_or(Ok(()), listens)),
        );
    }

    fn write_files(&self) {
        let mut config = format!(
            "listeners.tcp.local = 127.0.0.1:{}\n\
             vm_memory_high_watermark.absolute = 1GB\n\
             disk_free_limit.absolute = 50MB\n\
             raft.wal_max_size_bytes = 32000000\n",
            self.port
        );
        if let Some(port) = self.tls_port {
            let Certificates { ca, certificate, key } = tls::certificates();
            config += &format!(
                "listeners.ssl.local = 127.0.0.1:{port}\n\
                 ssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
                 ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n",
                ca.display(),
                certificate.display(),
                key.display()
            );
        }
        self.server.write("rabbitmq.conf", &config);
        self.server.write("advanced.config", ADVANCED_CONFIG);
        self.server.write("rabbitmq-env.conf", "");
        self.server.write("enabled_plugins", "[].\n");
        let cookie = self.server.write(".erlang.cookie", COOKIE);
        fs::set_permissions(cookie, fs::Permissions::from_mode(0o600)).expect("a file of ours");
        self.link_rabbit_alone();
    }

    /// Fills `plugins/` with a link to RabbitMQ itself; leaves it missing where the installation looks different.
    fn link_rabbit_alone(&self) {
        let server = find_program("rabbitmq-server", SCRIPTS);
        let Some(installed) =
            fs::canonicalize(server).ok().and_then(|path| Some(path.parent()?.parent()?.join("plugins")))
        else {
            return;
        };
        let entries = fs::read_dir(installed).into_iter().flatten().flatten();
        if let Some(rabbit) = entries.map(|entry| entry.path()).find(|path| is_rabbit_itself(path)) {
            fs::create_dir(self.plugins()).expect("a directory of ours");
            let name = rabbit.file_name().expect("an entry has a name");
            symlink(&rabbit, self.plugins().join(name)).expect("a directory of ours");
        }
    }

    fn plugins(&self) -> PathBuf {
        self.server.dir().join("plugins")
    }

    fn node(&self) -> String {
        format!("shelfmill-{}@localhost", self.port)
    }

    /// For the node and for the commands that talk to it.
    fn environment(&self) -> Vec<(&'static str, String)> {
        let dir = self.server.dir();
        let file = |name: &str| dir.join(name).display().to_string();
        let mut environment = vec![
            ("HOME", dir.display().to_string()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_EPMD_PORT", self.mapper_port.to_string()),
            ("RABBITMQ_NODENAME", self.node()),
            ("RABBITMQ_NODE_PORT", self.port.to_string()),
            ("RABBITMQ_DIST_PORT", self.distribution_port.to_string()),
            ("RABBITMQ_CONF_ENV_FILE", file("rabbitmq-env.conf")),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", file("generated")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            ("RABBITMQ_FEATURE_FLAGS_FILE", file("feature_flags")),
            ("RABBITMQ_MNESIA_BASE", file("data")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_LOGS", "-".to_owned()),
            ("RABBITMQ_PID_FILE", file("pid")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", ERLANG_ARGUMENTS.to_owned()),
            // The start script then becomes the Erlang machine instead of waiting for it, so that a wait for the
            // child is a wait for the broker, and SIGTERM reaches it.
            ("detached", "true".to_owned()),
        ];
        if self.plugins().is_dir() {
            environment.push(("RABBITMQ_PLUGINS_DIR", self.plugins().display().to_string()));
        }
        environment
    }

    fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(find_program("rabbitmqctl", SCRIPTS));
        clear_and_set(&mut command, &self.environment());
        output(command.args(["--quiet", "--node", &self.node()]).args(args), "")
    }

    /// One line a queue: name, type, ready, unacknowledged and consumers, parted by tabs.
    ///
    /// Tests ask this over and over. Erlang's own `erl_call` answers in 15 ms, with what `rabbitmqctl` takes a second
    /// to say in the same form; some Erlang installations come without it.
    fn list_queues(&self) -> Result<String, String> {
        const ITEMS: [&str; 5] = ["name", "type", "messages_ready", "messages_unacknowledged", "consumers"];
        const MARK: &str = "all";
        let Some(erl_call) = try_find_program("erl_call", ERLANG) else {
            return self.try_ctl(&[&["list_queues", "--no-table-headers"], &ITEMS[..]].concat());
        };
        // It drops a last line that does not end, and it does not fail when there is nothing to do; hence the mark.
        let expression = format!(
            r#"[io:format("~ts\t~w\t~w\t~w\t~w~n", [element(4, Name) | [Value || {{_, Value}} <- Rest]])
                || [{{name, Name}} | Rest] <- rabbit_amqqueue:info_all(<<"/">>, [{}])], io:format("{MARK}"), ok.
"#,
            ITEMS.join(", ")
        );
        let mut command = Command::new(erl_call);
        clear_and_set(&mut command, &self.environment());
        command.args(["-address", &format!("127.0.0.1:{}", self.distribution_port), "-c", COOKIE]);
        let said = output(command.args(["-e", "-fetch_stdout", "-no_result_term"]), &expression)?;
        said.strip_suffix(MARK).map(str::to_owned).ok_or(said)
    }
}

/// Nothing that is set for the machine's own node may reach ours.
fn clear_and_set(command: &mut Command, environment: &[(&'static str, String)]) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("RABBITMQ_") || text.starts_with("ERL_") || text == "NOTIFY_SOCKET" {
            command.env_remove(&name);
        }
    }
    command.envs(environment.iter().map(|(name, value)| (name, value)));
}

/// `rabbit-3.10.8` or `rabbit-4.0.5.ez`, and not `rabbit_common-…`.
fn is_rabbit_itself(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("rabbit-")
        .is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

fn parse_queue(line: &str) -> (String, Queue) {
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, kind, ready, unacked, consumers] = fields[..] else {
        panic!("five fields should tell a queue: {line:?}");
    };
    // A queue that has just been declared, or is electing its leader, has no counts yet.
    let count = |field: &str| field.parse().unwrap_or(0);
    let kind = kind.trim_start_matches("rabbit_").trim_end_matches("_queue").to_owned();
    let queue = Queue { ready: count(ready), unacked: count(unacked), kind, consumers: count(consumers) };
    (name.to_owned(), queue)
}

fn output(command: &mut Command, stdin: &str) -> Result<String, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    // A command that ends without reading its input says why on its own.
    let _ = child.stdin.take().expect("stdin is a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    Err(format!("{}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// The listeners open one after the other.
fn listens(port: u16) -> Result<(), String> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop).map_err(|error| format!("port {port}: {error}"))
}

/// Sends the protocol header and waits for the start of the answer, `connection.start` (AMQP 0-9-1, 2.2.4 and 2.3.5).
fn speaks_amqp(port: u16) -> Result<(), String> {
    const METHOD_FRAME: u8 = 1;
    const CONNECTION_START: [u8; 4] = [0, 10, 0, 10];
    let greet = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"AMQP\0\0\x09\x01")?;
        let mut answer = [0; 11];
        stream.read_exact(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    match greet() {
        Ok([METHOD_FRAME, _, _, _, _, _, _, method @ ..]) if method == CONNECTION_START => Ok(()),
        Ok(answer) => Err(format!("it answers the AMQP header with {answer:02x?}")),
        Err(error) => Err(format!("the AMQP port: {error}")),
    }
}
