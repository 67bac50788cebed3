"""Cross-entropy and its gradient over more logits than memory, on a Dask cluster of which a worker is killed.

The logits are generated in the tasks. Prints bytes, seconds, and the peak memory of every worker that was not
killed:

    python benchmarks/cluster.py --gigabytes 10 --write
"""

import argparse
import os
import signal
import threading
import time

import dask
import dask.array as da
import distributed
import numpy as np
import readme

import fastsoftmax as fs

LABELS = 97


def logits(template, block_info=None):
    """A block of logits. It is the same in every task and on every worker."""
    place = block_info[0]["chunk-location"]
    return 20 * np.random.default_rng(place).random(template.shape, np.float32)


def peak_memory():
    """The peak memory of this process, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def problem(gigabytes, classes, pieces):
    """Loss and a checksum of the gradient of so many logits, in chunks of 100 MB."""
    columns = classes // pieces
    rows = 25_000_000 // columns
    count = max(1, round(gigabytes * 1e9 / (4 * rows * classes)))
    template = da.empty((rows * count, classes), chunks=(rows, columns), dtype=np.float32)
    x = template.map_blocks(logits, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    labels = da.arange(rows * count, chunks=rows) % LABELS
    loss, slope = fs.cross_entropy_with_grad(x, labels)
    return x.nbytes, (loss, abs(slope).sum(dtype=np.float64))


def kill_one(client, futures, killed, seconds):
    """Kill a worker with SIGKILL after so many seconds, if there is still work to do."""
    time.sleep(seconds)
    victim = next(iter(client.run(os.getpid).values()))
    if not all(future.done() for future in futures):
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)


def measure(gigabytes, classes, pieces, kill_after=None):
    """Bytes, seconds, peaks of the workers, loss and checksum; a worker is killed after so many seconds."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "memory_limit": "4GB"}
    with distributed.LocalCluster(processes=True, **options) as cluster, distributed.Client(cluster) as client:
        client.run(lambda: fs.softmax(np.zeros((2, 3), np.float32)))
        size, results = problem(gigabytes, classes, pieces)
        killed = []
        begin = time.perf_counter()
        futures = client.compute(list(results))
        if kill_after is not None:
            arguments = client, futures, killed, kill_after
            threading.Thread(target=kill_one, args=arguments, daemon=True).start()
        loss, checksum = client.gather(futures)
        seconds = time.perf_counter() - begin
        peaks = sorted(client.run(peak_memory).values())
    if kill_after is not None and not killed:
        raise SystemExit(
            f"all was done after {seconds:.1f} s, before a worker could be killed: take more gigabytes"
        )
    return size, seconds, peaks, float(loss), float(checksum)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--write", action="store_true", help="put the table into docs/guide/larger.md")
    arguments = parser.parse_args()
    lines = ["| float32 logits | chunks | worker killed | seconds | peak memory of the workers | loss |"]
    lines.append("|---|---|---|---|---|---|")
    seen = {}
    for classes, pieces, kill in ((1000, 1, False), (1000, 1, True), (50_000, 4, False), (50_000, 4, True)):
        kill_after = seen[classes, pieces][2] / 3 if kill else None
        size, seconds, peaks, loss, checksum = measure(arguments.gigabytes, classes, pieces, kill_after)
        seen.setdefault((classes, pieces), (loss, checksum, seconds))
        assert loss == seen[classes, pieces][0]
        np.testing.assert_allclose(checksum, seen[classes, pieces][1], rtol=1e-12)
        memory = ", ".join(f"{peak / 1e6:.0f} MB" for peak in peaks)
        chunks = "whole rows" if pieces == 1 else f"rows in {pieces} pieces"
        lines.append(
            f"| {size / 1e9:.1f} GB, {classes} classes | {chunks} | {'yes' if kill else 'no'} | {seconds:.0f} | "
            f"{memory} | {loss:.7g} |"
        )
        print(lines[-1], flush=True)
    text = (
        "\n".join(lines)
        + f"\n\nDask {dask.__version__}; a worker that was killed is not listed, or in its second life."
    )
    print(text)
    if arguments.write:
        readme.write("cluster", text)


if __name__ == "__main__":
    main()
