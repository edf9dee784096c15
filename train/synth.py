"""The embedded corpus: conversations with figures of history, made by a small grammar from the facts in train/corpus/.

An answer follows from who is asked and about what, so a small GPT can learn to answer in voice and with the right
facts; some answers repeat the visitor's name or need the difference of two years.
"""

import random
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeVar

from helios.errors import UserError
from helios.model.settings import shown

T = TypeVar("T")
Pick = Callable[[Sequence[T]], T]


class Figure(NamedTuple):
    """A figure of history, with true facts told in the first person. Years before our era are negative."""

    name: str
    call: str  # how a visitor addresses the figure
    calling: str
    birth: int
    born: str
    death: int
    died: str
    timeline: dict[int, str]  # an entry completes "In 1843 I …"
    topics: dict[str, list[str]]  # a topic completes "Tell me about …", and its facts are whole sentences
    sayings: list[str]


def _tables(folder: str) -> list[dict[str, Any]]:
    """Return the TOML files of a folder below train/, in the order of their names."""
    found = sorted(resources.files("helios.train").joinpath(folder).iterdir(), key=lambda file: file.name)
    return [tomllib.loads(file.read_text("utf-8")) for file in found if file.name.endswith(".toml")]


FIGURES = tuple(Figure(**{**figure, "timeline": {int(year): what for year, what in figure["timeline"].items()}})
                for figure in _tables("corpus/figures"))
(WORDS,) = _tables("corpus")
CONCEPTS, PROFESSIONS, GIFTS, CITIES, NAMES = (
    WORDS[name] for name in ("concepts", "professions", "gifts", "cities", "names"))

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


LARGEST = 10**12  # bytes


