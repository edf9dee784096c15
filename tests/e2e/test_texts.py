"""What people bring trains and is sampled with one command each: a plain text, ShareGPT as JSONL, ChatML."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PLAY = "".join(f"{name}:\nSpeak, good {noun}, and let the {noun} of night number {i}\nbe heard.\n\n"
               for i in range(60) for name, noun in (("ROMEO", "lord"), ("JULIET", "lady")))
TALKS = [(f"What is {i} and {i}?", f"It is {2 * i}.") for i in range(300)]
TEXTS = {
    "play.txt": PLAY,
    "sharegpt.jsonl": "".join(json.dumps({"id": str(i), "conversations": [
        {"from": "human", "value": question}, {"from": "gpt", "value": answer}]}) + "\n"
        for i, (question, answer) in enumerate(TALKS)),
    "chatml.txt": "".join(f"<|im_start|>system\nYou add.<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
                          f"<|im_start|>assistant\n{answer}<|im_end|>\n" for question, answer in TALKS)}


@pytest.mark.parametrize("name", TEXTS)
def test_one_command_each(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(TEXTS[name])
    train = ["train", "--preset", "tiny", "--steps", "6", "--data", str(tmp_path / name), "--run-dir",
             str(tmp_path / "run")]
    chat = name != "play.txt"
    prompt = "What is 3 and 4?" if chat else "ROMEO:"
    for command in (train, ["sample", "--run", str(tmp_path / "run"), "--prompt", prompt, "--tokens", "5"]):
        done = subprocess.run([sys.executable, "-m", f"helios.cli.{command[0]}", *command[1:], "--backend", "cpu_ref"],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"<|user|> {prompt} <|assistant|> " if chat else prompt)
    samples = [json.loads(line)["prompt"] for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 5 and all(("<|user|>" in s) if chat else (s in PLAY) for s in samples)
