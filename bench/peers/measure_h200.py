#!/usr/bin/env python3
"""Measures what PyTorch reaches on this GPU, at the shapes that `kernelry bench --device cuda` measures, and prints it as JSON in the form of the
files beside this one. Needs PyTorch with CUDA and nothing else:

    python3 bench/peers/measure_h200.py > bench/h200/peers.json

Products go to cuBLAS, attention to the backends of scaled_dot_product_attention, each by itself. A timing is the replay of a CUDA graph between
two events, over several milliseconds of launches that go round copies of the operands, which together exceed every cache; the median counts, as
in our own figures. What a launch costs is measured on the host, from the first call to the end of the last kernel, and in a graph. What a backend
refuses is left out, with a line on standard error.
"""

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

COLD = 512 << 20  # bytes of all copies together
SAMPLE = 4e-3  # seconds of a timing
SAMPLES = 25
LAUNCHES = 512  # of a timing of what a launch costs
DEVICE = "cuda"


def seconds(launch, copies):
    """Median time of `launch(i)`, i going round `copies`."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for i in range(min(copies, 3)):
            launch(i)  # libraries choose and allocate
        side.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        launch(0)
        end.record()
        side.synchronize()
        once = max(begin.elapsed_time(end) / 1e3, 1e-6)
        launches = min(max(round(SAMPLE / once), 1), 2000)
        launches = -(-launches // copies) * copies
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for i in range(launches):
                launch(i % copies)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(SAMPLES + 1)]
        graph.replay()  # while it runs, the others are submitted
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        side.synchronize()
    times = [a.elapsed_time(b) / 1e3 / launches for a, b in zip(events, events[1:])]
    del graph
    return statistics.median(times)


def copies_of(nbytes):
    return max(1, min(64, -(-COLD // nbytes)))


def random(shape, dtype, copies):
    return [torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype) for _ in range(copies)]


results = []


def add(peer, op, ty, shape, time, nbytes=0, flops=0):
    row = {"peer": peer, "op": op, "type": ty, "shape": shape, "us": round(time * 1e6, 3)}
    if nbytes:
        row["gb_s"] = round(nbytes / time / 1e9, 1)
    if flops:
        row["gflop_s"] = round(flops / time / 1e9, 1)
    results.append(row)
    print(row, file=sys.stderr)


def attempt(what, run):
    try:
        run()
    except RuntimeError as error:
        print(f"left out: {what}: {str(error).splitlines()[0]}", file=sys.stderr)
    finally:
        torch.cuda.empty_cache()


def matmul(dtype, name, m, n, k):
    size = dtype.itemsize
    nbytes = size * (m * k + n * k + m * n)
    copies = copies_of(nbytes)
    x, w = random((m, k), dtype, copies), random((n, k), dtype, copies)
    out = [torch.empty(m, n, device=DEVICE, dtype=dtype) for _ in range(copies)]
    time = seconds(lambda i: torch.matmul(x[i], w[i].t(), out=out[i]), copies)
    add("PyTorch, cuBLAS", "matmul", name, f"m={m} n={n} k={k}", time, nbytes, 2 * m * n * k)


def attention(backend, name, queries, keys, kv_heads, dim):
    heads, dtype = 16, torch.float16
    kv_bytes = 2 * 2 * kv_heads * keys * dim
    nbytes = kv_bytes + 2 * 2 * heads * queries * dim
    copies = copies_of(nbytes)
    q = random((1, heads, queries, dim), dtype, copies)
    k, v = (random((1, kv_heads, keys, dim), dtype, copies) for _ in range(2))
    causal = queries > 1
    with sdpa_kernel([backend]):
        try:
            time = seconds(lambda i: F.scaled_dot_product_attention(q[i], k[i], v[i], is_causal=causal, enable_gqa=True), copies)
        except RuntimeError:
            # Some take as many heads of keys as of queries alone: repeated outside of the timing.
            k, v = ([t.repeat_interleave(heads // kv_heads, 1) for t in tensors] for tensors in (k, v))
            time = seconds(lambda i: F.scaled_dot_product_attention(q[i], k[i], v[i], is_causal=causal), copies)
            name += ", keys and values repeated"
    pairs = queries * (queries + 1) // 2 if causal else keys
    shape = f"S={queries} n={keys} H={heads}/{kv_heads} D={dim}"
    add(f"PyTorch SDPA, {name}", "attention", "16-bit", shape, time, nbytes, 4 * heads * dim * pairs)


def rms_norm(dtype, name, rows, dim):
    nbytes = dtype.itemsize * 2 * rows * dim
    copies = copies_of(nbytes)
    x, weight = random((rows, dim), dtype, copies), random((dim,), dtype, 1)[0]
    time = seconds(lambda i: F.rms_norm(x[i], (dim,), weight, 1e-6), copies)
    add("PyTorch", "rms_norm", name, f"rows={rows} dim={dim}", time, nbytes)


def launches():
    """What a launch costs: sums of 256 elements, each of which reads what the one before wrote."""
    total, addend = (torch.zeros(256, device=DEVICE) for _ in range(2))
    times = []
    for _ in range(SAMPLES + 1):
        begin = time.perf_counter()
        for _ in range(LAUNCHES):
            torch.add(total, addend, out=total)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / LAUNCHES)
    add("PyTorch, eager", "launch", "f32", "step=run", statistics.median(times[1:]))
    add("PyTorch, CUDA graph", "launch", "f32", "step=node", seconds(lambda _: torch.add(total, addend, out=total), 1))


def main():
    torch.manual_seed(1)
    a, b = (torch.zeros(1 << 28, device=DEVICE) for _ in range(2))
    limits = {
        "copy_gb_s": round(2 * a.nbytes / seconds(lambda _: b.copy_(a), 1) / 1e9, 1),
        "read_gb_s": round(a.nbytes / seconds(lambda _: torch.sum(a), 1) / 1e9, 1),
    }
    del a, b
    attempt("launches", launches)
    for name, dtype in [("f16", torch.float16), ("bf16", torch.bfloat16)]:
        for m in (1, 4, 8, 512, 4096):
            attempt(f"{name} product of {m} rows", lambda: matmul(dtype, name, m, 14336, 4096))
        attempt(f"{name} product of 8192 rows", lambda: matmul(dtype, name, 8192, 8192, 8192))
    backends = [("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION), ("efficient", SDPBackend.EFFICIENT_ATTENTION)]
    for dim, kv_heads in [(128, 4), (256, 4), (512, 2)]:
        for name, backend in backends:
            for queries, keys in [(8192, 8192), (1, 32768)]:
                what = f"attention, {name}, D={dim}, {queries} queries"
                attempt(what, lambda: attention(backend, name, queries, keys, kv_heads, dim))
    for name, dtype in [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)]:
        for rows in (512, 8192):
            attempt(f"RMS norm of {name}", lambda: rms_norm(dtype, name, rows, 4096))
    driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False)
    versions = {"PyTorch": torch.__version__, "CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version()), "Python": platform.python_version()}
    if driver.returncode == 0:
        versions["driver"] = driver.stdout.split()[0]
    head = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "command": "python3 bench/peers/measure_h200.py",
        "limits": limits,
    }
    rows = ",\n".join("  " + json.dumps(row) for row in results)
    print(json.dumps(head, indent=1)[:-2] + ',\n "results": [\n' + rows + "\n ]\n}")


if __name__ == "__main__":
    main()
