"""RabbitMQ, Redis and the simulator: as their packages ship them, on free ports of 127.0.0.1, in a folder of ours.

Nothing of the machine's own RabbitMQ is shared: not the node's name, the cookie, the port mapper or the data
(tests/support/rabbitmq.rs tells why each of these settings is needed).
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import time
import urllib.request

from processes import BenchError, Child, clean_environment

READY_WITHIN_S = 90
RABBITMQ_FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")
ERLANG_FOLDERS = ("/usr/lib/erlang/bin", "/usr/local/lib/erlang/bin")


def program(name, folders=()):
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if not found:
        raise BenchError(f"{name} is not installed (tests/install-servers.sh does that)")
    return found


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ask(port, question, answer_bytes):
    """Sends the bytes and returns the first of the answer; raises OSError where nobody listens."""
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(question)
        answer = b""
        while len(answer) < answer_bytes and (more := connection.recv(answer_bytes - len(answer))):
            answer += more
        return answer


def wait_until(child, ready):
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if child.has_ended():
            break
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise BenchError(f"{child.name} did not start:\n{child.tail()}")


class RabbitMq:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir()
        self.port, mapper_port = free_port(), free_port()
        self.node = f"shelfmill-bench-{self.port}@localhost"
        self.environment = self._write_files(mapper_port)
        mapper = [program("epmd", ERLANG_FOLDERS), "-address", "127.0.0.1", "-port", mapper_port]
        Child("epmd", mapper, self.folder / "epmd.log")
        server = program("rabbitmq-server", RABBITMQ_FOLDERS)
        self.child = Child("RabbitMQ", [server], self.folder / "log", self.environment)
        # The protocol header, answered by connection.start.
        wait_until(self.child, lambda: ask(self.port, b"AMQP\0\0\x09\x01", 11)[7:] == b"\0\x0a\0\x0a")

    @property
    def url(self):
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2f"

    def _write_files(self, mapper_port):
        def write(name, text, mode=0o644):
            path = self.folder / name
            path.write_text(text)
            path.chmod(mode)
            return str(path)

        write(".erlang.cookie", "shelfmill-bench", 0o600)
        return {
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper_port),
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": write("rabbitmq-env.conf", ""),
            "RABBITMQ_CONFIG_FILE": write("rabbitmq.conf", f"listeners.tcp.local = 127.0.0.1:{self.port}\n"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": write("advanced.config", "[].\n"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": write("enabled_plugins", "[].\n"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self.folder / "feature_flags"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            # The start script becomes the Erlang machine, so that our child is the broker itself.
            "detached": "true",
        }

    def ctl(self, *args):
        command = [program("rabbitmqctl", RABBITMQ_FOLDERS), "--quiet", "--node", self.node, *args]
        done = subprocess.run(
            command, env=clean_environment(self.environment), capture_output=True, text=True, timeout=60
        )
        if done.returncode != 0:
            raise BenchError(f"rabbitmqctl {args[0]}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def disk_bytes(self):
        return sum(file.stat().st_size for file in (self.folder / "data").rglob("*") if file.is_file())

    def delete_queues(self):
        """So that no run pays for the queues of those before it."""
        delete = "rabbit_amqqueue:delete(Queue, false, false, <<\"bench\">>)"
        self.ctl("eval", f"[{delete} || Queue <- rabbit_amqqueue:list()], ok.")

    def version(self):
        return self.ctl("version") + " on Erlang " + self.ctl("eval", "erlang:system_info(otp_release).").strip('"')


class Redis:
    def __init__(self, folder):
        folder = pathlib.Path(folder)
        folder.mkdir()
        self.port = free_port()
        config = folder / "redis.conf"
        config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {folder}\ndaemonize no\nsave \"\"\n"
            "appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n"
        )
        self.child = Child("Redis", [program("redis-server"), config], folder / "log")
        wait_until(self.child, lambda: ask(self.port, b"PING\r\n", 7) == b"+PONG\r\n")

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self):
        ask(self.port, b"FLUSHALL\r\n", 5)

    def command(self, *words):
        """Of a command that answers with one value: text, a number or nothing."""
        parts = [str(word).encode() for word in words]
        question = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(question)
            with connection.makefile("rb") as answer:
                head = answer.readline().decode().strip()
                if head.startswith("$"):
                    return None if head == "$-1" else answer.read(int(head[1:])).decode(errors="replace")
        if head.startswith("-"):
            raise BenchError(f"Redis, {words[0]}: {head[1:]}")
        return int(head[1:]) if head.startswith(":") else head[1:]

    def used_bytes(self):
        """What Redis itself counts; not the process' resident set, which follows it in larger steps."""
        return int(re.search(r"used_memory:(\d+)", self.command("INFO", "memory")).group(1))

    @staticmethod
    def version():
        told = subprocess.run([program("redis-server"), "--version"], capture_output=True, text=True, check=True)
        found = re.search(r"v=(\S+)", told.stdout)
        return found.group(1) if found else told.stdout.strip()


class Simulator:
    """Answers at once unless given a latency; counts the calls."""

    def __init__(self, binary, folder, *options):
        folder = pathlib.Path(folder)
        folder.mkdir()
        command = [binary, "simulate", "--port", "0", "--no-product-counts", *options]
        self.child = Child("simulator", command, folder / "log", stdout=subprocess.PIPE)
        self.url = self.child.popen.stdout.readline().decode().strip()
        if not re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", self.url):
            raise BenchError(f"the simulator does not say where it listens:\n{self.child.tail()}")

    def _ask(self, path, method):
        request = urllib.request.Request(self.url.removesuffix("/v1") + path, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=10) as response:
            return json.load(response)

    def calls(self):
        return self._ask("/stats", "GET")["calls"]

    def reset(self):
        self._ask("/reset", "POST")
