"""What --data may name, and how what is no text is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest

from helios.errors import UserError
from helios.train.texts import Source, located, read, read_text, sources
from helios.train.tokenizer import END


def test_every_byte_is_kept_but_a_byte_order_mark(tmp_path: Path) -> None:
    for content in ("é\r\n a\n", "\ufeffé\r\n a\n"):
        (tmp_path / "a.txt").write_bytes(content.encode())
        assert read_text(tmp_path / "a.txt") == "é\r\n a\n"


@pytest.mark.parametrize("content, message", [
    (None, "cannot read"), (b"", "is empty"), (b" \n", "is empty"), (b"\xef\xbb\xbf", "is empty"),
    (b"abc\xff\xfe", "0xff at offset 3"), ("é".encode() + b"\xc3", "0xc3 at offset 2"),
    (gzip.compress(b"text", mtime=0), "compressed by gzip"), (bz2.compress(b"text"), "compressed by bzip2"),
    (lzma.compress(b"text"), "compressed by xz"), ("text".encode("utf-16"), "is UTF-16"),
    (b"PAR1\x15\x04\x15\xff", "Parquet")])
def test_what_is_no_text(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "a.txt"))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "is a pipe"), (Path("/dev/zero"), "is a device"), (tmp_path, "a directory")):
        for function in (read, located):
            with pytest.raises(UserError, match=f"cannot read .*{kind}"):
                function(str(path))
    with pytest.raises(UserError, match="cannot read"):
        read("a\0b")


@pytest.mark.parametrize("source", ["synth:", "synth:2XB", "synth:2KB:x", "synth:2KB:-1", "synth:2KB:1:2",
                                    "synth:900GB", "nothing.txt", "nothing*.txt"])
def test_bad_sources(source: str) -> None:
    with pytest.raises(UserError):
        read(source)


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=2.txt").write_text("x")
    (tmp_path / "b.txt=3").write_text("x")
    assert sources("a=2.txt") == [Source("a=2.txt")]
    assert sources(("a=2.txt=0.5", "b.txt=3", "c.txt=2", "synth:2MB=4")) == [
        Source("a=2.txt", 0.5), Source("b.txt=3"), Source("c.txt", 2.0), Source("synth:2MB", 4.0)]
    for entry in ("c.txt=0", "c.txt=-1", "c.txt=nan", "c.txt=inf", "=2"):
        with pytest.raises(UserError, match="weight greater than 0"):
            sources(entry)
    with pytest.raises(UserError, match=r"names c\.txt twice"):
        sources(("c.txt", "c.txt=2"))


def test_entries_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "with [brackets]"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("a=2.txt", "b.txt"):
        (folder / name).write_text(name)
    entries = [located(entry) for entry in ("a=2.txt", "b.txt=3", "*.txt=2", "synth:2MB", "later.txt=2")]
    monkeypatch.chdir("/")
    assert entries[:2] == [f"{folder}/a=2.txt", f"{folder}/b.txt=3"] and entries[3:] == ["synth:2MB",
                                                                                        f"{folder}/later.txt=2"]
    (pattern,) = sources(entries[2])
    assert pattern.weight == 2 and read(pattern.name) == f"a=2.txt{END}\nb.txt{END}\n"
    assert [located(entry) for entry in entries] == entries


def test_files_of_a_pattern_are_documents_in_the_order_of_names(tmp_path: Path) -> None:
    for name, content in (("b.txt", f"two {END} three"), ("a.txt", f"one {END}\n"), ("empty.txt", ""),
                          ("deep/c.jsonl", '{"text": "four"}\n')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert read(f"{tmp_path}/*.txt") == f"one {END}\ntwo {END} three{END}\n"
    assert read(f"{tmp_path}/**/*.*").endswith(f"four{END}\n")
