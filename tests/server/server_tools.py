"""What the tests of the server share: a running server, plain HTTP to it."""

import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time


def enter_environment(root):
    """Starts this script again in SOURCE_DIR/.venv, unless it runs in a virtual environment."""
    if sys.prefix != sys.base_prefix:
        return
    python = pathlib.Path(root).resolve() / ".venv" / "bin" / "python"
    if not python.exists():
        sys.exit(f"{python} is not there: run `tools/install_dependencies.sh test`, which makes it")
    os.execv(python, [str(python), "-B", *sys.argv])


def free_port():
    """A TCP port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`caravan serve`, started and ended with the block that uses it."""

    def __init__(self, program, model, *flags):
        self.port = free_port()
        self.command = [program, "serve", "--model", model, "--port", self.port, *flags]
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Starts the process and waits for nothing."""
        environment = dict(os.environ, OMP_WAIT_POLICY="passive")
        # A pipe that nobody reads would stop the server after some hundred lines.
        self.log_file = tempfile.TemporaryFile("w+", errors="replace")
        self.process = subprocess.Popen(
            list(map(str, self.command)), stderr=self.log_file, text=True, env=environment
        )

    def __enter__(self):
        self.start()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get("/health")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        self.process.kill()
        self.process.wait()
        raise SystemExit(f"the server did not start: {self.read_log()}")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.log = self.read_log()

    def read_log(self):
        self.log_file.seek(0)
        return self.log_file.read()

    def request(self, method, path, body=None, headers=None):
        """(status, headers, body) of one request; a body that is no string goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        given = {"Content-Type": "application/json"} if body is not None else {}
        given.update(headers or {})
        if body is not None and not isinstance(body, (str, bytes)):
            body = json.dumps(body)
        connection.request(method, path, body=body, headers=given)
        response = connection.getresponse()
        result = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return result

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body):
        """(status, parsed body)."""
        status, _, text = self.request("POST", path, body)
        return status, json.loads(text)
