"""Clocks: CUDA events for a launch, nvidia-smi for the GPU's state meanwhile; and the record that comes of it."""

import datetime
import json
import statistics
import subprocess
import threading
import time

import torch

WARM_UP_S = 0.25
SAMPLED_S = 0.75
BATCH_MS = 50.0
FLUSH_BYTES = 256 << 20


class Sampler:
    """SM clock in MHz and board power in watts, every 50 ms, as far as nvidia-smi is there."""

    def __init__(self, device):
        self.samples, self.child = [], None
        if device.type != "cuda":
            return
        try:
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        except AttributeError:
            uuid = str(device.index or 0)
        query = ["nvidia-smi", f"--id={uuid}", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "--loop-ms=50"]
        try:
            self.child = subprocess.Popen(query, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            return
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.child.stdout:
            try:
                clock, power = (float(x) for x in line.split(","))
            except ValueError:
                continue
            self.samples.append((time.monotonic(), clock, power))

    def since(self, start):
        return [(clock, power) for at, clock, power in list(self.samples) if at >= start]

    def stop(self):
        if self.child:
            self.child.kill()
            self.child.wait()


class Timer:
    """Times launches; on a machine without a GPU by the wall clock, which is for testing this script."""

    def __init__(self, device, sampler, l2):
        self.device, self.sampler = device, sampler
        self.flush = None
        if device.type == "cuda" and l2 == "flushed":
            self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def launches(self, run, count):
        """Milliseconds of `count` launches, queued back to back."""
        if self.device.type != "cuda":
            times = []
            for _ in range(count):
                start = time.perf_counter()
                run()
                times.append((time.perf_counter() - start) * 1e3)
            return times
        pairs = []
        for _ in range(count):
            if self.flush is not None:
                self.flush.zero_()
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            run()
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def turn(self, run, repeat):
        """(milliseconds of `repeat` launches, (clock, power) samples) after a warm-up."""
        if self.device.type != "cuda":
            return self.launches(run, repeat), []
        start = time.monotonic()
        last = self.launches(run, 1)
        while time.monotonic() - start < WARM_UP_S:
            last = self.launches(run, batch(last))
        start = time.monotonic()
        times = self.launches(run, repeat)
        while time.monotonic() - start < SAMPLED_S:
            self.launches(run, batch(last))
        return times, self.sampler.since(start)


def batch(last):
    return max(1, min(64, int(BATCH_MS / max(last[0], 1e-3))))


def rank(samples, share):
    """Nearest rank, as `stem bench` takes it."""
    ordered = sorted(samples)
    return ordered[int(share * (len(ordered) - 1) + 0.5)]


class Series:
    """All turns of one peer on one line."""

    def __init__(self, peer, run, fields):
        self.peer, self.run, self.fields = peer, run, fields
        self.times, self.states = [], []

    def turn(self, timer, repeat):
        times, states = timer.turn(self.run, repeat)
        self.times += times
        self.states += states

    def record(self, common, flops, dense_flops, tiles):
        """One line of a record file; the fields are those of host/src/record.rs."""
        ms = rank(self.times, 0.5)
        clock = statistics.median(s[0] for s in self.states) if self.states else None
        power = statistics.median(s[1] for s in self.states) if self.states else None
        sms = common["sm_count"]
        cycles = clock * 1e3 * sms * ms / tiles if clock and sms and tiles else None
        record = {
            "bench": "attend",
            "backend": common["backend"],
            "gpu": common["gpu"],
            "driver": common["driver"],
            "sm_clock_mhz": clock,
            "power_w": power,
            "hq": 0,
            "hkv": 0,
            "d": 128,
            "seq": 0,
            "chunk": None,
            "history": 0,
            "page": 0,
            "skip": None,
            "softmax": None,
            "preset": None,
            "selector": None,
            "ms": ms,
            "p10": rank(self.times, 0.1),
            "p90": rank(self.times, 0.9),
            "repeat": len(self.times),
            "rounds": common["rounds"],
            "run": common["run"],
            "l2": common["l2"],
            "tflops_selected": flops / (ms * 1e9),
            "tflops_dense_equiv": dense_flops / (ms * 1e9),
            "bytes": None,
            "error": None,
            "cycles_per_tile": cycles,
            "peer": self.peer.name,
            "dtype": self.peer.dtype,
            "source": None,
            "command": common["command"],
            "commit": common["commit"],
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        record.update(self.fields)
        return json.dumps(record, separators=(",", ":")) + "\n"