def parse_size(size: str) -> int:
    """Return how many bytes "300KB", "2MB", "1.5 GiB" or a number means. Raises UserError for anything else."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", size.strip().lower(), re.ASCII)
    if not parts or parts[2] not in UNITS or (count := float(parts[1]) * UNITS[parts[2]]) < 1:
        raise UserError(f"{shown(size)} is no size; write a number with B, KB, MB, GB, KiB, MiB or GiB, such as 2MB")
    if count > LARGEST:
        raise UserError(f"{shown(size)} is too large; the largest is {LARGEST // UNITS['gb']:,}GB")
    return int(count)


def corpus(size_bytes: int, seed: int = 0) -> str:
    """Return about `size_bytes` of UTF-8 text, one conversation a line: as many whole ones as fit, at least one.
    The same seed gives the same text on every machine, and a shorter corpus is a prefix of a longer one."""
    return "".join(lines(size_bytes, seed))


def lines(size_bytes: int, seed: int = 0) -> Iterator[str]:
    """Yield the lines of `corpus`."""
    size = 0
    for line in _conversations(seed):
        before, size = size, size + len(line.encode())
        if before and size > size_bytes:
            return
        yield line


def _conversations(seed: int) -> Iterator[str]:
    # Of the random module only random() promises the same sequence in every Python version.
    rng = random.Random(f"helios {seed}")
    pick: Pick = lambda options: options[int(rng.random() * len(options))]
    while True:
        figure, visitor = pick(FIGURES), pick(NAMES)
        exchanges: dict[str, str] = {}
        count = pick((1, 2, 2, 3, 3, 4))
        while len(exchanges) < count:
            question, answer = pick(EXCHANGES)(figure, visitor, pick)
            if answer in exchanges.values():
                continue
            if not exchanges:
                question = pick(GREETINGS).format(figure=figure) + question
            elif len(exchanges) == 3:  # a long visit ends with a farewell
                question, answer = _farewell(figure, visitor, pick)
            exchanges[question] = answer
        yield "".join(f"<|user|> {q} <|assistant|> {a} " for q, a in exchanges.items()) + "<|end_of_text|>\n"


# Each function from here to _farewell takes (figure, visitor's name, pick) and returns (question, answer).

def _topic(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    topic = pick(tuple(figure.topics))
    question = pick(("Tell me about {}.", "What can you tell me about {}?", "I would like to hear about {}.",
                     "What should I know about {}?", "Please speak about {}.")).format(topic)
    opening = pick(("", "", "", "Gladly. ", "With pleasure. ", "You do well to ask. ",
                    "Sit down, and I shall tell you. "))
    return question, opening + " ".join(figure.topics[topic]) + _ending(figure, pick)


def _year(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    year = pick(tuple(figure.timeline))
    question = pick(("What did you do in {}?", "What happened to you in {}?", "What do you remember of the year {}?"))
    answer = f"In {_era(year)} I {figure.timeline[year]}."
    age = pick(("", f" I was about {year - figure.birth} years old."))
    return question.format(_era(year)), answer + age


def _born(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    question = pick(("When and where were you born?", "Where do you come from?", "Tell me of your birth."))
    return question, f"I was born {figure.born}." + _ending(figure, pick)


def _died(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    question = pick(("How did your life end?", "When and where did you die?", "How long did you live?"))
    return question, f"I died {figure.died}. I had lived about {figure.death - figure.birth} years."


def _who(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    question = pick(("Who are you?", "Please tell me who you are.", "What are you known for?"))
    return question, f"I am {figure.name}, {figure.calling}." + _ending(figure, pick)


def _concept(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    concept = pick(tuple(CONCEPTS))
    question = pick(("What is {}?", "What do you think of {}?", "Give me a word on {}.", "How do you understand {}?"))
    return question.format(concept), CONCEPTS[concept] + _ending(figure, pick)


def _profession(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    profession, year = pick(tuple(PROFESSIONS)), pick(tuple(figure.timeline))
    does, virtue = PROFESSIONS[profession]
    question = pick(("I am {} in {}. What have you to say to someone like me?",
                     "I work as {} in {}. What do we share?"))
    return (question.format(profession, pick(CITIES)),
            f"You {does}, and in {_era(year)} I {figure.timeline[year]}. Both of us have needed {virtue}.")


def _arrival(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    city = pick(CITIES)
    question = pick(("My name is {}, and I live in {}.", "I am {}, a visitor from {}.")).format(visitor, city)
    return question, pick(("Welcome, {}. ", "Be welcome, {}. ", "I greet you, {}. ")).format(visitor) + pick((
        f"Is it quiet in {city} these days?", f"You have come a long way from {city}.", f"What do they read in {city}?",
        f"Tell the people of {city} that I wish them well.")) + _ending(figure, pick)


def _gift(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    gift = pick(tuple(GIFTS))
    return f"I am {visitor}, and I have brought you {gift}.", f"Thank you, {visitor}. {GIFTS[gift]}"


def _between(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    year = 1930 + pick(range(80))
    return (f"I was born in {year}. How many years lie between us?",
            f"About {_years(figure.birth, year):,} years, for I was born {figure.born}.")


def _other(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    other = pick([f for f in FIGURES if f is not figure])
    question = pick(("What do you know of {}?", "Have you heard of {}?")).format(other.name)
    if other.birth >= figure.death:
        return question, f"{other.name} came after my time, but I am told that the name belongs to {other.calling}."
    return question, f"{other.name} was {other.calling}, born {other.born}."


def _first(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    other = pick([f for f in FIGURES if f is not figure])
    question, years = f"Were you born before {other.name}?", _years(figure.birth, other.birth)
    if not years:
        return question, f"Neither before nor after: I was born {figure.born}, and {other.name} in the same year."
    if figure.birth < other.birth:
        return question, f"Yes. I was born {figure.born}, and {other.name} came about {years:,} years later."
    return question, f"No. {other.name} was born {other.born}, and I came about {years:,} years later."


def _farewell(figure: Figure, visitor: str, pick: Pick) -> tuple[str, str]:
    question = pick(("Thank you, {}. I must go now.", "I have to leave you, {}.", "It grows late, {}. Farewell."))
    return (question.format(figure.call), pick(("Go well, {}. ", "Farewell, {}. ", "Come again, {}. ")).format(
        pick((visitor, "my friend"))) + pick(figure.sayings))


EXCHANGES = (_topic,) * 8 + (_year,) * 4 + (_concept,) * 3 + (_profession,) * 3 + (
    _arrival, _arrival, _gift, _gift, _born, _died, _who, _between, _other, _first)

GREETINGS = ("Good morning, {figure.call}. ", "Good evening, {figure.call}. ", "{figure.call}, may I disturb you? ",
             "Greetings, {figure.name}. ", "I have come to speak with {figure.name}. ",
             "{figure.name}, I have a question for you. ")


def _ending(figure: Figure, pick: Pick) -> str:
    return pick(("", "", " " + pick(figure.sayings)))


def _era(year: int) -> str:
    return f"{-year} BC" if year < 0 else str(year)


def _years(a: int, b: int) -> int:
    return abs(a - b) - (min(a, b) < 0 < max(a, b))  # there was no year 0
