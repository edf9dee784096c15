"""helios-data: make, convert, tokenize and measure training text."""

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import click

from helios.cli.common import Given, HeliosGroup, whole
from helios.errors import UserError
from helios.files import write_atomic
from helios.train import data, synth, texts
from helios.train.formats import FORMATS
from helios.train.tokenizer import ASSISTANT, USER, Tokenizer


@click.group(cls=HeliosGroup, no_args_is_help=False)
def main() -> None:
    """Make, convert, tokenize and measure training text."""


@main.command("synth")
@click.option("--size", default="2MB", show_default=True, help="Size of the text, such as 300KB, 2MB or 1GiB.")
@click.option("--seed", type=whole(0), metavar="N", default=0, show_default=True, help="Seed of the text.")
@click.option("--out", type=Given(), default="-", show_default=True, help="File to write, or - for standard output.")
def synth_(size: str, seed: int, out: str) -> None:
    """Write the embedded corpus: conversations with figures of history, one a line."""
    count, folder = synth.parse_size(size), Path(os.path.realpath(out)).parent
    if out != "-" and folder.is_dir() and count > (free := shutil.disk_usage(folder).free):
        raise UserError(f"--size {size}: {free:,} bytes are free in {folder}; ask for less, or choose another place")
    _write(synth.lines(count, seed), out)


@main.command()
@click.argument("source", metavar="IN")
@click.option("--out", default="-", show_default=True, help="File to write, or - for standard output.")
@click.option("--format", type=click.Choice(FORMATS), default="auto", show_default=True,
              help="Form of IN, as in helios-train.")
def convert(source: str, out: str, format: str) -> None:
    """Write JSONL, ShareGPT or ChatML as helios-train reads it, <|user|> … <|assistant|> … <|end_of_text|>."""
    _check_other(source, out)
    _write([texts.read(source, format)], out)


def _check_other(source: str, out: str | Path) -> None:
    if os.path.exists(source) and os.path.realpath(source) == os.path.realpath(out):
        raise UserError(f"--out {out} is the text that is read; give another file")


def _write(parts: Iterable[str], out: str) -> None:
    """Write a text to a file, which is then whole or not there, or to standard output, where `out` is "-"."""
    if out == "-":
        for part in parts:
            sys.stdout.buffer.write(part.encode())
        return
    size = 0

    def write(file: IO[bytes]) -> None:
        nonlocal size
        for part in parts:
            size += file.write(part.encode())

    try:
        write_atomic(out, write)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; choose another place") from error
    click.echo(f"{out}: {size:,} bytes", err=True)


@main.command()
@click.option("--data", "source", required=True,
              help="A file or a pattern of files, as in helios-train, or synth:SIZE[:SEED], the embedded corpus.")
@click.option("--vocab-size", type=whole(1), metavar="N", default=4000, show_default=True,
              help="Tokens, from 259 (256 bytes and 3 marks) to 65,535.")
@click.option("--out", type=Given(Path), default=Path("tokenizer.json"), show_default=True, help="File to write.")
def tokenize(source: str, vocab_size: int, out: Path) -> None:
    """Train a tokenizer on a text, and say how many bytes of it a token has."""
    _check_other(source, out)
    text = texts.read(source)
    tokenizer = Tokenizer.train(text, vocab_size)
    tokenizer.save(out)
    ids, size = tokenizer.encode(text), len(text.encode())
    click.echo(f"{out}: {tokenizer.vocab_size:,} tokens in the vocabulary\n"
               f"{source}: {len(ids):,} tokens, {size / len(ids):.2f} bytes per token")


@main.command()
@click.argument("source", metavar="FILE")
def stats(source: str) -> None:
    """Count documents, words and more in a text. FILE may be synth:SIZE[:SEED]."""
    text = texts.read(source)
    docs = data.documents(text)
    words = text.split()
    for name, count in {
        "bytes": len(text.encode()), "characters": len(text), "documents": len(docs),
        "distinct documents": len({d.strip() for d in docs}), "questions": text.count(USER),
        "answers": text.count(ASSISTANT), "words": len(words), "distinct words": len(set(words)),
        "longest document": max(len(d.encode()) for d in docs),
    }.items():
        click.echo(f"{name:18} {count:>14,}")


if __name__ == "__main__":
    main()
