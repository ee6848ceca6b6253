-- The captured request, again and again: what the model and the machine can do with so many connections.
local file = assert(io.open(os.getenv("BENCH_REQUEST"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["content-type"] = "application/json"
file:close()
