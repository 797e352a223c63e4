"""Many runs: grids, placed by Ray Tune."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fmlora_dist.commands.arguments import make_parser, positive, whole

__all__ = ["demo", "grid"]

_STALL = "end a run that has written no event for S seconds, and try it again; 0: never (default: 1800)"


def grid(argv: Sequence[str], name: str | None = None) -> int:
    """Run a grid of benchmarks x task counts x methods x seeds, placed by Ray Tune; finished runs are skipped."""
    parser = make_parser("grid" if name is None else name, grid.__doc__)
    if name is None:
        parser.add_argument("name", metavar="NAME", help="name of a shipped grid, or a YAML file")
    add = parser.add_argument
    add("--out", metavar="DIR_OR_URL", help="folder of the results, or its fsspec URL (default: results/<name>)")
    add("--data-root", default="", metavar="DIR", help="folder or URL that holds one folder of shards a benchmark")
    add("--resume", action="store_true", help="start only what is not complete, which is so without it, too")
    add("--retries", type=whole, default=2, metavar="K", help="try a run that fails again up to K times (default: 2)")
    add("--stall-timeout", type=whole, default=1800, metavar="S", help=_STALL)
    add("--tracker", action="append", default=[], metavar="NAME", help="wandb or mlflow, beside TensorBoard")
    add("--profile", type=Path, metavar="FILE", help="times of steps (fmlora profile steps --json FILE)")
    add("--plan", action="store_true", help="start nothing: say how many runs there are, and simulate the makespan")
    add("--nodes", type=positive, default=1, metavar="K", help="of the simulated cluster (default: 1)")
    add("--gpus-per-node", type=whole, default=0, metavar="G", help="of the simulated cluster (default: 0)")
    add("--cpus-per-node", type=positive, metavar="C", help="of the simulated cluster (default: no limit beside GPUs)")
    arguments = parser.parse_args(argv)
    name = name or arguments.name
    from cluster.launch import Cluster, Options, print_plan, run_grid

    options = Options(
        data_root=arguments.data_root,
        profile=arguments.profile,
        retries=arguments.retries,
        stall_timeout=arguments.stall_timeout,
        trackers=arguments.tracker,
    )
    out = arguments.out or f"results/{Path(name).stem}"
    if arguments.plan:
        cluster = Cluster(nodes=arguments.nodes, gpus=arguments.gpus_per_node, cpus=arguments.cpus_per_node)
        return print_plan(name, out, Console(), options, cluster)
    return run_grid(name, out, Console(), options)


def demo(argv: Sequence[str]) -> int:
    """Run the grid 'demo': five methods on icons_mini, and print their table."""
    return grid(argv, name="demo")
