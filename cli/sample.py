"""helios-sample: let a trained model continue a prompt."""

from __future__ import annotations

from typing import Any

import click

from helios.cli.common import Given, HeliosCommand, Number, setting_options
from helios.model import GPT, GPTConfig, Sampler
from helios.model.settings import FLOAT, NATURAL
from helios.train import checkpoint
from helios.train.config import resolve
from helios.train.device import open_backend
from helios.train.resume import tokenizer_of
from helios.train.samples import SAMPLE_TOKENS, TEMPERATURE, TOP_K, answer, chat_prompt


@click.command(cls=HeliosCommand)
@click.option("--run", required=True, type=Given(), metavar="DIR",
              help="Directory of a run or of one of its checkpoints.")
@click.option("--prompt", required=True, help="Text, put into <|user|> … <|assistant|> unless it has such marks.")
@click.option("--tokens", type=click.IntRange(min=1), default=SAMPLE_TOKENS, show_default=True,
              help="Most tokens to draw.")
@click.option("--temperature", type=Number(FLOAT, NATURAL), metavar="X", default=TEMPERATURE,
              show_default=True, help="Divides the logits; 0: the likeliest token is taken.")
@click.option("--top-k", type=click.IntRange(min=0), default=TOP_K, show_default=True,
              help="Draw from this many likeliest tokens; 0: from all.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the draws.")
@setting_options("backend", "device")
def main(run: str, prompt: str, tokens: int, temperature: float, top_k: int, seed: int, **flags: Any) -> None:
    """Continue a prompt with a trained model."""
    found, problems = checkpoint.find(run)
    for problem in problems:
        click.echo(f"warning: {problem}; an earlier one is taken", err=True)
    tokenizer = tokenizer_of(found)
    chosen = resolve(flags=flags).train
    where = open_backend(chosen.backend, chosen.device, lambda text: click.echo(text, err=True))
    model = GPT(GPTConfig.from_dict(found.state["model"]), device=where)
    model.load_state_dict(found.model)
    text = chat_prompt(prompt)
    click.echo(f"{text} {answer(Sampler(model.eval()), tokenizer, [text], tokens, temperature, top_k, seed)[0]}")


if __name__ == "__main__":
    main()
