"""Draws the Mandelbrot set in tiles over the grid; a second panel shows which node drew what.

Run it inside a grid: `gristmill up --workers 2 -- python -P examples/mandelbrot.py`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy

from gristmill.client import Client
from gristmill.wire.client import SubtaskRow
from gristmill.wire.units import format_credits

LEFT, TOP, WIDTH = -2.2, 1.2, 3.2  #: of the picture, in the complex plane
ROUNDS = 400


def draw_tile(
    column: int, row: int, side: int, pixels_wide: int, left: float, top: float, width: float,
    rounds: int,
) -> Any:  # fmt: skip
    """Runs in the jail: rounds until escape for each point of one tile; u16[side, side]."""
    import numpy

    step = width / pixels_wide
    x = left + step * (column * side + numpy.arange(side))
    y = top - step * (row * side + numpy.arange(side))
    c = (x[None, :] + 1j * y[:, None]).ravel()
    z = numpy.zeros_like(c)
    counts = numpy.full(c.shape, rounds, numpy.uint16)
    alive = numpy.arange(c.size)
    for number in range(rounds):
        z = z * z + c[alive]
        is_in = z.real**2 + z.imag**2 <= 4
        counts[alive[~is_in]] = number
        z, alive = z[is_in], alive[is_in]
    return counts.reshape(side, side)


def nodes_of(client: Client, job: int, count: int) -> tuple[list[str], list[int]]:
    """(node, cpu in us) of each subtask, as the broker recorded them."""
    rows: list[SubtaskRow] = []
    while len(rows) < count:
        page = client.subtasks(job, first=len(rows), limit=min(1_000, count - len(rows)))
        if not page:
            break
        rows += page
    return [row.node for row in rows], [row.cpu_us for row in rows]


def paint(picture: Any, owners: Any, names: list[str], work: list[int], path: Path) -> None:
    """Both panels: the set, and the same picture in the colour of each tile's node."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    extent = (LEFT, LEFT + WIDTH, TOP - WIDTH * picture.shape[0] / picture.shape[1], TOP)
    light = numpy.log1p(picture.astype(float)) / numpy.log1p(ROUNDS)
    light[picture == ROUNDS] = 0
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 6.2), layout="constrained")
    left.imshow(light, cmap="twilight_shifted", extent=extent)
    left.set_title(f"{picture.shape[1]} × {picture.shape[0]} points, at most {ROUNDS} rounds")
    colours = pyplot.get_cmap("Set2")(numpy.arange(8))[:, :3]
    right.imshow(colours[owners % 8] * (0.6 + 0.4 * light[..., None]), extent=extent)
    right.set_title("who drew it")
    labels = [
        Patch(color=colours[n % 8], label=f"node {name[:8]}: {cpu / 1e6:.2f} s of cpu")
        for n, (name, cpu) in enumerate(zip(names, work, strict=True))
    ]
    right.legend(handles=labels, loc="lower left")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Map tiles, put them together, paint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--columns", type=int, default=16, help="tiles side by side")
    parser.add_argument("--side", type=int, default=96, help="points along a tile's side")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns, side = arguments.columns, arguments.side
    rows = columns * 3 // 4
    tiles = [(column, row) for row in range(rows) for column in range(columns)]

    with Client() as client:
        results = client.map(
            draw_tile,
            [tile[0] for tile in tiles],
            [tile[1] for tile in tiles],
            *([value] * len(tiles) for value in (side, columns * side, LEFT, TOP, WIDTH, ROUNDS)),
            name="mandelbrot",
            progress=None,
        )
        picture = numpy.zeros((rows * side, columns * side), numpy.uint16)
        for (column, row), tile in zip(tiles, results, strict=True):
            picture[row * side : (row + 1) * side, column * side : (column + 1) * side] = tile
        job = client.job(results)
        nodes, cpu_us = nodes_of(client, job.job, len(tiles))
        bill = job.bill()

    names = sorted(set(nodes))
    owners = numpy.zeros(picture.shape, int)
    for (column, row), node in zip(tiles, nodes, strict=True):
        at = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
        owners[at] = names.index(node)
    work = [sum(c for node, c in zip(nodes, cpu_us, strict=True) if node == n) for n in names]
    path = arguments.out / "mandelbrot.png"
    paint(picture, owners, names, work, path)

    inside = float((picture == ROUNDS).mean())
    print(f"{len(tiles)} tiles by {len(names)} nodes; {inside:.1%} of the points are in the set")
    print(f"results: {path}")
    print(
        f"bill: {job.id}, {bill.subtasks:,} subtasks, {bill.cpu_us / 1e6:.2f} s of cpu, "
        f"{format_credits(bill.amount_ucredits)} credits (gristmill usage)"
    )


if __name__ == "__main__":
    main()
