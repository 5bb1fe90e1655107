"""Everything that wants a GPU, in one command and ten minutes: is it right, how fast, and beside what limit.

    python tools/bench_wheels.py wheels --python 3.12                     # where there is a network
    python tools/bench_gpu.py --wheels wheels --peer-dir PEERS            # on the machine with the GPU, without one
    python tools/bench_gpu.py --rehearse --peer-dir PEERS                 # the same in small, on a CPU

The machine has jax with CUDA and PyTorch; what else lmkit needs comes along as wheels and is unpacked beside it.
PEERS holds bench_torch_nano.py. Each part has its time; what it has measured is kept line by line in --out, so that
a part that is cut off loses nothing. Variants fill what is left of the budget. In the end the goals stand beside the
figures, here and in summary.md; tools/bench_docs.py puts them into docs/performance.md.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_wheels import unpack
from speed.goals import goal_table
from speed.parts import Part, parts, variants
from speed.records import BENCHMARKS, ROOT, records, stamp
from speed.tables import markdown

KINDS = ("train", "rates", "decode", "idle", "check", "compile")
_LEAST_SEC = 40.0  # for a variant: start, compile, a few steps
_GRACE_SEC = 5.0  # between what a part is told and when it is ended


def run_part(part: Part, seconds: float, environment: dict[str, str]) -> str:
    """Runs a part for so long at most; how it ended."""
    told = [f"--seconds={seconds:.0f}"] if part.command[0] == "bench.py" else []
    command = [sys.executable, str(ROOT / "tools" / part.command[0]), *part.command[1:]]
    command[2:2] = told
    began = time.time()
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    try:
        status = process.wait(seconds + _GRACE_SEC)
        end = "done" if status == 0 else f"status {status}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its rows, too
        process.wait()
        end = "cut off"
    return f"{part.name}: {end} after {time.time() - began:.0f} s of {seconds:.0f}"


def summary(args: argparse.Namespace, run: str, ends: list[str]) -> str:
    """How the parts ended, the rows of this run, and the goals beside all that has been measured."""
    found = {kind: records(args.out, kind) for kind in KINDS}
    rows = [{**row, "name": f"{row['config']}: {row['name']}"} for row in found["train"] if row["run"] == run]
    text = "\n".join([*ends, "", markdown(rows), goal_table(found)])
    (args.out / "summary.md").write_text(text)
    return text


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of tools/bench_wheels.py")
    parser.add_argument("--peer-dir", type=Path, help="where the peer's script is; without, it has no row")
    parser.add_argument("--peer", default="bench_torch_nano.py")
    parser.add_argument("--budget", type=float, default=570, help="seconds in all")
    parser.add_argument("--out", type=Path, default=BENCHMARKS)
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on a CPU; the lines count for nothing")
    return parser.parse_args()


def main() -> None:
    args = parse()
    until, ends, run = time.time() + args.budget, [], stamp()["run"]
    args.out, args.peer_dir = args.out.resolve(), args.peer_dir and args.peer_dir.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        if args.wheels:
            print("unpacked:", ", ".join(unpack(args.wheels, Path(site))) or "nothing", flush=True)
            sys.path.append(site)
        paths = [site, str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the rows share a device, and the peak is what was needed
        environment = os.environ | memory | {"PYTHONPATH": os.pathsep.join(paths)}
        for part in [*parts(args, run), *variants(args, run)]:
            left = until - time.time() - _GRACE_SEC
            if left < (_LEAST_SEC if "--label" in part.command else _GRACE_SEC):
                ends.append(f"{part.name}: no time left")
                continue
            ends.append(run_part(part, min(part.seconds * (3 if args.rehearse else 1), left), environment))
            print(f"== {ends[-1]}", flush=True)
            summary(args, run, ends)
    print("\n" + summary(args, run, ends))
    if any("status" in end for end in ends):
        raise SystemExit("bench_gpu: a part failed")


if __name__ == "__main__":
    main()
