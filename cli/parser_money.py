"""The verbs about money: price, eff, usage, balance, statement. See ``parser.py``."""

from gristmill.cli.parser import Verbs, add_job, add_request, add_verb, count_of, typed


def add(verbs: Verbs) -> None:
    """Adds the verbs, in the order of the page."""
    for each in (_price, _eff, _usage, _balance, _statement):
        each(verbs)


def _price(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "price",
        "price",
        "Say what a job would cost, from past ones or from a sample; alone, the tariffs",
        more="Takes what 'submit' takes, and submits nothing but the sample.",
    )
    parser.usage = "gristmill price [--sample [N]] [options of submit] [-- COMMAND ...]"
    parser.add_argument(
        "--sample",
        nargs="?",
        type=typed(count_of(1, 1_000)),
        const=20,
        metavar="N",
        help="run the first N subtasks (20) as a job that is billed, and go by them",
    )
    add_request(parser)


def _eff(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "eff", "eff", "Compare what a job asked for with what it used, and what that cost"
    )
    add_job(parser)


def _usage_keys(text: str) -> str:
    from gristmill.wire.ledger import parse_by  # help loads no library

    return ",".join(parse_by(text))


def _usage(verbs: Verbs) -> None:
    parser = add_verb(verbs, "usage", "money", "Print the bill, by tenant, node, job and day")
    add_job(parser, "?")
    parser.add_argument(
        "--by",
        type=typed(_usage_keys),
        default="job",
        metavar="KEYS",
        help="some of tenant,node,job,day, such as tenant,day (default: job)",
    )
    parser.add_argument("--all", action="store_true", help="of every tenant; for operators")


def _balance(verbs: Verbs) -> None:
    parser = add_verb(
        verbs, "balance", "money", "Print your accounts, and the sum of all accounts (it is 0)"
    )
    parser.add_argument("--all", action="store_true", help="every account; for operators")
    parser.add_argument("--watch", action="store_true", help="again with each change, until Ctrl-C")


def _statement(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "statement",
        "statement",
        "Print each entry of your account with its receipt, and whether they add up",
        more="Exit 1, with the name of an incident, if the entries do not make what the account "
        "has.",
    )
    parser.add_argument(
        "--last",
        type=typed(count_of(1, 1_000_000)),
        default=20,
        metavar="N",
        help="print the last N entries (20); all of them are added up",
    )
    parser.add_argument("--csv", metavar="FILE", help="write every entry to a file; - for stdout")
    parser.add_argument("--account", default="", metavar="NAME", help="of another; for operators")
