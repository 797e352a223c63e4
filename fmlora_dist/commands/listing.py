"""What there is by name."""

from collections.abc import Sequence

from fmlora_dist.commands.arguments import make_parser

__all__ = ["listing"]


def listing(argv: Sequence[str]) -> int:
    """Show the methods and benchmarks."""
    make_parser("list", listing.__doc__).parse_args(argv)
    from fmlora_dist.registry import list_benchmarks, list_methods

    rows = [("method", name, method.info.summary) for name, method in list_methods().items()]
    rows += [("benchmark", name, spec.summary) for name, spec in list_benchmarks().items()]
    for kind, name, summary in rows:
        print(f"{kind:<10} {name:<{max(len(row[1]) for row in rows)}}  {summary}")
    return 0
