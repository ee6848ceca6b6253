"""A fleet whose roles are started and ended one by one, and looked at meanwhile."""

import contextlib
import dataclasses
import time

import processes
from measure import FOREIGN_LIMIT
from processes import CORES, BenchError, Child
from servers import RabbitMq, Redis, Simulator

LOOK_EVERY_S = 0.1
FIRST_CALL_EVERY_S = 0.01
QUIET_PATIENCE_S = 60
# What takes longer is broken.
PATIENCE_S = 3_600


@dataclasses.dataclass
class FirstCall:
    """`cpu_s` is what roles and servers used until then, `foreign` the share of the machine that others did."""

    seconds: float
    cpu_s: float
    foreign: float


class Scene:
    def __init__(self, bench, name):
        self.bench, self.folder, self.name = bench, bench.work / name, name
        self.folder.mkdir()
        self.rabbitmq, self.redis = RabbitMq(self.folder / "rabbitmq"), Redis(self.folder / "redis")
        self.simulator = Simulator(bench.binary, self.folder / "simulator")
        self.servers = [self.rabbitmq.child, self.redis.child, self.simulator.child]
        self.children = []
        self.foreign = self.used_s = 0.0
        bench.versions |= {"RabbitMQ": self.rabbitmq.version(), "Redis": self.redis.version()}

    def role(self, name, *args):
        """A role of the run that bears the scene's name."""
        meet = ["--run", self.name, "--amqp-url", self.rabbitmq.url, "--redis-url", self.redis.url]
        return self.child(name, *args, "-q", *meet)

    def child(self, name, *args):
        child = Child(name, [self.bench.binary, *args], self.folder / f"{name}.log")
        self.children.append(child)
        return child

    def fact(self, name):
        """What the ledger says of the run."""
        return self.redis.command("HGET", f"shelfmill:{{{self.name}}}:run", name)

    def first_call(self, child):
        """From the start of the process to the first call at the simulator."""
        self.until(lambda: self.simulator.calls() > 0, FIRST_CALL_EVERY_S)
        return FirstCall(time.monotonic() - child.started, self._used_s() - self.used_s, self._foreign())

    def least_disturbed(self, attempt):
        """The first call of several rounds that others disturbed least; what it depends on is a free core."""
        rounds = []
        for number in range(self.bench.rounds):
            processes.wait_for_quiet(QUIET_PATIENCE_S)
            rounds.append(attempt(number))
            if rounds[-1].foreign <= FOREIGN_LIMIT:
                break
        return min(rounds, key=lambda first_call: first_call.foreign)

    def until(self, done, every_s=LOOK_EVERY_S):
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            self.check()
            if time.monotonic() > deadline:
                raise BenchError("\n".join(child.tail() for child in self.children))
            time.sleep(every_s)

    def check(self):
        """All that were started run, or have ended well; notes what they hold at most."""
        for child in [*self.servers, *self.children]:
            if child.ended is None and child.has_ended():
                child.reap()
                if child.status != 0 or child in self.servers:
                    raise BenchError(f"{child.name} ended with {child.status}:\n{child.tail()}")
            elif child.ended is None:
                child.sample()

    def watch(self, children, seconds):
        """Their resident sets in MB, sampled for so long."""
        held = {child.name: [] for child in children}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            for child in children:
                held[child.name].append(rss_mb(child))
            time.sleep(LOOK_EVERY_S)
        return held

    def kill_roles(self):
        for child in self.children:
            child.kill()

    def close(self):
        self.kill_roles()
        for server in (self.simulator, self.redis, self.rabbitmq):
            server.child.kill()

    @contextlib.contextmanager
    def step(self, what):
        """Keeps and logs how long it took, and how much of the machine others used meanwhile."""
        self.used_s, self.began = self._used_s(), time.monotonic()
        self.busy_before_s = processes.machine_busy_seconds() - processes.own_seconds() - self.used_s
        yield
        self.took_s, foreign = time.monotonic() - self.began, self._foreign()
        self.foreign = max(self.foreign, foreign)
        self.bench.log(f"{what}: {self.took_s:.1f} s; others used {foreign:.0%} of the machine")

    def _foreign(self):
        others_s = processes.machine_busy_seconds() - processes.own_seconds() - self._used_s() - self.busy_before_s
        return max(0.0, others_s) / ((time.monotonic() - self.began) * CORES)

    def _used_s(self):
        children = [*self.servers, *self.children]
        return sum(
            processes.cpu_seconds(child.pid) if child.ended is None else child.cpu_s for child in children
        )


def rss_mb(child):
    return processes.rss_kb(child.pid) * 1024 / 1e6


def peak_mb(child):
    return child.peak_kb * 1024 / 1e6
