"""helios-bench: the speed of primitives and of whole training steps, compared with numpy's and PyTorch's."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from helios.backends import NAMES
from helios.backends.backend import PRECISIONS
from helios.backends.vulkan import tuning
from helios.backends.vulkan.backend import VulkanBackend
from helios.bench import board, evolve, long, measure, morph, page, peaks, plot, registry, report, scaling, step, tune
from helios.cli.common import HeliosCommand, HeliosGroup, whole
from helios.errors import UserError
from helios.files import check_writable, write_text
from helios.train.config import resolve
from helios.train.device import open_backend
from helios.train.progress import Display

FILE = click.Path(path_type=Path)
Lengths = tuple[int, int, int]


class Product(click.ParamType):
    """Lengths M, N and K of a product [M, K] × [K, N], written MxNxK, or M for all three."""

    name = "lengths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Lengths:
        parts = value.split("x")
        if len(parts) not in (1, 3) or not all(p.isascii() and p.isdigit() and int(p) for p in parts):
            self.fail(f"expected M or MxNxK, as 1024 or 2048x768x256, got {value!r}", param, ctx)
        m, n, k = (int(p) for p in (parts if len(parts) == 3 else parts * 3))
        return m, n, k


BACKEND = click.option("--backend", type=click.Choice(NAMES), default="vulkan", show_default=True,
                       help="What is measured: a Vulkan device, or numpy on the CPU (cpu_ref).")
DEVICE = click.option("--device", help="Vulkan device: its index or part of its name.")
JSON = click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write the figures to FILE as JSON.")
PRECISION = click.option("--precision", metavar="NAME", help=f"{' or '.join(PRECISIONS)}. Default: the preset's.")
QUICK = click.option("--quick", is_flag=True, help="Few measurements: to see that it works, not how fast it is.")
PRESET = click.option("--preset", default="historic-6l", show_default=True, metavar="NAME",
                      help="The settings whose shapes are measured.")
BATCH = click.option("--batch", type=whole(1), metavar="N", help="Sequences in a step. Default: the preset's.")


@click.group(cls=HeliosGroup, invoke_without_command=True)
@click.option("--only", multiple=True, metavar="OP", help="Measure only this op or primitive; may be repeated.")
@click.option("--product", "products", type=Product(), multiple=True, metavar="M[xNxK]",
              help="Also measure the product [M, K] × [K, N]; M alone stands for all three.")
@click.option("--dtype", type=click.Choice(PRECISIONS), default="f32", show_default=True,
              help="Precision; mixed rounds what products and attention take to float16.")
@click.option("--peer", type=click.Choice(measure.PEERS), default="numpy", show_default=True,
              help="What is measured in turn with Helios.")
@PRESET
@BATCH
@JSON
@click.option("--plot", "plot_folder", type=FILE, metavar="DIR", help="Draw a roofline plot, DIR/roofline.png.")
@BACKEND
@DEVICE
@QUICK
@click.pass_context
def main(ctx: click.Context, only: tuple[str, ...], products: tuple[Lengths, ...], dtype: str, peer: str, preset: str,
         batch: int | None, json_file: Path | None, plot_folder: Path | None, backend: str, device: str | None,
         quick: bool) -> None:
    """Measure every primitive at the shapes of a preset's training step, or run a COMMAND."""
    if ctx.invoked_subcommand:
        given = [name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if given:
            raise UserError(f"options of {ctx.invoked_subcommand} go after it: helios-bench {ctx.invoked_subcommand} …")
        return
    config = resolve(preset, flags={"batch_size": batch})
    more = [registry.product(layout, *lengths) for lengths in products for layout in registry.LAYOUTS]
    table = measure.choose([*more, *registry.rows(registry.Sizes.of(config.model, config.train.batch_size))], only)
    check_writable(json_file)
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
    # Measured before and after, of which the higher counts: other load can only lower a peak.
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
@click.option("--activation", "activations", multiple=True, metavar="ACTIVATION[|…]", help="For all blocks, or one for "
              "each. Default: the preset's. May be repeated: all are measured in turns.")
@PRECISION
@click.option("--peer", "peers", type=click.Choice(step.PEERS), multiple=True, default=["none"], show_default=True,
              help="What is measured in turn with Helios; may be repeated.")
@JSON
@BACKEND
@DEVICE
@QUICK
def step_command(preset: str, batch: int | None, activations: tuple[str, ...], precision: str | None,
                 peers: tuple[str, ...], json_file: Path | None, backend: str, device: str | None, quick: bool) -> None:
    """Measure whole training steps: forward, backward, clipping, AdamW."""
    configs = [resolve(preset, flags={"batch_size": batch, "activation": activation, "precision": precision})
               for activation in activations or (None,)]
    check_writable(json_file)
    step.check_peers(peers, configs)
    be = open_backend(backend, device, _say, configs[0].train.precision)
    _warn()
    trainings, steps = [step.Training(config, be) for config in configs], list[dict[str, Any]]()
    for peer in peers:
        steps += step.measure(preset, trainings, peer, step.QUICK if quick else step.FULL)
        if json_file is not None:  # now, lest a failing next peer loses it
            report.save(json_file, be, steps=steps)
    out = report.console()
    train = configs[0].train
    out.print(report.headline(be, f"{preset}, batch {train.batch_size}, {train.precision}"), markup=False)
    out.print(report.step_table(steps))
    for figures in steps[-len(trainings):]:
        if figures["kernels"]:
            out.print(f"\n{figures['activation']}", markup=False)
            out.print(report.kernel_table([step.KernelTime(**k) for k in figures["kernels"]]))


@main.command("tune", cls=HeliosCommand)
@PRESET
@BATCH
@PRECISION
@DEVICE
@QUICK
def tune_command(preset: str, batch: int | None, precision: str | None, device: str | None, quick: bool) -> None:
    """Find the fastest matmul tiles on this device for a training step, and keep them for all later runs."""
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


@main.command("board", cls=HeliosCommand)
@click.option("--peer", type=click.Choice(("none", "trackio")), default="none", show_default=True,
              help="Whose storage is measured, too, on the same rows.")
@JSON
@click.option("--markdown", "markdown_file", type=FILE, metavar="FILE", help="Write a page of the figures to FILE.")
@QUICK
def board_command(peer: str, json_file: Path | None, markdown_file: Path | None, quick: bool) -> None:
    """Measure the board: rows taken in, series, lists, updates."""
    for path in (json_file, markdown_file):
        check_writable(path)
    _warn()
    figures = board.measure(board.QUICK if quick else board.FULL, peer == "trackio", _say)
    report.console().print(report.plain_table(board.TITLES, board.cells(figures)))
    if json_file is not None:
        write_text(json_file, json.dumps([f._asdict() for f in figures], indent=1) + "\n")
    if markdown_file is not None:
        write_text(markdown_file, board.markdown(figures))


@main.command("evolve", cls=HeliosCommand)
@click.option("--preset", default="quickstart", show_default=True, metavar="NAME",
              help="The settings of the few trainings that are made.")
@JSON
@click.option("--plot", "plot_folder", type=FILE, metavar="DIR", help="Draw the growth, DIR/evolve-cost.png.")
@QUICK
def evolve_command(preset: str, json_file: Path | None, plot_folder: Path | None, quick: bool) -> None:
    """Measure what an experiment costs besides its trainings."""
    check_writable(json_file)
    _warn()
    rows = evolve.growth(evolve.QUICK if quick else evolve.FULL, _say)
    _say("trainings")
    training, powers, out = evolve.trained(preset, 4 if quick else 60), evolve.exponents(rows), report.console()
    out.print(report.plain_table(evolve.TITLES, evolve.cells(rows)))
    for shape, found in powers.items():
        out.print(f"\n{shape}, grows as births to the power of: "
                  + ", ".join(f"{name} {x:.2f}" for name, x in found.items()), markup=False)
    out.print(f"\na training of {preset}, mean of {training.trainings}", markup=False)
    out.print(report.plain_table(("part", "s", f"of one of {evolve.BUDGET:g} s"), evolve.training_cells(training)))
    if json_file is not None:
        write_text(json_file, report.dump({"rows": [row.json() for row in rows], "exponents": powers,
                                           "training": training.json()}))
    if plot_folder is not None:
        evolve.plot(plot_folder / "evolve-cost.png", rows)


@main.command("morph", cls=HeliosCommand)
@click.option("--data", default="synth:2MB", show_default=True, metavar="FILE", help="Training text.")
@click.option("--val-data", metavar="FILE", help="Validation text. Default: a tenth of the other.")
@click.option("--dir", "folder", type=FILE, required=True, metavar="DIR", help="Where the runs are, or go on.")
@click.option("--steps", type=whole(8), default=240, show_default=True, metavar="N",
              help="Steps of a parent, and of a child; a fresh model has twice as many.")
@click.option("--seeds", type=whole(1), default=3, show_default=True, metavar="N", help="Trainings of each kind.")
@click.option("--case", "cases", type=click.Choice(tuple(morph.CASES)), multiple=True,
              default=tuple(morph.CASES), show_default=True, help="What grows; may be repeated.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting other than quickstart's.")
@JSON
@click.option("--plot", "plot_folder", type=FILE, metavar="DIR", help="Draw the losses, DIR/morph.png.")
def morph_command(data: str, val_data: str | None, folder: Path, steps: int, seeds: int, cases: tuple[str, ...],
                  assignments: tuple[str, ...], json_file: Path | None, plot_folder: Path | None) -> None:
    """Train children that begin with a smaller model's weights, and fresh ones beside them."""
    base = resolve("quickstart", assignments=[
        "n_layer=3", "block_size=64", f"eval_interval={steps // 8}", "checkpoint_interval=0", *assignments],
                   flags={"data": data, "val_data": val_data})
    check_writable(json_file)
    curves = list(morph.trained(folder, base, steps, range(seeds), cases, Display()))
    report.console().print(report.plain_table(morph.TITLES, list(morph.cells(curves))))
    if json_file is not None:
        write_text(json_file, report.dump({"curves": [curve._asdict() for curve in curves]}))
    if plot_folder is not None:
        morph.plot(plot_folder / "morph.png", curves)


@main.command("scaling", cls=HeliosCommand)
@click.option("--axis", "axes", type=click.Choice(tuple(scaling.AXES)), multiple=True, default=tuple(scaling.AXES),
              show_default=True, help="What grows; may be repeated.")
@click.option("--peer", "peer_name", type=click.Choice(step.PEERS), default="none", show_default=True,
              help="What is measured in turn with Helios.")
@JSON
@click.option("--plot", "plot_folder", type=FILE, metavar="DIR", help="Draw the growth, DIR/scaling.png.")
@QUICK
def scaling_command(axes: tuple[str, ...], peer_name: str, json_file: Path | None, plot_folder: Path | None,
                    quick: bool) -> None:
    """Measure how a training step grows with the batch and with the sizes of the model."""
    check_writable(json_file)
    step.check_peers([peer_name], [resolve("historic-6l")])
    _warn()
    found = list(scaling.points(axes, peer_name, quick, _say))
    report.console().print(report.plain_table(scaling.TITLES, scaling.cells(found)))
    if json_file is not None:
        write_text(json_file, report.dump({"points": [point._asdict() for point in found],
                                           "exponents": scaling.exponents(found)}))
    if plot_folder is not None:
        scaling.plot(plot_folder / "scaling.png", found)


@main.command("long", cls=HeliosCommand)
@click.option("--steps", type=whole(1), default=1_000_000, show_default=True, metavar="N", help="Steps to train.")
@click.option("--run-dir", type=FILE, metavar="DIR", help="New directory of the run, which stays there.")
@JSON
def long_command(steps: int, run_dir: Path | None, json_file: Path | None) -> None:
    """Train a tiny model for many steps, and measure whether a step, memory or open files grow.

    The records of a million steps take 0.7 GB.
    """
    check_writable(json_file)
    _warn()
    with tempfile.TemporaryDirectory() as folder:
        run = run_dir or Path(folder) / "run"
        found = list(long.watched(steps, run, _say))
        times = long.reading_times(run)
    report.console().print(report.plain_table(long.TITLES, long.cells(found)))
    for name, seconds in times.items():
        click.echo(f"all records read, {name}: {seconds:.2f} s")
    if json_file is not None:
        write_text(json_file, report.dump({"marks": [mark._asdict() for mark in found], "reading_s": times}))


@main.command("page", cls=HeliosCommand)
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Also write the merged figures to FILE as JSON.")
@click.option("--markdown", "markdown_file", type=FILE, metavar="FILE",
              help="Write the page to FILE. Default: standard output.")
def page_command(files: tuple[Path, ...], json_file: Path | None, markdown_file: Path | None) -> None:
    """Make a Markdown page of FILES: figures that --json wrote, and JUnit XML of tests."""
    for path in (json_file, markdown_file):
        check_writable(path)
    found = page.merge(files)
    text = page.markdown(found)
    if json_file is not None:
        write_text(json_file, report.dump(found))
    if markdown_file is None:
        click.echo(text, nl=False)
    else:
        write_text(markdown_file, text)


if __name__ == "__main__":
    main()
