"""Measurements that need a process of their own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Seconds between two looks at the memory of a process.
INTERVAL = 0.005


def anonymous_memory(process: int | str = "self") -> int:
    """Bytes that a process holds and no file backs; 0 for one that has ended.

    Pages of a memory map belong to the system's page cache, which takes them back at
    will, so the resident set (``ru_maxrss``, ``VmHWM``) would count what is not ours.
    """
    status = Path(f"/proc/{process}/status").read_text()
    sizes = [line.split()[1] for line in status.splitlines() if "RssAnon" in line]
    return 1024 * int(sizes[0]) if sizes else 0


def run_alone(module: str, task: dict, **environment: str) -> tuple[dict, int]:
    """Run a module of this folder; give what it prints as JSON, and its peak memory.

    The peak is that of `anonymous_memory`, which the kernel does not record: this
    process looks every few milliseconds. The other one could not, where a call holds
    the interpreter lock.
    """
    command = [sys.executable, "-m", f"benchmarks.speed.{module}", json.dumps(task)]
    peak = 0
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    ) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(INTERVAL)
        printed = process.stdout.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(printed), peak
