"""A compose project of its own: starts, breaks and reads the stack of deploy/compose.yaml, and leaves nothing behind.

Waits are for conditions with a deadline (`eventually`), which say what was seen last.
"""

import io
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A binary to make the image of. Without one the Dockerfile compiles, which takes minutes.
BINARY = os.environ.get("BINARY")
CONTAINERS_UP = ROOT.parent / "shared" / "containers" / "up"


class Wrong(Exception):
    """What was promised does not hold."""


def check(condition, told):
    if not condition:
        raise Wrong(told)


def run(*command, env=None, quiet=True):
    done = subprocess.run([str(part) for part in command], env=env, text=True, capture_output=quiet)
    if done.returncode:
        raise Wrong(f"{' '.join(map(str, command))}: exit {done.returncode}\n{(done.stderr or '')[-3000:]}")
    return (done.stdout or "").strip()


def eventually(what, look, within=120):
    """What `look` returns as soon as that is true."""
    until = time.monotonic() + within
    while True:
        try:
            seen = look()
        except (Wrong, OSError, ValueError) as error:
            seen, last = None, error
        else:
            last = seen
        if seen:
            return seen
        if time.monotonic() > until:
            raise Wrong(f"waited {within} s for: {what}; last seen: {last}")
        time.sleep(0.25)  # between two looks


def need_docker():
    """Whether there is Docker, after trying to get it where that is known to be possible."""
    works = lambda: shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode \
        and not subprocess.run(["docker", "info"], capture_output=True).returncode
    images = ["debian:trixie-slim", "rust:1-slim-trixie", "rabbitmq:4-management", "redis:8", "prom/prometheus:latest"]
    have = lambda: not subprocess.run(["docker", "image", "inspect", *images], capture_output=True).returncode
    if CONTAINERS_UP.exists() and not (works() and have()):
        subprocess.run([CONTAINERS_UP, "debian", "rust", "rabbitmq", "redis", "prometheus"], stdout=subprocess.DEVNULL)
    # Where base images come from `up`, one that it could not make cannot be had; and there are machines whose Docker answers
    # and runs nothing.
    starts = lambda: not subprocess.run(["docker", "run", "--rm", "debian:trixie-slim", "true"], capture_output=True).returncode
    return bool(works() and (not CONTAINERS_UP.exists() or have() and starts()))


