#!/usr/bin/env python3
"""A profile-guided build (`make build-pgo`): the compiler is told what runs of Shelfmill do, and lays the binary out for them.

Built once with counters, run in one process and as a fleet over a catalog of the benchmark's, and built again with what was
counted. It takes a dozen minutes on two cores, RabbitMQ and Redis (tests/install-servers.sh), and rustup's llvm-tools.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True

import processes
from measure import Bench
from processes import BenchError
from servers import RabbitMq, Redis, Simulator

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "target" / "pgo"


def build(catalogs, profdata):
    """Where the binary is; `catalogs` is the folder of those that are made for training."""
    TARGET.mkdir(parents=True, exist_ok=True)
    host = host_triple()
    counts = TARGET / "counts"
    shutil.rmtree(counts, ignore_errors=True)
    train(cargo_build(host, "counting", f"-Cprofile-generate={counts}"), catalogs)
    merged = subprocess.run(
        [profdata, "merge", "-o", TARGET / "merged", *counts.glob("*.profraw")], capture_output=True, text=True
    )
    if merged.returncode != 0:
        raise BenchError(f"llvm-profdata: {merged.stderr}")
    # Cargo looks at the flags, and not into the file that they name.
    profile = TARGET / f"{hashlib.sha256((TARGET / 'merged').read_bytes()).hexdigest()[:16]}.profdata"
    os.replace(TARGET / "merged", profile)
    for old in TARGET.glob("*.profdata"):
        if old != profile:
            old.unlink()
    return shutil.copy(cargo_build(host, "guided", f"-Cprofile-use={profile}"), TARGET / "shelfmill")


def train(binary, catalogs):
    """What most products meet: calls over HTTP/1.1 and HTTP/2, the final files, and all roles of a fleet."""
    work = tempfile.mkdtemp(prefix="work-", dir=TARGET)
    try:
        bench = Bench(binary, work, catalogs, rounds=1, concurrency=64)
        bench.may_wait_s = 0
        rabbitmq, redis = RabbitMq(bench.work / "rabbitmq"), Redis(bench.work / "redis")
        simulator = Simulator(binary, bench.work / "simulator")
        bench.embedded(simulator, 100_000)
        bench.embedded(simulator, 20_000, concurrency=1_000, http2=True)
        bench.fleet(rabbitmq, redis, simulator, 20_000, workers=1)
        # Only a process that ends by itself tells what it has counted.
        simulator.child.terminate()
        if simulator.child.status != 0:
            raise BenchError(f"the simulator ended with {simulator.child.status}:\n{simulator.child.tail()}")
    finally:
        processes.stop_all()
        shutil.rmtree(work, ignore_errors=True)


def cargo_build(host, folder, flag):
    """With a target named, so that the flag is not for build scripts and macros."""
    target = TARGET / folder
    command = ["cargo", "build", "--release", "--locked", "-p", "shelfmill", "--target", host, "--target-dir", target]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"CARGO_ENCODED_RUSTFLAGS": flag}, check=True)
    return target / host / "release" / "shelfmill"


def host_triple():
    told = subprocess.run(["rustc", "-vV"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return next(line.removeprefix("host: ") for line in told.splitlines() if line.startswith("host: "))


def llvm_profdata():
    """Of the compiler's own LLVM: another one may not read what is counted. `None` where it is not installed."""
    told = subprocess.run(["rustc", "--print", "target-libdir"], cwd=ROOT, capture_output=True, text=True, check=True)
    tool = pathlib.Path(told.stdout.strip()).parent / "bin" / "llvm-profdata"
    return tool if tool.exists() else None


MISSING = "a profile-guided build needs llvm-profdata: rustup component add llvm-tools"


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    profdata = llvm_profdata()
    if not profdata:
        raise BenchError(MISSING)
    print(build(ROOT / "target" / "bench", profdata))


if __name__ == "__main__":
    processes.whole(main)
