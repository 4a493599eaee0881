"""A short table of one run, from the lines that it added to the record file."""

import json


def lines_of(path, run):
    """Records of a run."""
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file if line.strip()]
    return [r for r in records if r.get("run") == run]


def what(record):
    """What a line has besides its stage, in words: how much attention leaves out, and how many tokens are new."""
    if record.get("chunk"):
        return f", {length(record['chunk'])} new"
    if record["bench"] != "attend":
        return ""
    return ", dense" if record["preset"] == "dense" else f", {100 * record['skip']:.0f} % skipped"


def number(x):
    """Three digits that count, more before the point."""
    if x >= 100:
        return f"{x:,.0f}"
    return f"{x:.1f}" if x >= 10 else f"{x:.2f}" if x >= 1 else f"{x:.3f}"


def length(n):
    return f"{n >> 10} K" if n % 1024 == 0 else str(n)


def show(path, run):
    """Prints a row a line of attention (TFLOP/s) and a row a stage (milliseconds), a column a length."""
    records = lines_of(path, run)
    roofs = [r for r in records if r["bench"] == "gemm"]
    records = [r for r in records if r["bench"] != "gemm"]
    lengths = sorted({r["seq"] for r in records})
    sections = [("TFLOP/s of selected pairs", "tflops_selected", lambda r: r["bench"] == "attend"), ("milliseconds", "ms", lambda r: True)]
    for title, field, wanted in sections:
        rows = {}
        for r in records:
            if wanted(r) and r[field] is not None:
                rows.setdefault(f"{r['peer'] or 'stem-attn'} {r['bench']}{what(r)}", {})[r["seq"]] = r[field]
        if not rows:
            continue
        print(f"{title:<44}" + "".join(f"{length(n):>10}" for n in lengths))
        for name, values in sorted(rows.items(), key=lambda row: (not row[0].startswith("stem-attn"), row[0])):
            print(f"  {name:<42}" + "".join(f"{number(values[n]) if n in values else '-':>10}" for n in lengths))
    for r in roofs:
        print(f"{r['peer']} {r['seq']}^3: {number(r['tflops_selected'])} TFLOP/s")
