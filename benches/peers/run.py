#!/usr/bin/env python3
"""Measures attention of public libraries in turns with `stem bench`, on the same data, so that they share the GPU's clocks.

Needs PyTorch and the `stem` program (`cargo build --release --bin stem`, or the folder of `cargo xtask package-gpu`). Peers
that cannot be had are named with the reason and left out; a peer whose output is wrong gets no time.

    python3 benches/peers/run.py --records peers.jsonl
"""

import argparse
import datetime
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import torch

import table
from inputs import Inputs, reference, relative_error, sample_rows
from kernels import PEERS, ROOFS, Blank, Flex
from measure import Sampler, Series, Timer

HERE = pathlib.Path(__file__).resolve().parent
# In the repository, or in the folder of `cargo xtask package-gpu`.
PLACES = [HERE.parent / "bin/stem", HERE.parents[1] / "target/release/stem", HERE.parents[1] / ".carry/bin/stem"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = next((str(place) for place in PLACES if place.is_file()), None)
    parser.add_argument("--stem", default=built, required=built is None, help="the stem program")
    parser.add_argument("--records", required=True, help="file that a JSON line per measurement is added to")
    parser.add_argument("--seq", default="8192,16384,32768,65536,131072", help="lengths in tokens")
    parser.add_argument("--skip", default="0.5,0.75,0.9", help="shares of the causal blocks left out, besides none")
    parser.add_argument("--stages", default="attend,select,summarize_kv,selection,append_kv,prefill,host_plan,host_run", help="stages of stem")
    parser.add_argument("--chunk", type=int, help="new tokens of the stage summarize_chunk")
    parser.add_argument("--hq", type=int, default=32)
    parser.add_argument("--hkv", type=int, default=4)
    parser.add_argument("--peers", default=",".join([*ROOFS, *PEERS]), help="which peers")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each")
    parser.add_argument("--repeat", type=int, default=10, help="timed launches a turn")
    parser.add_argument("--l2", choices=["warm", "flushed"], default="flushed")
    parser.add_argument("--limit", type=float, default=240, help="seconds after which no further length is begun")
    parser.add_argument("--flex-limit", type=int, default=1 << 20, help="longest length for FlexAttention")
    parser.add_argument("--tune", action="store_true", help="let FlexAttention tune its kernel (minutes a length)")
    parser.add_argument("--cpu", action="store_true", help="no GPU: tests this script, times mean nothing")
    return parser.parse_args()


class Stem:
    """`stem bench --paced`: prepares a length, then waits for its turns."""

    def __init__(self, args, folder, run, skips):
        command = [args.stem, "bench", "--bench", args.stages, "--seq", args.seq, "--dense", "--hq", str(args.hq), "--hkv", str(args.hkv)]
        command += ["--skip", ",".join(skips)] if skips else []
        command += ["--chunk", str(args.chunk)] if args.chunk is not None else []
        command += ["--rounds", str(args.rounds), "--repeat", str(args.repeat), "--l2", args.l2, "--records", args.records]
        command += ["--paced", "--run", run, "--dump", folder, "--backend", "cpu" if args.cpu else "cuda"]
        environment = {**os.environ, "STEM_COMMAND": shown_command()}
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        stages = args.stages.split(",")
        # The order of the lines of `stem bench`, which puts a full pass before its chunk.
        groups = {"attend": ["dense", *skips]}
        if "summarize_kv" not in stages:
            groups["summarize_chunk"] = ["summarize_kv", "summarize_chunk"]
        self.lines = [line for stage in stages for line in groups.get(stage, [stage])]

    def expect(self, word):
        for line in self.child.stdout:
            if line.strip() == word:
                return
            print(line, end="", flush=True)
        sys.exit(f"stem bench ended with {self.child.wait()} before it said `{word}`")

    def turn(self):
        self.child.stdin.write("go\n")
        self.child.stdin.flush()
        self.expect("done")

    def finish(self):
        """Waits for its end. Its own table, which has a wide row for every line, is not passed on."""
        self.child.stdin.close()
        for _ in self.child.stdout:
            pass
        if self.child.wait() != 0:
            sys.exit(f"stem bench ended with {self.child.returncode}")

    def stop(self):
        self.child.kill()
        self.child.wait()


def shown_command():
    """The command line without this machine's folders."""
    words = [os.path.basename(w) if os.path.isabs(w) else w for w in sys.argv[1:]]
    return " ".join(["python3 benches/peers/run.py", *words])


def first_line(text):
    return next(iter(str(text).strip().splitlines()), "")


def commit(stem):
    """Of the environment, of the package that the program lies in, or of the repository."""
    if os.environ.get("STEM_COMMIT"):
        return os.environ["STEM_COMMIT"]
    packaged = pathlib.Path(stem).resolve().parents[1] / "commit"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8").strip()
    try:
        described = subprocess.run(
            ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], capture_output=True, text=True
        )
        return described.stdout.strip() or None
    except OSError:
        return None


def driver():
    try:
        found = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True)
        return first_line(found.stdout) or None
    except OSError:
        return None


def compile_ahead(tokens, args, device):
    """Compiles FlexAttention for a length, while `stem bench` prepares it. What fails here fails again, and is told, later."""
    try:
        Flex(Blank(tokens, args.hq, args.hkv, device), "dense", args).run()
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception:
        pass


