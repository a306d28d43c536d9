"""The tables of the builder's bench."""

from __future__ import annotations

from building import BuildBench, WholeBuild
from rich.console import Console
from rich.table import Table

__all__ = ["show_build", "show_whole"]

_GOAL_SPEED = 5.0
_GOAL_MEMORY = 0.25
_GOAL_FLOOR = 0.7
_SAME_ENERGY = 1e-5


def show_build(result: BuildBench, console: Console) -> None:
    """Print the methods beside each other, the floors, the goals, and the whole build."""
    table = Table(
        title=f"Subspaces of {result.models} x {result.rows} x {result.columns}, rank {result.rank}"
    )
    for name in ("method", "time", "of ours", "CPU", "of ours", "memory", "of ours", "captured"):
        table.add_column(name, justify="left" if name == "method" else "right")
    ours = result.methods[0]
    for one in result.methods:
        table.add_row(
            one.method,
            f"{one.seconds:.2f} s",
            f"{one.seconds / ours.seconds:.1f}x",
            f"{one.cpu_seconds:.2f} s",
            f"{one.cpu_seconds / ours.cpu_seconds:.1f}x",
            f"{one.peak_bytes / 2**20:.0f} MiB",
            f"{one.peak_bytes / max(1, ours.peak_bytes):.1f}x",
            f"{one.captured:.6f}",
        )
    console.print(table)
    console.print(f"load of the machine when it began: {result.load:.1f}")
    floor = max(result.read_seconds, result.product_seconds)
    console.print(
        f"floors: read {result.read_seconds:.2f} s, products {result.product_seconds:.2f} s "
        f"({result.product_cpu_seconds:.2f} s of CPU); ours is at {floor / ours.seconds:.0%} of the larger floor's speed, "
        f"{result.product_cpu_seconds / ours.cpu_seconds:.0%} by CPU time (goal {_GOAL_FLOOR:.0%})"
    )
    several = result.several
    floor = max(result.several_read_seconds, result.several_product_seconds)
    console.print(
        f"{2 * result.threads} such tensors at once, as a build works: {several.seconds:.2f} s ({several.cpu_seconds:.2f} s "
        f"of CPU), floors: read {result.several_read_seconds:.2f} s, products {result.several_product_seconds:.2f} s; "
        f"{floor / several.seconds:.0%} of the larger floor's speed, "
        f"{result.several_product_cpu_seconds / several.cpu_seconds:.0%} by CPU time (goal {_GOAL_FLOOR:.0%})"
    )
    for one in result.methods:
        if one.method in ("incremental-pca", "tucker"):
            fast = one.seconds / ours.seconds >= _GOAL_SPEED
            lean = ours.peak_bytes <= _GOAL_MEMORY * one.peak_bytes
            near = ours.captured >= one.captured - _SAME_ENERGY
            console.print(
                f"beside {one.method}: {_GOAL_SPEED:.0f} times faster {_met(met=fast)}, a quarter of the memory "
                f"{_met(met=lean)}, as much energy {_met(met=near)}"
            )
    for one in result.wide:
        console.print(
            f"at a vision transformer's size, {one.method}: {one.seconds:.2f} s, {one.peak_bytes / 2**20:.0f} MiB, "
            f"captured {one.captured:.6f}"
        )
    show_whole(result.whole, console)


def _met(*, met: bool) -> str:
    return "yes" if met else "NO"


def show_whole(result: WholeBuild, console: Console) -> None:
    """Print a whole build beside the disk and the copies."""
    speed = result.zoo_bytes / 1e9
    console.print(
        f"whole build on {result.device}: {result.models} models, {result.zoo_bytes / 2**20:.0f} MiB in "
        f"{result.seconds:.1f} s ({result.cpu_seconds:.1f} s of CPU), {speed / result.seconds:.4f} GB/s; the disk gives "
        f"{speed / result.read_seconds:.2f} GB/s, copies to {result.device} {result.copy_bytes_per_s / 1e9:.2f} GB/s"
    )
    console.print(
        "by phase: "
        + ", ".join(
            f"{phase} {seconds:.1f} s ({speed / max(seconds, 1e-9):.4f} GB/s)"
            for phase, seconds in result.phases.items()
        )
    )
    console.print(
        f"peak {result.peak_bytes / 2**20:.0f} MiB of {result.projected_bytes / 2**20:.0f} MiB projected; stored "
        f"{result.stored_bytes / 2**20:.1f} MiB"
    )
    for remark in result.remarks[:5]:
        console.print(remark)
