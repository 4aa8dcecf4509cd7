"""Measures every file of the running Python's standard library, each in a jail of the grid.

A table on the terminal, a CSV and a plot. Run it inside a grid: `gristmill up -- python -P
examples/stdlib_audit.py`, or with GRISTMILL_ADDRESS set.
"""

import argparse
import csv
import math
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from gristmill.client import Client
from gristmill.wire.units import format_credits

COLUMNS = (
    "module", "lines", "bytes", "functions", "classes", "complexity", "worst", "worst_function",
)  # fmt: skip
Row = tuple[str, int, int, int, int, int, int, str]


def modules(root: Path) -> Iterator[str]:
    """Names of the library's files below its folder; installed packages are not part of it."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - {"site-packages", "__pycache__"})
        below = Path(folder).relative_to(root)
        yield from (str(below / name) for name in sorted(files) if name.endswith(".py"))


def measure(module: str) -> Row:
    """Runs in the jail: size, functions and cyclomatic complexity of one file.

    A file that does not parse (the library's tests have some on purpose) counts -1 functions.
    """
    import ast
    import os
    import tokenize

    path = os.path.join(os.path.dirname(os.__file__), module)
    size = os.path.getsize(path)
    try:
        with tokenize.open(path) as file:
            text = file.read()
        tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return module, 0, size, -1, 0, 0, 0, ""
    branches = (
        ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.With,
        ast.AsyncWith, ast.Assert, ast.comprehension, ast.match_case,
    )  # fmt: skip
    functions, classes, total, worst, worst_name = 0, 0, 0, 0, ""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions += 1
            inside = list(ast.walk(node))
            complexity = 1 + sum(isinstance(one, branches) for one in inside)
            complexity += sum(len(one.values) - 1 for one in inside if isinstance(one, ast.BoolOp))
            total += complexity
            if complexity > worst:
                worst, worst_name = complexity, node.name
    return module, text.count("\n") + 1, size, functions, classes, total, worst, worst_name


def plot(rows: list[Row], path: Path) -> None:
    """Complexity over size, one point a file, the largest named."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row[3] > 0]
    figure, axes = pyplot.subplots(figsize=(10, 6.5), layout="constrained")
    points = axes.scatter(
        [row[1] for row in shown], [row[5] for row in shown], c=[row[6] for row in shown],
        s=18, cmap="viridis", norm="log", alpha=0.8,
    )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="lines", ylabel="cyclomatic complexity, all functions",
        title=f"The standard library of Python {sysconfig.get_python_version()}: "
        f"{len(shown):,} files with functions",
    )  # fmt: skip
    figure.colorbar(points, label="complexity of the most complex function")
    named: list[tuple[float, float]] = []
    for row in sorted(shown, key=lambda row: -row[5]):
        at = (math.log10(row[1]), math.log10(row[5]))
        # A name only where no other is near: most files lie in one cloud.
        if len(named) < 12 and all(abs(at[1] - y) > 0.06 for _, y in named):
            named.append(at)
            axes.annotate(row[0], (row[1], row[5]), (-8, 0), textcoords="offset points",
                          fontsize=7, ha="right", va="center")  # fmt: skip
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Map, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--limit", type=int, help="only the first files")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    root = Path(sysconfig.get_path("stdlib"))
    names = list(modules(root))[: arguments.limit]

    with Client() as client:
        results = client.map(measure, names, name="stdlib audit", memory="512M", progress=None)
        rows: list[Row] = list(results)
        job = client.job(results)
        card, bill = job.status(), job.bill()

    table = arguments.out / "stdlib_audit.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    picture = arguments.out / "stdlib_audit.png"
    plot(rows, picture)

    print(f"{'module':44} {'lines':>7} {'functions':>9} {'complexity':>10}  worst function")
    for row in sorted(rows, key=lambda row: -row[5])[:12]:
        print(f"{row[0][:44]:44} {row[1]:7,} {row[3]:9,} {row[5]:10,}  {row[7]} ({row[6]})")
    parsed = [row for row in rows if row[3] >= 0]
    print(
        f"{len(rows):,} files, {len(rows) - len(parsed)} of them do not parse; "
        f"{sum(row[1] for row in parsed):,} lines, {sum(row[3] for row in parsed):,} functions"
    )
    print(f"results: {table}, {picture}")
    print(
        f"bill: {job.id}, {bill.subtasks:,} subtasks, {bill.cpu_us / 1e6:.2f} s of cpu, "
        f"{format_credits(bill.amount_ucredits)} credits (gristmill usage; {card.state})"
    )


if __name__ == "__main__":
    main()
