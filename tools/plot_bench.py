#!/usr/bin/env python3
"""Draws what `caravan bench ... --json` printed as SVG files.

usage: tools/plot_bench.py [--name NAME] [--output FOLDER] FILE...

FILE holds JSON lines of one or more runs on one device ("-": standard input). Written, as far as
there are rows for them, into docs/benchmarks:
  NAME_roofline.svg  TFLOP/s over FLOP a byte, below the ceilings that the same runs measured;
  NAME_decode.svg    decode: tokens a second and share of the read ceiling, over the batch size;
  NAME_prefill.svg   prefill: TFLOP/s over the length, below the matmul ceiling.
NAME is "cpu" or "cuda" unless given. Nothing but Python is needed.
"""

import argparse
import collections
import html
import json
import math
import pathlib
import statistics
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
MAX_BYTES = 60_000
SHORT_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
# Those that compute: the others only move bytes.
ROOFLINE_TESTS = (
    *("attention_decode", "attention_prefill", "layer_norm", "linear"),
    *("decode", "prefill"),
)
# Distinct for most kinds of colour blindness: Okabe and Ito 2008.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH, LEFT, RIGHT = 760, 70, 230
TITLE, GAP, BOTTOM = 44, 34, 52  # pixels above the first panel, between panels, below the last


def short(value):
    """4 digits at most: 0.25, 12.5, 738, 12k."""
    if value >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


class Axis:
    """Maps values to pixels, linearly or by logarithm, and knows round ticks."""

    def __init__(self, values, begin, end, is_log=False):
        self.begin, self.end, self.is_log = begin, end, is_log
        low, high = min(values), max(values)
        if is_log:
            low, high = low / 1.15, high * 1.15
        else:
            low, high = 0.0, high * 1.05 or 1.0
        self.low, self.high = low, high

    def at(self, value):
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return round(self.begin + (value - low) / (high - low) * (self.end - self.begin), 1)

    def ticks(self):
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            all_ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        else:
            raw = self.high / 6
            size = 10.0 ** math.floor(math.log10(raw))
            step = next(s * size for s in (1, 2, 5, 10) if s * size >= raw)
            all_ticks = [i * step for i in range(int(self.high / step) + 1)]
        return [t for t in all_ticks if self.low <= t <= self.high]


class Panel:
    """One pair of axes with lines and points, as SVG elements. `top` and `height` are pixels."""

    def __init__(self, top, height, y_label, x, y_values, is_log=False, x_ticks=None):
        bottom, right = top + height, WIDTH - RIGHT
        self.x, self.bottom = x, bottom
        self.y = Axis(y_values, bottom, top, is_log)
        self.parts = [
            f'<text transform="translate(18,{(top + bottom) / 2}) rotate(-90)" '
            f'text-anchor="middle">{html.escape(y_label)}</text>'
        ]
        for value in x_ticks or x.ticks():
            at = x.at(value)
            self.parts.append(f'<path d="M{at} {top}V{bottom}" stroke="#ddd"/>')
            self.parts.append(text(at, bottom + 16, short(value), "middle"))
        for value in self.y.ticks():
            at = self.y.at(value)
            self.parts.append(f'<path d="M{LEFT} {at}H{right}" stroke="#ddd"/>')
            self.parts.append(text(LEFT - 8, at + 4, short(value), "end"))
        self.parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{right - LEFT}" height="{height}" '
            'fill="none" stroke="#444"/>'
        )

    def line(self, points, color, dash=""):
        path = "L".join(f"{self.x.at(x)} {self.y.at(y)}" for x, y in points)
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.6"{dash}/>'
        )

    def point(self, x, y, color, tip):
        self.parts.append(
            f'<circle cx="{self.x.at(x)}" cy="{self.y.at(y)}" r="3.5" fill="{color}">'
            f"<title>{html.escape(tip)}</title></circle>"
        )


def text(x, y, content, anchor="start", size=12):
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">'
        f"{html.escape(content)}</text>"
    )


def svg(title, x_label, panels, legend):
    """Panels below each other, with (label, color) pairs beside them."""
    bottom = panels[-1].bottom
    height = bottom + BOTTOM
    parts = [text(LEFT, 24, title, size=15)]
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, x_label, "middle"))
    for panel in panels:
        parts += panel.parts
    for i, (label, color) in enumerate(legend):
        x, y = WIDTH - RIGHT + 14, TITLE + 10 + 20 * i
        parts.append(f'<rect x="{x}" y="{y - 9}" width="11" height="11" fill="{color}"/>')
        parts.append(text(x + 17, y + 1, label))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def ceiling(rows, name):
    """The median of what the runs measured; 0 when none did."""
    values = [row[name] for row in rows if row.get(name, 0) > 0]
    return statistics.median(values) if values else 0


def device(rows):
    return rows[0]["backend"]


def tflops(row):
    return row["flops"] / row["ms"] * 1e-9


def tip(row):
    share = row.get("share_of_ceiling")
    text = f"{row['model']} {row['dtype']}: {row['label']}: {short(row['ms'])} ms"
    return text + (f", {share * 100:.1f} % of ceiling" if share is not None else "")


def x_axis(values):
    """Logarithmic; a single value is put in the middle."""
    values = values if len(values) > 1 else [values[0] / 2, values[0] * 2]
    return Axis(values, LEFT, WIDTH - RIGHT, is_log=True)


