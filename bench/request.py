"""The request that Shelfmill sends for a product, captured from Shelfmill itself: what all contenders send.

A listener takes the first call of a run over one product, and refuses it; the run is ended then.
"""

import http.server
import threading

from catalog import line
from processes import BenchError, Child

PATIENCE_S = 30


def capture(binary, work):
    """The path of a file with the body."""
    folder = work / "request"
    folder.mkdir()
    (folder / "one.jsonl").write_text(line(1), encoding="utf-8")
    bodies, came = [], threading.Event()

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            came.set()
            self.send_error(400)

        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        command = [binary, "run", folder / "one.jsonl", "-q", "--out", folder / "out", "--base-url", url]
        child = Child("capture", command, folder / "log")
        came.wait(PATIENCE_S)
        child.kill()
        server.shutdown()
    if not bodies:
        raise BenchError(f"no call to capture:\n{child.tail()}")
    path = folder / "request.json"
    path.write_bytes(bodies[0])
    return path