def prepare(name, inputs, line, args, expected, rows, missing):
    """A peer's series on one line, its output checked; or None, with the reason printed. `missing`: peers that are not installed."""
    peer = PEERS[name]
    if line != "dense" and not peer.sparse or name in missing:
        return None
    if name == "flex" and inputs.tokens > args.flex_limit:
        print(f"  {peer.name}: left out above {args.flex_limit} tokens", flush=True)
        return None
    start = time.monotonic()
    try:
        engine = peer(inputs, line, args)
        error = relative_error(engine.run(), rows, expected)
    except Exception as reason:  # Whatever a library raises, the others are still to be measured.
        if isinstance(reason, ImportError):
            missing.add(name)
        print(f"  {peer.name}, {line}: cannot be had: {type(reason).__name__}: {first_line(reason)}", flush=True)
        return None
    if not error <= peer.tolerance:
        print(f"  {peer.name}, {line}: wrong (relative error {error:.4f}), so no time", flush=True)
        return None
    print(f"  {peer.name}, {line}: relative error {error:.4f}, prepared in {time.monotonic() - start:.1f} s", flush=True)
    pairs, kept = inputs.work(line)
    fields = {
        "hq": inputs.hq,
        "hkv": inputs.hkv,
        "seq": inputs.tokens,
        "skip": 1 - kept / (inputs.hq * inputs.blocks * (inputs.blocks + 1) // 2),
        "preset": "dense" if line == "dense" else "random",
        "bytes": inputs.bytes(peer.element, 0 if line == "dense" else kept),
        "error": error,
    }
    series = Series(engine, engine.run, fields)
    series.work = (512 * pairs, 512 * inputs.visible(), kept)
    return series


def roof(name, device):
    """A roof's series, checked."""
    try:
        engine = ROOFS[name](device)
        error = engine.error()
    except Exception as reason:
        print(f"  {ROOFS[name].name}: cannot be had: {type(reason).__name__}: {first_line(reason)}", flush=True)
        return None
    if not error <= 0.01:
        print(f"  {engine.name}: wrong (relative error {error:.4f}), so no time", flush=True)
        return None
    series = Series(engine, engine.run, {"bench": "gemm", "seq": engine.extent, "bytes": engine.bytes(), "error": error})
    series.work = (engine.flops(), engine.flops(), None)
    return series


def main():
    args = arguments()
    began = time.monotonic()
    device = torch.device("cpu" if args.cpu else "cuda")
    if not args.cpu and not torch.cuda.is_available():
        sys.exit("no GPU that PyTorch can use")
    args.compile = not args.cpu
    torch.manual_seed(0)
    skips = [s for s in args.skip.split(",") if s]
    peers = [p for p in args.peers.split(",") if p]
    unknown = [p for p in peers if p not in PEERS and p not in ROOFS]
    if unknown:
        sys.exit(f"unknown peers {', '.join(unknown)}; there are {', '.join([*ROOFS, *PEERS])}")
    run = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    common = {
        "backend": device.type,
        "gpu": None if args.cpu else torch.cuda.get_device_name(device),
        "driver": None if args.cpu else driver(),
        "sm_count": None if args.cpu else torch.cuda.get_device_properties(device).multi_processor_count,
        "rounds": args.rounds,
        "run": run,
        "l2": None if args.cpu else args.l2,
        "command": shown_command() + f" [PyTorch {torch.__version__}]",
        "commit": commit(args.stem),
    }
    sampler = Sampler(device)
    timer = Timer(device, sampler, args.l2)
    # Memory, where there is enough of it: the longest length is 0.8 GB.
    shm = "/dev/shm" if os.path.isdir("/dev/shm") and shutil.disk_usage("/dev/shm").free > 4 << 30 else None
    folder = tempfile.mkdtemp(prefix="stem-peers-", dir=shm)
    stem = Stem(args, folder, run, skips)
    missing = set()
    try:
        for index, seq in enumerate(int(n) for n in args.seq.split(",")):
            late = time.monotonic() - began > args.limit
            if not late and "flex" in peers and seq <= args.flex_limit:
                compile_ahead(seq, args, device)
            # Only now the records of the length before are written.
            stem.expect("ready")
            if late:
                print(f"past {args.limit:.0f} s: {seq} tokens and what follows are left out", flush=True)
                break
            print(f"{seq} tokens, {time.monotonic() - began:.0f} s so far", flush=True)
            path = pathlib.Path(folder) / f"{seq}.safetensors"
            inputs = Inputs(str(path), device)
            path.unlink()
            rows = sample_rows(inputs)
            turns = {line: [] for line in stem.lines}
            for line in ["dense", *skips]:
                expected = reference(inputs, line, rows)
                found = [prepare(name, inputs, line, args, expected, rows, missing) for name in peers if name in PEERS]
                turns[line] = [series for series in found if series]
            if index == 0:
                turns["dense"] += [series for series in (roof(name, device) for name in peers if name in ROOFS) if series]
            print(f"  timing, {time.monotonic() - began:.0f} s so far", flush=True)
            for _ in range(args.rounds):
                for line in stem.lines:
                    stem.turn()
                    for series in turns[line]:
                        series.turn(timer, args.repeat)
            with open(args.records, "a", encoding="utf-8") as file:
                for series in (s for line in stem.lines for s in turns[line]):
                    text = series.record(common, *series.work)
                    file.write(text)
            del inputs, turns
            if device.type == "cuda":
                torch.cuda.empty_cache()
        else:
            stem.finish()
        table.show(args.records, run)
        print(f"done in {time.monotonic() - began:.0f} s")
    finally:
        stem.stop()
        sampler.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
