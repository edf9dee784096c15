"""What a model is asked or begins with, and what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from helios.model import Sampler
from helios.train.tokenizer import ASSISTANT, END, USER, Tokenizer

PROMPTS = ("Who are you?", "Socrates, what is virtue?", "Tell me about your childhood.", "What did you do in the war?",
           "Give me a word on wisdom.")
SAMPLE_TOKENS, TEMPERATURE, TOP_K = 80, 0.8, 40
PARTS = (re.escape(END), r"\n\s*\n", r"\n")  # what divides a text: documents, paragraphs, lines
FIRST_WORDS = re.compile(r"(?:\S+\s+){0,4}\S+")
LONGEST = 60  # characters of a prompt, for some texts have no spaces
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # characters that a terminal may obey


def chat_prompt(text: str) -> str:
    """Return `<|user|> text <|assistant|>`, or the text where it has such marks already."""
    return text if USER in text or ASSISTANT in text else f"{USER} {text.strip()} {ASSISTANT}"


CHAT = tuple(map(chat_prompt, PROMPTS))


def first_words(text: str) -> tuple[str, ...]:
    """Return how some documents of a text begin, evenly chosen: len(PROMPTS) of them; of a text with too few
    documents, how paragraphs or lines begin."""
    count, parts = len(PROMPTS), [text]
    for mark in PARTS:
        parts = [part.strip() for part in re.split(mark, text) if part.strip()]
        if len(parts) >= count:
            break
    found = (FIRST_WORDS.match(parts[i * len(parts) // count]) for i in range(min(count, len(parts))))
    return tuple(match[0][:LONGEST] for match in found if match)


def answer(sampler: Sampler, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int, temperature: float,
           top_k: int | None, seed: int, chat: bool = True) -> list[str]:
    """Return what the model says after each prompt, up to the end of the document.

    chat: whether it ends at the user's next turn, too, and without the white space around it. An empty prompt begins a
    document.
    """
    stop = {tokenizer.id(END)} | ({tokenizer.id(USER)} if chat else set())
    rows = sampler([tokenizer.encode(p or END).tolist() for p in prompts], tokens, temperature, top_k, seed, stop=stop)
    texts = [tokenizer.decode(row).removesuffix(END) for row in rows]
    return [text.removesuffix(USER).strip() for text in texts] if chat else texts


def taken(sampler: Sampler, tokenizer: Tokenizer, prompts: Sequence[str], chat: bool, seed: int
          ) -> list[dict[str, Any]] | str:
    """Return how the model continues prompts, as the records have it; why it cannot, where it cannot. That depends on
    weights and seed alone."""
    try:
        texts = answer(sampler, tokenizer, prompts, SAMPLE_TOKENS, TEMPERATURE, TOP_K, seed, chat)
    except FloatingPointError as error:
        return str(error)
    return [{"prompt": prompt, "text": text, "temperature": TEMPERATURE, "top_k": TOP_K, "seed": seed}
            for prompt, text in zip(prompts, texts, strict=True)]


def shown(sample: Mapping[str, Any], chat: bool) -> str:
    """Return a sample on one line of a terminal."""
    return printable(" ".join(f"{sample['prompt']}{' ' if chat else ''}{sample['text']}".split()))


def printable(text: str) -> str:
    """Return the text with control characters written as \\x1b, so that a terminal shows and does not obey them."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
