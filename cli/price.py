"""``gristmill price``: what a job would cost, before it is submitted; alone, the tariffs."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.output import Terminal, plural
from gristmill.cli.submit import check_arguments, make_request, read_inputs
from gristmill.wire.errors import EXIT_OK
from gristmill.wire.ids import format_job
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.units import format_credits

if TYPE_CHECKING:
    from gristmill.client import Client


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """The tariffs, or the price of what ``submit`` would submit."""
    is_request = args.command is not None or args.python or args.decomposer
    with connect(args.address) as client:
        if not is_request and args.sample is None:
            return show_tariffs(client.tariffs(), terminal)
        check_arguments(args)
        if args.decomposer:
            from gristmill.cli.decomposed import submit_decomposed

            return submit_decomposed(client, args, terminal)
        inputs = read_inputs(args)
        spec, function = make_request(client, args, inputs)
        return show_price(client, spec, function, inputs.values, args.sample, terminal)


def show_tariffs(tariffs: dict[str, Tariff], terminal: Terminal) -> int:
    """A line for each class of nodes."""
    fields = ("cpu_second_ucredits", "gib_second_ucredits", "subtask_ucredits")
    rates = {name: {field: getattr(tariff, field) for field in fields}
             for name, tariff in sorted(tariffs.items())}  # fmt: skip
    if terminal.is_json:
        terminal.document(documents.encode(documents.Tariffs(rates)))
        return EXIT_OK
    head = ["CLASS", "CPU SECOND", "GIB SECOND", "SUBTASK"]
    rows = [[name, *map(format_credits, each.values())] for name, each in rates.items()]
    terminal.table(head, rows, right=head[1:], whole=head[1:], styles={"CLASS": "bold"})
    return EXIT_OK


def show_price(
    client: "Client",
    spec: JobSpec,
    function: bytes,
    inputs: Iterable[Any],
    sample: int | None,
    terminal: Terminal,
) -> int:
    """The interval, what it rests on, and what finding it out has cost."""
    from gristmill.client.pricing import price

    if sample is not None:
        terminal.say(f"the first {plural(sample, 'subtask')} at most run now and are billed ...")
        terminal.way_back = "the sample goes on: gristmill status"
    found = price(client, spec, function, inputs, sample or 0, is_forced=sample is not None)
    job = format_job(found.job) if found.job else ""
    if terminal.is_json:
        document = documents.Price(
            found.basis, found.subtasks, found.low_ucredits, found.mid_ucredits,
            found.high_ucredits, found.per_subtask_ucredits, found.measured, found.is_capped, job,
            found.spent_ucredits,
        )  # fmt: skip
        terminal.document(documents.encode(document))
        return EXIT_OK
    terminal.print(str(found))
    if job:
        terminal.say(f"the sample is {job} and was billed {format_credits(found.spent_ucredits)}")
    elif found.basis == "limits":
        terminal.say(
            "nothing like it was run yet\n  next: gristmill price --sample, which runs its first"
            " subtasks and bills them"
        )
    return EXIT_OK