def model_name(row):
    return f"{row['model'].removesuffix(' random')} {SHORT_DTYPES.get(row['dtype'], row['dtype'])}"


def series_of(rows, key, x):
    """[(key, color, rows sorted by x)] for each value of key."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return [
        (name, COLORS[i % len(COLORS)], sorted(groups[name], key=lambda row: row[x]))
        for i, name in enumerate(sorted(groups))
    ]


def roofline(rows):
    rows = [row for row in rows if row["test"] in ROOFLINE_TESTS]
    read, matmul = ceiling(rows, "read_gb_per_s"), ceiling(rows, "matmul_tflops")
    if not rows or not read:
        return None

    def roof(x):
        return min(read * x / 1000, matmul or math.inf)

    intensity = [row["flops"] / row["bytes"] for row in rows]
    knee = matmul * 1000 / read
    low, high = min(intensity) / 2, max(2 * max(intensity), 4 * knee)
    x = Axis([low, high], LEFT, WIDTH - RIGHT, is_log=True)
    speeds = [tflops(row) for row in rows] + [roof(low), roof(high)]
    panel = Panel(TITLE, 360, "TFLOP/s", x, speeds, is_log=True)
    panel.line([(at, roof(at)) for at in (low, max(low, knee), high)], "#444")
    legend = [(f"read {short(read)} GB/s", "#444")]
    if matmul:
        legend.append((f"matmul {short(matmul)} TFLOP/s", "#444"))
    for name, color, series in series_of(rows, lambda row: row["test"], "ms"):
        legend.append((name.replace("_", " "), color))
        for row in series:
            panel.point(row["flops"] / row["bytes"], tflops(row), color, tip(row))
    return svg(f"Roofline, {device(rows)}", "FLOP for each byte of memory", [panel], legend)


def decode(rows):
    rows = [row for row in rows if row["test"] == "decode" and row["share_of_ceiling"] is not None]
    if not rows:
        return None
    batches = sorted({row["batch_size"] for row in rows})
    x = x_axis(batches)
    speed = Panel(
        TITLE, 260, "tokens a second", x, [row["tokens_per_s"] for row in rows], x_ticks=batches
    )
    shares = [row["share_of_ceiling"] * 100 for row in rows]
    share = Panel(speed.bottom + GAP, 140, "% of read ceiling", x, [100, *shares], x_ticks=batches)
    legend = []
    for (model, tokens), color, series in series_of(
        rows, lambda row: (model_name(row), row["tokens"]), "batch_size"
    ):
        legend.append((f"{model}, context {tokens}", color))
        for panel, value in (
            (speed, lambda row: row["tokens_per_s"]),
            (share, lambda row: row["share_of_ceiling"] * 100),
        ):
            panel.line([(row["batch_size"], value(row)) for row in series], color)
            for row in series:
                panel.point(row["batch_size"], value(row), color, tip(row))
    return svg(f"Decode, {device(rows)}", "sequences at once", [speed, share], legend)


def prefill(rows):
    rows = [row for row in rows if row["test"] == "prefill"]
    if not rows:
        return None
    lengths = sorted({row["tokens"] for row in rows})
    matmul = ceiling(rows, "matmul_tflops")
    x = x_axis(lengths)
    panel = Panel(TITLE, 360, "TFLOP/s", x, [matmul, *map(tflops, rows)], x_ticks=lengths)
    legend = []
    if matmul:
        panel.line([(x.low, matmul), (x.high, matmul)], "#444", dash="6 3")
        legend.append((f"matmul {short(matmul)} TFLOP/s", "#444"))
    for (model, batch_size), color, series in series_of(
        rows, lambda row: (model_name(row), row["batch_size"]), "tokens"
    ):
        prompts = "1 prompt" if batch_size == 1 else f"{batch_size} prompts"
        legend.append((f"{model}, {prompts}", color))
        panel.line([(row["tokens"], tflops(row)) for row in series], color)
        for row in series:
            panel.point(row["tokens"], tflops(row), color, tip(row))
    return svg(f"Prefill, {device(rows)}", "tokens of a prompt", [panel], legend)


def read_rows(paths):
    rows = []
    for path in paths:
        text = sys.stdin.read() if path == "-" else pathlib.Path(path).read_text()
        rows += [json.loads(line) for line in text.splitlines() if line.strip()]
    return rows


def main():
    parser = argparse.ArgumentParser(description="Draws `caravan bench --json` as SVG files.")
    parser.add_argument("files", nargs="+", metavar="FILE", help='JSON lines; "-": standard input')
    parser.add_argument("--name", help="first part of the file names; default: cpu or cuda")
    parser.add_argument("--output", type=pathlib.Path, default=FOLDER, help="folder to write to")
    args = parser.parse_args()
    rows = read_rows(args.files)
    if not rows:
        sys.exit("plot_bench: no rows")
    devices = sorted({row["backend"] for row in rows})
    if len(devices) > 1:
        sys.exit(f"plot_bench: rows of several devices, one at a time: {'; '.join(devices)}")
    name = args.name or rows[0]["backend"].split(" ")[0]
    args.output.mkdir(parents=True, exist_ok=True)
    for draw in (roofline, decode, prefill):
        drawing = draw(rows)
        if drawing is None:
            continue
        if len(drawing) > MAX_BYTES:
            sys.exit(f"plot_bench: {draw.__name__}: {len(drawing)} bytes; plot fewer rows")
        path = args.output / f"{name}_{draw.__name__}.svg"
        path.write_text(drawing)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
