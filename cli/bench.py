"""helios-bench: how fast the primitives and whole training steps are, beside numpy and PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from helios.backends import NAMES
from helios.backends.backend import PRECISIONS
from helios.backends.vulkan import tuning
from helios.backends.vulkan.backend import VulkanBackend
from helios.bench import measure, page, peaks, plot, registry, report, step, tune
from helios.cli.common import HeliosCommand, HeliosGroup
from helios.errors import UserError
from helios.train.config import resolve
from helios.train.device import open_backend

FILE = click.Path(path_type=Path)
Lengths = tuple[int, int, int]


class Product(click.ParamType):
    """M x N x K, or one length for all three."""

    name = "lengths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Lengths:
        parts = value.split("x")
        if len(parts) not in (1, 3) or not all(p.isascii() and p.isdigit() and int(p) for p in parts):
            self.fail(f"expected M or MxNxK, as 1024 or 2048x768x256, got {value!r}", param, ctx)
        m, n, k = (int(p) for p in (parts if len(parts) == 3 else parts * 3))
        return m, n, k



BACKEND = click.option("--backend", type=click.Choice(NAMES), default="vulkan", show_default=True)
DEVICE = click.option("--device", help="Vulkan device: its index or part of its name.")
JSON = click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write the figures there.")
PRECISION = click.option("--precision", metavar="NAME", help=f"{' or '.join(PRECISIONS)}; else as the preset says.")
QUICK = click.option("--quick", is_flag=True, help="Few runs: whether it works rather than how fast it is.")
PRESET = click.option("--preset", default="historic-6l", show_default=True, metavar="NAME", help="Whose shapes.")
BATCH = click.option("--batch", type=click.IntRange(min=1), help="Sequences in a step; else as the preset says.")


@click.group(cls=HeliosGroup, invoke_without_command=True)
@click.option("--only", multiple=True, metavar="OP", help="An op or primitive; may be given several times.")
@click.option("--product", "products", type=Product(), multiple=True, metavar="M[xNxK]",
              help="Measure matmul at these lengths as well; one alone is all three.")
@click.option("--dtype", type=click.Choice(PRECISIONS), default="f32", show_default=True)
@click.option("--peer", type=click.Choice(measure.PEERS), default="numpy", show_default=True,
              help="What runs in turn with ours.")
@PRESET
@BATCH
@JSON
@click.option("--plot", "plot_folder", type=FILE, metavar="DIR", help="Draw DIR/roofline.png.")
@BACKEND
@DEVICE
@QUICK
@click.pass_context
def main(ctx: click.Context, only: tuple[str, ...], products: tuple[Lengths, ...], dtype: str, peer: str, preset: str,
         batch: int | None, json_file: Path | None, plot_folder: Path | None, backend: str, device: str | None,
         quick: bool) -> None:
    """Measure every primitive at the shapes of a preset's training step; or a COMMAND."""
    if ctx.invoked_subcommand:
        given = [name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if given:
            raise UserError(f"options of {ctx.invoked_subcommand} go after it: helios-bench {ctx.invoked_subcommand} …")
        return
    config = resolve(preset, flags={"batch_size": batch})
    more = [registry.product(layout, *lengths) for lengths in products for layout in registry.LAYOUTS]
    table = measure.choose([*more, *registry.rows(registry.Sizes.of(config.model, config.train.batch_size))], only)
    report.check(json_file)
    if peer == "torch":
        measure.torch_module()
    be = open_backend(backend, device, _say, dtype)
    effort, out = measure.QUICK if quick else measure.FULL, report.console()
    _warn()
    limits = peaks.peaks(be, effort, small=quick)
    results = []
    with out.status("") as status:
        for result in measure.measure(be, table, peer, effort):
            results.append(result)
            status.update(f"{len(results)} of {len(table)}: {result.row.op}")
    # Before and after, the higher: what else the machine does hides a peak, and cannot raise it.
    limits = measure.Peaks(*map(max, zip(limits, peaks.peaks(be, effort, small=quick), strict=True)))
    out.print(report.headline(be, f"peaks {limits.gflops:.0f} GFLOP/s, {limits.gbps:.1f} GB/s"), markup=False)
    out.print(report.row_table(results, limits, dtype, peer))
    if json_file is not None:
        report.save(json_file, be, rows=[r.json(dtype, limits, None if peer == "none" else peer) for r in results])
    if plot_folder is not None:
        out.print(f"roofline: {plot.roofline(plot_folder, be, results, limits)}", markup=False)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _warn() -> None:
    if warning := measure.busy():
        _say(f"warning: {warning}")


@main.command("step", cls=HeliosCommand)
@PRESET
@BATCH
@click.option("--activation", metavar="NAME[,NAME…]", help="One, or one for each block; else as the preset says.")
@PRECISION
@click.option("--peer", "peers", type=click.Choice(step.PEERS), multiple=True, default=["none"], show_default=True,
              help="What runs in turn with ours; one after the other where there are several.")
@JSON
@BACKEND
@DEVICE
@QUICK
def step_command(preset: str, batch: int | None, activation: str | None, precision: str | None, peers: tuple[str, ...],
                 json_file: Path | None, backend: str, device: str | None, quick: bool) -> None:
    """Measure whole training steps: forward, backward, clip, AdamW."""
    config = resolve(preset, flags={"batch_size": batch, "activation": activation, "precision": precision})
    report.check(json_file)
    if set(peers) != {"none"}:
        measure.torch_module()
    be = open_backend(backend, device, _say, config.train.precision)
    _warn()
    ours, steps = step.Training(config, be), list[dict[str, Any]]()
    for peer in peers:
        steps.append(step.measure(preset, ours, peer, step.QUICK if quick else step.FULL))
        if json_file is not None:  # whatever becomes of the next peer
            report.save(json_file, be, steps=steps)
    out, kernels = report.console(), [step.KernelTime(**k) for k in steps[-1]["kernels"]]
    out.print(report.headline(be, f"{preset}, {config.model.parameters():,} parameters"), markup=False)
    out.print(report.step_table(steps))
    if kernels:
        out.print()
        out.print(report.kernel_table(kernels))


@main.command("tune", cls=HeliosCommand)
@PRESET
@BATCH
@PRECISION
@DEVICE
@QUICK
def tune_command(preset: str, batch: int | None, precision: str | None, device: str | None, quick: bool) -> None:
    """Find the fastest tile for each class of product in a training step; from then on this device uses it."""
    config = resolve(preset, flags={"batch_size": batch, "precision": precision})
    table = registry.rows(registry.Sizes.of(config.model, config.train.batch_size))
    be, out = open_backend("vulkan", device, _say, config.train.precision), report.console()
    _warn()
    choices = list(tune.tune(be, table, measure.QUICK if quick else measure.FULL))
    out.print(report.headline(be, f"{len(choices)} of {len(tune.classes(table))} classes gain by another tile"),
              markup=False)
    if choices:
        out.print(report.tile_table(choices))
    assert isinstance(be, VulkanBackend)
    out.print(f"kept in {tuning.save(be.profile, be.matmul_kernel, be.tiles)}", markup=False)


@main.command("page", cls=HeliosCommand)
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write all of it there, as one report.")
@click.option("--markdown", "markdown_file", type=FILE, metavar="FILE", help="Write the page there, not here.")
def page_command(files: tuple[Path, ...], json_file: Path | None, markdown_file: Path | None) -> None:
    """Make one page of FILES: what --json wrote, and test results in JUnit's XML."""
    for path in (json_file, markdown_file):
        report.check(path)
    found = page.merge(files)
    text = page.markdown(found)
    if json_file is not None:
        report.write(json_file, report.dump(found))
    if markdown_file is None:
        click.echo(text, nl=False)
    else:
        report.write(markdown_file, text)


if __name__ == "__main__":
    main()
