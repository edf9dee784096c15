"""helios-sample: let a trained model continue a prompt."""

from __future__ import annotations

import sys
from typing import Any

import click

from helios.cli.common import Given, HeliosCommand, Number, setting_options, whole
from helios.errors import UserError
from helios.model import GPT, GPTConfig, Sampler
from helios.model.settings import FLOAT, NATURAL
from helios.train import checkpoint
from helios.train.config import resolve
from helios.train.device import open_backend
from helios.train.resume import is_chat, tokenizer_of
from helios.train.samples import SAMPLE_TOKENS, TEMPERATURE, TOP_K, answer, chat_prompt, printable


@click.command(cls=HeliosCommand)
@click.option("--run", required=True, type=Given(), metavar="DIR",
              help="Directory of a run or of one of its checkpoints.")
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
def main(run: str, prompt: str, raw: bool, tokens: int, temperature: float, top_k: int, seed: int,
         **flags: Any) -> None:
    """Continue a prompt with a trained model."""
    found, problems = checkpoint.find(run)
    for problem in problems:
        click.echo(f"warning: {problem}; an earlier one is taken", err=True)
    tokenizer = tokenizer_of(found)
    chosen = resolve(flags=flags).train
    where = open_backend(chosen.backend, chosen.device, lambda text: click.echo(text, err=True))
    model = GPT(GPTConfig.from_dict(found.state["model"]), device=where)
    model.load_state_dict(found.model)
    chat = is_chat(found) and not raw
    text = chat_prompt(prompt) if chat else prompt
    if (count := len(tokenizer.encode(text))) > (size := model.config.block_size):
        click.echo(f"warning: the prompt has {count:,} tokens, and the model sees its last {size:,}", err=True)
    try:
        said = answer(Sampler(model.eval()), tokenizer, [text], tokens, temperature, top_k, seed, chat)[0]
    except FloatingPointError as error:
        raise UserError(f"{found.path}: {error}: its weights are too large; give an earlier checkpoint, or train with "
                        f"a lower --lr") from None
    shown = f"{text}{' ' if chat else ''}{said}"
    click.echo(printable(shown) if sys.stdout.isatty() else shown, color=True)  # else escape sequences are left out


if __name__ == "__main__":
    main()
