#!/usr/bin/env python3
"""Draws docs/kernels/layer_norm.svg from the figures beside it.

usage: tools/plot_layer_norm.py [CSV [SVG]]

CSV has the columns case,tokens,hidden,us,gbps,share that layer_norm_bench and layer_norm_torch.py
write. Left: the steps at [65536, 4096]; right: bandwidth over the row length.
"""

import csv
import pathlib
import sys

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docs" / "kernels"
WIDTH, HEIGHT = 1040, 400
PLOT_TOP, PLOT_BOTTOM = 48, 330
MAX_GBPS = 3400
BARS = [
    ("step_scalar", "scalar", "#9aa5b1"),
    ("step_vectorized", "vectorized", "#7b8794"),
    ("step_registers", "registers", "#52606d"),
    ("step_final", "final", "#0b69a3"),
    ("torch", "torch", "#c99a2e"),
    ("torch_compile", "compile", "#a86f12"),
]
LINES = [
    ("f16", "f16 in, f16 out", "#0b69a3", ""),
    ("f16_delta", "f16 + f16 delta", "#2f8132", ""),
    ("f32_delta_f16", "f32 + f16 delta, f16 out", "#8b3a8b", ""),
    ("torch", "torch, f16", "#c99a2e", "5,4"),
    ("torch_compile", "torch.compile, f16", "#a86f12", "5,4"),
]


def height(gbps):
    return PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * gbps / MAX_GBPS


def text(x, y, words, anchor="middle", size=12, color="#1f2933"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{color}">{words}</text>')


def line(x1, y1, x2, y2, color, width=1.0, dash=""):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
            f'stroke-width="{width}" stroke-dasharray="{dash}"/>')


def axes(left, right, title, ceiling):
    parts = [text((left + right) / 2, 26, title, size=14)]
    for gbps in range(0, MAX_GBPS, 500):
        parts.append(line(left, height(gbps), right, height(gbps), "#e4e7eb"))
        parts.append(text(left - 6, height(gbps) + 4, str(gbps), anchor="end", size=11))
    parts.append(line(left, height(ceiling), right, height(ceiling), "#cf1124", 1.2, "3,3"))
    parts.append(text(right, height(ceiling) - 6, f"copy {ceiling:.0f} GB/s", anchor="end",
                      size=11, color="#cf1124"))
    return parts


def draw(rows):
    figures = {(row["case"], int(row["tokens"]), int(row["hidden"])): float(row["gbps"])
               for row in rows}
    ceiling = max(gbps for (case, _, _), gbps in figures.items() if case == "copy")
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
             f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="Helvetica, Arial, sans-serif">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    left, right = 60, 490
    parts += axes(left, right, "Steps, f16 [65536, 4096], GB/s", ceiling)
    pitch = (right - left) / len(BARS)
    for i, (case, label, color) in enumerate(BARS):
        gbps = figures[(case, 65536, 4096)]
        x = left + pitch * (i + 0.5)
        parts.append(f'<rect x="{x - 0.33 * pitch:.1f}" y="{height(gbps):.1f}" '
                     f'width="{0.66 * pitch:.1f}" height="{PLOT_BOTTOM - height(gbps):.1f}" '
                     f'fill="{color}"/>')
        parts.append(text(x, PLOT_BOTTOM - 8, f"{gbps:.0f}", size=11, color="white"))
        parts.append(text(x, PLOT_BOTTOM + 16, label, size=11))

    left, right = 570, 1010
    parts += axes(left, right, "Row length, GB/s", ceiling)
    sizes = sorted({hidden for case, _, hidden in figures if case == "f16"})
    sizes = [size for size in sizes if size <= 16384]
    place = {size: left + (right - left) * (i + 0.5) / len(sizes) for i, size in enumerate(sizes)}
    for size in sizes:
        parts.append(text(place[size], PLOT_BOTTOM + 16, str(size), size=11))
    for i, (case, label, color, dash) in enumerate(LINES):
        points = []
        for size in sizes:
            # The largest number of rows that was measured at this length.
            found = [(tokens, gbps) for (name, tokens, hidden), gbps in figures.items()
                     if name == case and hidden == size]
            if found:
                points.append((place[size], height(max(found)[1])))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" '
                     f'stroke-dasharray="{dash}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
        x, y = left + 150 * (i % 3), PLOT_BOTTOM + 40 + 20 * (i // 3)
        parts.append(line(x, y - 4, x + 22, y - 4, color, 2, dash))
        parts.append(text(x + 28, y, label, anchor="start", size=11))
    return "\n".join(parts + ["</svg>"]) + "\n"


def main():
    source = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "layer_norm.csv"
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".svg")
    with open(source, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    target.write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
