"""What the environment of a process may hold, and how many threads it gets.

usage: environment_cli_test.py PROGRAM SOURCE_DIR
"""

import fcntl
import os
import pathlib
import pty
import re
import resource
import struct
import subprocess
import sys
import tempfile
import termios

PROGRAM, SOURCE = sys.argv[1], pathlib.Path(sys.argv[2])
NANO = SOURCE / "models" / "camel-nano"
failures = []


def expect(condition, what):
    if not condition:
        failures.append(what)


def run(*arguments, **environment):
    limits = environment.pop("limits", None)
    return subprocess.run(
        [PROGRAM, *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment}, preexec_fn=limits, timeout=300)


def num_threads(result):
    """Of the line that says what the model runs on: "cpu (avx2, 2 threads)"."""
    found = re.search(r"\(\w+, (\d+) threads?\)", result.stderr)
    return int(found[1]) if found else None


def test_variables():
    service = {"CARAVAN_PORT": "tcp://10.96.0.12:80", "CARAVAN_SERVICE_HOST": "10.96.0.12",
               "CARAVAN_SERVICE_PORT": "80", "CARAVAN_PORT_80_TCP": "tcp://10.96.0.12:80"}
    for command in (["run", "--model", NANO, "--prompt", "Hi", "-n", "1"], ["tokenize", "--model", NANO, "--text", "Hi"],
                    ["inspect", NANO], ["plan", "--model", NANO], ["--help"], ["serve", "--help"]):
        result = run(*command, **service)
        expect(result.returncode == 0, f"{command} in a pod beside a Service: {result.returncode} {result.stderr}")
    result = run("tokenize", "--model", NANO, "--text", "Hi", CARAVAN_TEMPLATE="chatml", CARAVAN_TIMEOUT="-5")
    expect(result.returncode == 0, f"variables of other commands: {result.stderr}")
    result = run("run", "--model", NANO, "--prompt", "Hi", CARAVAN_TEMPLATE="chatml")
    expect(result.returncode == 64 and result.stderr.startswith("caravan: error: ")
           and "CARAVAN_TEMPLATE" in result.stderr and len(result.stderr.splitlines()) == 1,
           f"a bad variable: {result.returncode} {result.stderr}")
    result = run("rnu", "--model", NANO)
    expect(result.returncode == 64 and 'unknown command "rnu", did you mean run?' in result.stderr, result.stderr)


def test_threads():
    command = ["run", "--model", NANO, "--prompt", "Hi", "-n", "2"]
    usable = num_threads(run(*command))
    expect(usable is not None and usable <= len(os.sched_getaffinity(0)), f"{usable} threads")
    for value in ("65536", "0", "-3", "x", "99999999999999999999", ""):
        for more in ([], ["-t", "1"]):
            result = run(*command, *more, OMP_NUM_THREADS=value)
            expect(result.returncode == 0, f"OMP_NUM_THREADS={value!r} {more}: {result.returncode} {result.stderr}")
    only = sorted(os.sched_getaffinity(0))[0]
    result = run(*command, limits=lambda: os.sched_setaffinity(0, {only}))
    expect(num_threads(result) == 1, f"bound to one CPU: {result.stderr}")

    if os.getuid() == 0:  # a limit of processes binds others only

        def few_processes():
            resource.setrlimit(resource.RLIMIT_NPROC, (6, 6))
            os.setgroups([])
            os.setgid(65533)
            os.setuid(65533)

        result = run(*command, "-t", "32", limits=few_processes)
        expect(result.returncode == 71 and "32 threads wanted" in result.stderr,
               f"-t 32 under a limit of 6 processes: {result.returncode} {result.stderr}")


def test_cpu_quota():
    if os.getuid() != 0:
        return "no root"
    old, new = pathlib.Path("/sys/fs/cgroup/cpu"), pathlib.Path("/sys/fs/cgroup")
    is_v1 = old.is_dir()
    group = (old if is_v1 else new) / f"caravan-test-{os.getpid()}"
    try:
        group.mkdir()
        try:
            if is_v1:
                (group / "cpu.cfs_period_us").write_text("100000")
                (group / "cpu.cfs_quota_us").write_text("50000")
            else:
                (group / "cpu.max").write_text("50000 100000")
            (group / "cgroup.procs").exists()
            join = lambda: (group / "cgroup.procs").write_text(str(os.getpid()))  # noqa: E731
            result = run("run", "--model", NANO, "--prompt", "Hi", "-n", "2", limits=join)
        finally:
            group.rmdir()
    except (OSError, subprocess.SubprocessError) as error:
        return f"cgroups cannot be made here: {error}"
    expect(num_threads(result) == 1, f"under a quota of half a CPU: {result.stderr}")
    return "half a CPU: 1 thread"


def test_terminal(columns):
    """No line of a progress bar is wider than the terminal."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = pathlib.Path(folder, "articles.jsonl")
        articles = (SOURCE / "tests/data/summarization/articles.jsonl").read_text()
        prompts.write_text(articles * 8)
        outer, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        process = subprocess.Popen(
            [PROGRAM, "summarize", "--model", NANO, "--data", prompts, "--output-len", "40", "--output",
             pathlib.Path(folder, "out.jsonl")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=inner)
        os.close(inner)
        text = b""
        while True:
            try:
                part = os.read(outer, 65536)
            except OSError:
                break
            if not part:
                break
            text += part
        os.close(outer)
        process.wait()
    drawn = re.findall(r"\r\x1b\[K([^\r\n]*)", text.decode())
    expect(all(len(line) < columns for line in drawn), f"wider than {columns}: {max(drawn, key=len, default='')}")
    return len(drawn)


test_variables()
test_threads()
print("quota:", test_cpu_quota())
print("bars drawn at 40 and 100 columns:", test_terminal(40), test_terminal(100))
for failure in failures:
    print(failure)
sys.exit(1 if failures else 0)
