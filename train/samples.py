"""The questions that a model is asked, and its answers."""

from __future__ import annotations

from collections.abc import Sequence

from helios.model import Sampler
from helios.train.tokenizer import ASSISTANT, END, USER, Tokenizer

PROMPTS = ("Who are you?", "Socrates, what is virtue?", "Tell me about your childhood.", "What did you do in the war?",
           "Give me a word on wisdom.")
SAMPLE_TOKENS, TEMPERATURE, TOP_K = 80, 0.8, 40


def chat_prompt(text: str) -> str:
    """Return `<|user|> text <|assistant|>`, or the text where it has such marks already."""
    return text if USER in text or ASSISTANT in text else f"{USER} {text.strip()} {ASSISTANT}"


def answer(sampler: Sampler, tokenizer: Tokenizer, prompts: Sequence[str], tokens: int, temperature: float,
           top_k: int | None, seed: int) -> list[str]:
    """Return what the model says after each prompt, up to the user's next turn or the end of the conversation."""
    rows = sampler([tokenizer.encode(p).tolist() for p in prompts], tokens, temperature, top_k, seed,
                   stop={tokenizer.id(END), tokenizer.id(USER)})
    return [tokenizer.decode(row).removesuffix(END).removesuffix(USER).strip() for row in rows]
