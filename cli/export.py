"""helios-export: write a trained model for others, without what only training needs."""

from __future__ import annotations

from pathlib import Path

import click

from helios.cli.common import Given, HeliosCommand, whole
from helios.files import check_writable, write_atomic
from helios.model import files
from helios.train import export
from helios.train.records.client import Client
from helios.train.records.layout import read_config


@click.command(cls=HeliosCommand)
@click.argument("run", type=Given())
@click.option("--step", type=whole(0), metavar="N", help="Take the checkpoint of this step.  [default: the last one]")
@click.option("--out", type=Given(Path), required=True, metavar="FILE",
              help="File to write; with --to hf, a new folder.")
@click.option("--dtype", type=click.Choice(list(files.DTYPES)), default="f32", show_default=True,
              help="Number format of the weights, rounded to nearest.")
@click.option("--zstd", is_flag=True, help="Compress the file.")
@click.option("--to", type=click.Choice(["helios", "hf"]), default="helios", show_default=True,
              help="helios: one file, for helios-sample --from and GPT.load; hf: a folder, for Hugging Face's "
              "transformers, where the model is a GPT-2: gelu, layer norms, no soft cap.")
@click.option("--upload", metavar="URL", type=Given(), help="Send the file to the board there, too; its token is in "
              "HELIOS_TOKEN. After an interruption the same command goes on.")
def main(run: str, step: int | None, out: Path, dtype: str, zstd: bool, to: str, upload: str | None) -> None:
    """Write the model of RUN, the directory of a run or of one of its checkpoints, for inference."""
    if to == "hf" and (zstd or upload):
        raise click.UsageError(f"--to hf writes a folder; leave {'--zstd' if zstd else '--upload'} out")
    board = Client(upload) if upload else None
    if board:
        export.check_upload(out.name)
    export.check_folder(out) if to == "hf" else check_writable(out)
    found, problems = export.find(run, step)
    for problem in problems:
        click.echo(f"warning: {problem}; an earlier one is taken", err=True)
    model = export.of_checkpoint(found)
    sizes = {"checkpoint": sum(file["size"] for file in found.state["files"].values())}
    if to == "hf":
        export.write_hf(model, out, dtype)
        sizes["model.safetensors"] = (out / "model.safetensors").stat().st_size
    else:
        raw = export.pack(model, dtype)
        sizes["inference"] = len(raw)
        if zstd:
            raw = files.compressed(raw)
            sizes["compressed"] = len(raw)
        write_atomic(out, lambda file: file.write(raw))
    click.echo(f"step {model.step} of {model.run_id}: "
               + " → ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in sizes.items()) + f", {out}")
    if board:
        with click.progressbar(length=len(raw), label=f"sending {out.name}") as bar:
            export.upload(board, out, read_config(found.path.parent.parent), model.step, bar.update)
        click.echo(f"{board.url}/api/runs/{model.run_id}/files/{out.name}")


if __name__ == "__main__":
    main()