def build(tag, revision):
    """Builds the image, from BINARY if there is one; how long it took, in seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shelfmill-deploy-") as folder:
        if BINARY:
            shutil.copy(BINARY, pathlib.Path(folder) / "shelfmill")
            docker_build(ROOT, "--target", "sources")
        docker_build(folder if BINARY else ROOT, "-t", tag, "--build-arg", f"BINARY={'given' if BINARY else 'compiled'}",
                     "--build-arg", f"REVISION={revision}")
    return time.monotonic() - began


def docker_build(context, *arguments):
    run("docker", "build", "-q", "-f", ROOT / "deploy/Dockerfile", *arguments, context, env={**os.environ, "DOCKER_BUILDKIT": "1"})


def get(url, token=None):
    """Status and text, also of an answer that is a refusal; of a stream what comes first."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            endless = reply.headers.get_content_type() == "text/event-stream"
            return reply.status, (reply.read1() if endless else reply.read()).decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Stack:
    """`with Stack(...) as stack:` ends with `down -v`, and checks that nothing is left."""

    def __init__(self, image, products=0, overlays=(), profiles=(), **env):
        self.name = f"shelfmill-test-{secrets.token_hex(3)}"
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="shelfmill-deploy-"))
        os.chmod(self.folder, 0o755)  # uid 65532 reads the catalog
        self.ids = [f"P-{number:05}" for number in range(products)]
        if products:
            lines = (json.dumps({"id": id, "title": f"Product {id}", "description": "A thing to be had. " * 8}) for id in self.ids)
            (self.folder / "catalog.jsonl").write_text("\n".join(lines) + "\n")
            env = {"SHELFMILL_INPUT_DIR": str(self.folder), "SHELFMILL_CATALOG": "catalog.jsonl", **env}
        # Nothing of the caller's: the stack needs nothing set.
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SHELFMILL_", "OPENAI_", "COMPOSE_"))}
        self.env = {**kept, "SHELFMILL_IMAGE": image, **env}
        files = [ROOT / "deploy/compose.yaml", *(ROOT / "deploy" / overlay for overlay in overlays)]
        self.base = ["docker", "compose", "-p", self.name, "--env-file", "/dev/null"]
        self.base += [part for profile in ("simulate", *profiles) for part in ("--profile", profile)]
        for file in files:
            self.base += ["-f", file]

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            logs = subprocess.run([*map(str, self.base), "logs", "--tail", "12"], env=self.env, capture_output=True, text=True)
            print(logs.stdout[-12000:])
        run(*self.base, "down", "-v", "--remove-orphans", "-t", "5", env=self.env)
        shutil.rmtree(self.folder)
        left = [run("docker", *what, "--filter", f"label=com.docker.compose.project={self.name}", "-q")
                for what in (["ps", "-a"], ["volume", "ls"], ["network", "ls"])]
        if not kind:
            check(not any(left), f"`down -v` has left something behind: {left}")

    def compose(self, *arguments, quiet=True):
        return run(*self.base, *arguments, env=self.env, quiet=quiet)

    def up(self, *arguments):
        self.compose("up", "-d", "--no-build", *arguments)

    def containers(self, service, every=False):
        return self.compose("ps", "-q", *(["-a"] if every else []), service).split()

    def inspect(self, container, what):
        return run("docker", "inspect", "-f", what, container)

    def served(self, container, path, token=None):
        """What a role serves inside the network, where this machine can look, too. Status and text."""
        address = self.inspect(container, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
        return get(f"http://{address}:9464{path}", token)

    def stats(self):
        """What the simulator was asked and has answered."""
        return json.loads(get(f"http://{self.compose('port', 'simulator', '8000')}/stats")[1])

    def answered(self, at_least, within=240):
        eventually(f"{at_least} answers", lambda: self.stats()["answers"] >= at_least, within)

    def healthy(self, *services, within=180):
        for service in services:
            status = lambda: self.inspect(self.containers(service)[0], "{{.State.Health.Status}}")
            eventually(f"{service} is healthy", lambda: status() == "healthy", within)

    def end(self, within=600):
        """The aggregator's exit code, once it has ended."""
        def ended():
            [container] = self.containers("aggregator", every=True)
            return self.inspect(container, "{{.State.Status}} {{.State.ExitCode}}").split()
        return int(eventually("the aggregator's end", lambda: (seen := ended())[0] == "exited" and seen, within)[1])

    def files(self):
        """The run's files, by name."""
        [container] = self.containers("aggregator", every=True)
        packed = subprocess.run(["docker", "cp", f"{container}:/output/.", "-"], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return {member.name.removeprefix("./"): archive.extractfile(member).read().decode() for member in archive if member.isfile()}

    def judge(self):
        """Every product once, in the journal and in the final file; and each call of the simulator told. The summary."""
        files = self.files()
        lines = [json.loads(line) for line in files["enriched_products_incremental.jsonl"].splitlines()]
        check(sorted(line["id"] for line in lines) == self.ids, f"the journal has {len(lines)} lines, {len({line['id'] for line in lines})} ids; wanted {len(self.ids)}")
        final = json.loads(files["enriched_products_analysis.json"])
        final = final if isinstance(final, list) else final["products"]
        check([line["id"] for line in final] == self.ids, "the final file is not the catalog, in its order")
        check(not files.get("failed_products.jsonl", "").strip(), "products failed: " + files.get("failed_products.jsonl", "")[:500])
        summary, stats = json.loads(files["analysis_summary.json"]), self.stats()
        told = sum(line["meta"]["attempts"] + line["meta"].get("repeated_calls", 0) for line in lines)
        asked = {id: product["calls"] for id, product in stats["by_product"].items()}
        check(sorted(asked) == self.ids, "the model was not asked for exactly these products")
        check(stats["calls"] <= told, f"the model got {stats['calls']} calls, the journal tells of {told}")
        return {"products": len(lines), "calls": stats["calls"], "repeated": summary["calls"]["repeated"]}
