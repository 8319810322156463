"""The shapes of layer_norm_bench with torch: F.layer_norm, eager and compiled.

layer_norm_torch.py [--csv FILE] prints what layer_norm_bench prints; shares are of the copy that
this process measures.
"""

import argparse
import statistics
import torch
import torch.nn.functional as F


def time_us(run, launches=10, samples=7):
    """Median time of one launch; run(i) is the i-th."""
    times = []
    i = 0
    for sample in range(-1, samples):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(launches):
            run(i)
            i += 1
        end.record()
        end.synchronize()
        if sample >= 0:
            times.append(begin.elapsed_time(end) * 1e3 / launches)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv")
    args = parser.parse_args()
    rows = ["case,tokens,hidden,us,gbps,share"]
    total = 1 << 29  # elements of f16: 1 GiB
    x = torch.randn(total // 8, device="cuda", dtype=torch.float16).repeat(8)
    out = torch.empty_like(x)
    copy_us = time_us(lambda i: out.copy_(x))
    ceiling = 4.0 * total / copy_us / 1e3
    print(f"torch {torch.__version__}: copy of 1024 MB {ceiling:.0f} GB/s", flush=True)

    def report(name, tokens, hidden, us, num_bytes):
        gbps = num_bytes / us / 1e3
        print(f"{name:24} [{tokens:6}, {hidden:5}] {us:9.2f} us {gbps:7.0f} GB/s "
              f"{100 * gbps / ceiling:5.1f} % of copy", flush=True)
        rows.append(f"{name},{tokens},{hidden},{us:.3f},{gbps:.1f},{gbps / ceiling:.4f}")

    def fused(x, delta, delta_bias, weight, bias):
        x = x + (delta + delta_bias)
        return x, F.layer_norm(x, x.shape[-1:], weight, bias)

    def plain(x, weight, bias):
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    compiled_plain = torch.compile(plain, dynamic=False)
    compiled_fused = torch.compile(fused, dynamic=False)
    for hidden in (4096, 768, 1024, 1600, 2048, 8192, 16384):
        for tokens in ((65536, 16384) if hidden == 4096 else ((1 << 28) // hidden,)):
            weight = torch.randn(hidden, device="cuda", dtype=torch.float16)
            bias = torch.randn(hidden, device="cuda", dtype=torch.float16)
            size = tokens * hidden
            windows = [x[w * size:(w + 1) * size].view(tokens, hidden)
                       for w in range(total // size)]
            for name, run in (("torch", plain), ("torch_compile", compiled_plain)):
                us = time_us(lambda i: run(windows[i % len(windows)], weight, bias))
                report(name, tokens, hidden, us, 4.0 * size)
            if hidden == 4096:
                deltas = [out[w * size:(w + 1) * size].view(tokens, hidden)
                          for w in range(total // size)]
                for name, run in (("torch_delta", fused), ("torch_compile_delta", compiled_fused)):
                    us = time_us(lambda i: run(windows[i % len(windows)],
                                               deltas[i % len(windows)], bias, weight, bias))
                    report(name, tokens, hidden, us, 8.0 * size)
    if args.csv:
        with open(args.csv, "w", encoding="utf-8") as file:
            file.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
