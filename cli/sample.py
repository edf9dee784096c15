"""helios-sample: let a trained model continue a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from helios.cli.common import Given, HeliosCommand, Number, setting_options, whole
from helios.errors import UserError
from helios.model import GPT, Sampler
from helios.model.settings import FLOAT, NATURAL
from helios.train import checkpoint, export
from helios.train.config import resolve
from helios.train.device import open_backend
from helios.train.samples import SAMPLE_TOKENS, TEMPERATURE, TOP_K, answer, chat_prompt, printable


@click.command(cls=HeliosCommand)
@click.option("--run", type=Given(), metavar="DIR", help="Directory of a run or of one of its checkpoints.")
@click.option("--from", "file", type=Given(), metavar="FILE", help="Instead of --run: a file of helios-export.")
@click.option("--prompt", required=True,
              help="Text to continue. Where the run trained on conversations, it is put into <|user|> … <|assistant|>, "
              "unless it has such marks.")
@click.option("--raw", is_flag=True, help="Take the prompt as it is.")
@click.option("--tokens", type=whole(1), metavar="N", default=SAMPLE_TOKENS, show_default=True,
              help="Most tokens to draw.")
@click.option("--temperature", type=Number(FLOAT, NATURAL), metavar="X", default=TEMPERATURE,
              show_default=True, help="Divides the logits; 0: the likeliest token is taken.")
@click.option("--top-k", type=whole(0), metavar="N", default=TOP_K, show_default=True,
              help="Draw from this many likeliest tokens; 0: from all.")
@click.option("--seed", type=whole(0), metavar="N", default=0, show_default=True, help="Seed of the draws.")
@setting_options("backend", "device")
def main(run: str | None, file: str | None, prompt: str, raw: bool, tokens: int, temperature: float, top_k: int,
         seed: int, **flags: Any) -> None:
    """Continue a prompt with a trained model."""
    if (run is None) == (file is None):
        raise click.UsageError("give one of --run and --from")
    source, given = (Path(file), export.load(file)) if file else _of_run(str(run))
    chosen = resolve(flags=flags).train
    where = open_backend(chosen.backend, chosen.device, lambda text: click.echo(text, err=True))
    model = GPT(given.config, device=where)
    model.load_state_dict(given.state)
    chat = given.chat and not raw
    text = chat_prompt(prompt) if chat else prompt
    if (count := len(given.tokenizer.encode(text))) > (size := model.config.block_size):
        click.echo(f"warning: the prompt has {count:,} tokens, and the model sees its last {size:,}", err=True)
    try:
        said = answer(Sampler(model.eval()), given.tokenizer, [text], tokens, temperature, top_k, seed, chat)[0]
    except FloatingPointError as error:
        raise UserError(f"{source}: {error}: its weights are too large; give an earlier checkpoint, or train with "
                        f"a lower --lr") from None
    shown = f"{text}{' ' if chat else ''}{said}"
    click.echo(printable(shown) if sys.stdout.isatty() else shown, color=True)  # else escape sequences are left out


def _of_run(run: str) -> tuple[Path, export.Exported]:
    found, problems = checkpoint.find(run)
    for problem in problems:
        click.echo(f"warning: {problem}; an earlier one is taken", err=True)
    return found.path, export.of_checkpoint(found)


if __name__ == "__main__":
    main()
