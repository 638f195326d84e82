"""Fits the injection classifier and writes relay/gateway/inspection/injection.model, and what it is worth.

    python scripts/train_injection.py [--data ../shared/data/injection] [--out FILE] [--report FILE] [--card PAGE]
        [--vectors FILE]

Everything is judged on sources that took no part in a fit: attacks of each source, with harmless texts of some sources,
are held out in turn (FOLDS). Thresholds and calibration come from those scores alone. Training adds to the data made-up
attacks and harmless neighbours (injection_grammar.py), and attacks put into the midst of harmless texts. The same data,
numpy and machine give the same file to the byte. `--vectors` keeps the tokens' vectors, which take longest to reckon.
"""

import argparse
import json
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else the order of a sum depends on the machine
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import injection_grammar  # noqa: E402
import injection_measures as measures  # noqa: E402
import token_vectors  # noqa: E402
from injection_networks import SPELLINGS, STRIDE, WINDOW, Filters, Floats, Ints, Linear  # noqa: E402

from relay.gateway.inspection.model import FILE, Model, packed  # noqa: E402
from relay.gateway.inspection.normalise import cleaned  # noqa: E402
from relay.gateway.inspection.tokens import Vocabulary, words_of  # noqa: E402

SEED = 8
DIMENSIONS = 64
WIDTHS = ((1, 24), (3, 40), (5, 24))
HIDDEN = 24
EPOCHS = 6
TWINS = 2  # networks of filters, from other beginnings; the mean of both counts. In folds it is one, which is quicker
PENALTY = 1.0
MADE = 3000  # of attacks, and of harmless texts
EMBEDDED = 0.15  # share of texts that are copies put into others
SOURCE_MAX = 600  # a source weighs like the root of its size, up to this
LINEAR_SHARE = 1.5  # what the linear judge's logit counts for one of the filters'
FLAGGED, BLOCKED = 0.02, 0.0075  # false alarms among harmless texts of sources held out
FOLDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # attacks and harmless texts that are held out together
    "gandalf": (("Lakera/gandalf_ignore_instructions",), ("clinc/oos-eval", "GPTeacher/roleplay", "gsm8k-train")),
    "hackaprompt": (("hackaprompt",), ("BIG-Bench-Hard", "jackhhao/jailbreak-classification", "banking77")),
    "verazuo": (("verazuo/jailbreak_llms",), ("awesome-chatgpt-prompts", "T0/duorc", "T0/wiki_hop", "oasst")),
    "composed": (
        ("spikee/composed-indirect",), ("spikee+GPTeacher/benign-docs", "GPTeacher/toolformer", "self-instruct/seed"),
    ),
    "small": (
        ("GPTFuzz", "Giskard/prompt-injections", "mik0w/pallms", "spikee/standalone", "whylabs/langkit"),
        ("GPTeacher/codegen", "jackhhao/jailbreak-classification", "oasst", "GPTeacher/roleplay"),
    ),
}


@dataclass(frozen=True)
class Texts:
    texts: list[str]
    tokens: list[Ints]
    labels: NDArray[np.int64]
    sources: NDArray[np.str_]

    def where(self, mask: NDArray[np.bool_]) -> "Texts":
        kept = np.flatnonzero(mask)
        return Texts(
            [self.texts[i] for i in kept], [self.tokens[i] for i in kept], self.labels[kept], self.sources[kept]
        )


@dataclass
class Judges:
    linear: Linear
    filters: list[Filters]

    def windows(self, tokens: Sequence[Ints]) -> list[Floats]:
        tables = self.linear.tables()
        return [
            LINEAR_SHARE * self.linear.windows(text, tables) + np.mean(logits, 0)
            for text, *logits in zip(tokens, *(one.windows(tokens) for one in self.filters), strict=True)
        ]

    def logits(self, tokens: Sequence[Ints]) -> Floats:
        return np.array([logits.max() for logits in self.windows(tokens)], np.float32)


def read(path: Path, vocabulary: Vocabulary) -> Texts:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return made_of([(row["text"], row["label"], row["source"]) for row in rows], vocabulary)


def made_of(rows: Sequence[tuple[str, int, str]], vocabulary: Vocabulary) -> Texts:
    tokens = [np.array(vocabulary.numbers(words_of(cleaned(text))) or [1], np.int64) for text, _, _ in rows]
    return Texts(
        [row[0] for row in rows], tokens, np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    )


def embedded(texts: Texts, dice: np.random.Generator) -> tuple[list[Ints], list[int]]:
    """Attacks, and as many harmless texts, each in the midst of another harmless one."""
    harmless = [text for text, label in zip(texts.tokens, texts.labels, strict=True) if not label and len(text) > 12]
    attacks = [text for text, label in zip(texts.tokens, texts.labels, strict=True) if label and len(text) < 150]
    found, count = [], int(EMBEDDED * len(texts.tokens))
    for number in range(2 * count):
        inner = attacks[dice.integers(len(attacks))] if number < count else harmless[dice.integers(len(harmless))][:100]
        outer = harmless[dice.integers(len(harmless))]
        cut, rest = int(dice.integers(0, min(len(outer), 60) + 1)), int(dice.integers(0, 40))
        found.append(np.concatenate([outer[:cut], inner, outer[cut : cut + rest]]))
    return found, [1] * count + [0] * count


def weighed(labels: NDArray[np.int64], sources: NDArray[np.str_]) -> Floats:
    """Half for attacks, half for the rest; within, each source by the root of its size."""
    weights = np.zeros(len(labels))
    for label in (0, 1):
        for source in np.unique(sources[labels == label]):
            of = (sources == source) & (labels == label)
            weights[of] = np.sqrt(min(of.sum(), SOURCE_MAX)) / of.sum()
        weights[labels == label] /= weights[labels == label].sum()
    return (weights * len(labels) / 2).astype(np.float32)


def fit(texts: Texts, table: Floats, spelling: list[Ints], twins: int) -> Judges:
    dice = np.random.default_rng(SEED)
    more, more_labels = embedded(texts, dice)
    tokens, labels = texts.tokens + more, np.concatenate([texts.labels, more_labels])
    sources = np.concatenate([texts.sources, [f"embedded/{label}" for label in more_labels]])
    weights, targets = weighed(labels, sources), labels.astype(np.float32)
    anywhere = np.array([int(dice.integers(0, max(1, len(text) - WINDOW + 1))) for text in tokens])
    starts = anywhere
    for steps in (60, 120):  # where in an attack the attack is, the first fit tells the second
        linear = Linear(spelling, PENALTY, steps)
        linear.fit([text[at : at + WINDOW] for text, at in zip(tokens, starts, strict=True)], targets, weights)
        tables = linear.tables()
        worst = np.array([int(linear.windows(text, tables).argmax()) * STRIDE for text in tokens])
        starts = np.where(labels == 1, worst, anywhere)
    starts = np.where(labels == 1, worst, -1)
    filters = [fit_filters(tokens, targets, weights, starts, table, SEED + number) for number in range(twins)]
    return Judges(linear, filters)


def fit_filters(
    tokens: list[Ints], targets: Floats, weights: Floats, starts: Ints, table: Floats, seed: int
) -> Filters:
    dice = np.random.default_rng(seed)
    filters = Filters(table, WIDTHS, HIDDEN, seed, decay=0.1, dropout=0.3, blanked=0.1, rate=2e-3)
    for epoch in range(EPOCHS):
        if epoch in (2, 4):
            worst = np.array([int(logits.argmax()) * STRIDE for logits in filters.windows(tokens)])
            starts = np.where(targets == 1, worst, -1)
        for chosen, batch in filters.batches(tokens, starts, dice):
            filters.learn(batch, targets[chosen], weights[chosen], 1.0 if epoch < EPOCHS - 2 else 0.3)
    return filters


def vectors(keep: Path | None) -> tuple[list[str], Floats]:
    """Tokens in ASCII, the first two for padding and the unknown; their vectors, in DIMENSIONS, rounded to bytes."""
    if keep is not None and keep.is_file():
        words, whole = token_vectors.vocabulary(token_vectors.folder()), np.load(keep)
    else:
        words, whole = token_vectors.token_vectors()
        if keep is not None:
            np.save(keep, whole)
    kept = [n for n, word in enumerate(words) if word.isascii() and not (word.startswith("[") and len(word) > 2)]
    table = whole[kept] / np.linalg.norm(whole[kept], axis=1, keepdims=True)
    table = table - table.mean(0)
    axes = np.linalg.svd(table.T @ table)[0][:, :DIMENSIONS]
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(DIMENSIONS)])
    table = table @ axes
    table *= 0.5 / np.sqrt((table**2).mean())
    return ["[PAD]", "[UNK]", *(words[n] for n in kept)], np.concatenate([np.zeros((2, DIMENSIONS), np.float32), table])


def rounded(values: Floats, bits: int = 8) -> tuple[NDArray[Any], np.float32]:
    """Whole numbers and what one of them is worth."""
    most = (1 << (bits - 1)) - 1
    unit = np.float32(max(float(np.abs(values).max()), 1e-9) / most)
    return np.rint(values / unit).astype(np.int8 if bits == 8 else np.int16), unit


def spelled(tokens: Sequence[str]) -> list[Ints]:
    """Numbers of runs of three and four letters of each token, with its ends."""
    found = []
    for token in tokens:
        text = token[2:] + ">" if token.startswith("##") else f"<{token}>"
        runs = {text[at : at + size] for size in (3, 4) for at in range(len(text) - size + 1)}
        found.append(np.array(sorted({zlib.crc32(run.encode()) % SPELLINGS for run in runs}), np.int64))
    found[0] = found[1] = np.zeros(0, np.int64)
    return found


def file_of(
    judges: Judges, tokens: Sequence[str], table: NDArray[Any], unit: Floats, settings: dict[str, Any]
) -> bytes:
    (single, a), (norm, b), (pair, c), (pair_norm, d) = (
        rounded(part, bits) for part, bits in zip(judges.linear.tables(), (16, 16, 8, 8), strict=True)
    )
    parts, widths = joined([one.parts for one in judges.filters])
    return packed(tokens, {
        "table": table, "table_scale": unit, "single": single, "single_norm": norm, "pair": pair,
        "pair_norm": pair_norm, "linear_scale": np.array([a, b, c, d, judges.linear.bias], "<f4"),
        **{name: part.astype("<f4") for name, part in parts.items()},
    }, settings | {"widths": widths, "linear": LINEAR_SHARE})


def joined(twins: Sequence[dict[str, Floats]]) -> tuple[dict[str, Floats], list[tuple[int, int]]]:
    """As one network, whose answer is the mean of theirs: each has filters and hidden places of its own."""
    count = sum(filters for _, filters in WIDTHS)
    order, filters = [], []
    for number, (width, of) in enumerate(WIDTHS):
        before = sum(filters for _, filters in WIDTHS[:number])
        for twin in range(len(twins)):
            order += [twin * count + before + at for at in range(of)]
        steps = [parts[f"filters{number}"].reshape(DIMENSIONS, width, of) for parts in twins]
        filters.append(np.concatenate(steps, 2).reshape(DIMENSIONS, -1))
    strongest = np.zeros((count * len(twins), HIDDEN * len(twins)), np.float32)
    for twin, parts in enumerate(twins):
        strongest[twin * count : (twin + 1) * count, twin * HIDDEN : (twin + 1) * HIDDEN] = parts["hidden"][:count]
    biases = np.concatenate([parts[f"bias{number}"] for parts in twins for number in range(len(WIDTHS))])
    return {
        "filters": np.concatenate(filters, 1), "bias": biases[order],
        "hidden": np.concatenate([strongest[order], np.concatenate([parts["hidden"][count:] for parts in twins], 1)]),
        "hidden_bias": np.concatenate([parts["hidden_bias"] for parts in twins]),
        "out": np.concatenate([parts["out"] for parts in twins]) / len(twins),
        "out_bias": np.mean([parts["out_bias"] for parts in twins], 0),
    }, [(width, of * len(twins)) for width, of in WIDTHS]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/injection")
    options.add_argument("--out", type=Path, default=ROOT / "relay/gateway/inspection" / FILE)
    options.add_argument("--report", type=Path)
    options.add_argument("--card", type=Path, help="a page whose part between the marks is written anew")
    options.add_argument("--vectors", type=Path)
    asked = options.parse_args()
    names, whole = vectors(asked.vectors)
    unit = (np.abs(whole).max(0) / 127).astype(np.float32)
    rounded_table = np.rint(whole / unit).astype(np.int8)
    table, spelling, vocabulary = rounded_table * unit, spelled(names), Vocabulary(names)
    rows = [
        *((text, 1, "made/attack") for text in injection_grammar.made(MADE, "attack", SEED)),
        *((text, 0, "made/harmless") for text in injection_grammar.made(MADE, "harmless", SEED + 1)),
    ]
    given, made = read(asked.data / "train.jsonl", vocabulary), made_of(rows, vocabulary)
    train = Texts(
        given.texts + made.texts, given.tokens + made.tokens, np.concatenate([given.labels, made.labels]),
        np.concatenate([given.sources, made.sources]),
    )
    report: dict[str, Any] = {"folds": {}}
    scores: list[tuple[str, int, float]] = []
    for name, (attacks, harmless) in FOLDS.items():
        out = np.isin(train.sources, attacks + harmless)
        held = train.where(out)
        logits = fit(train.where(~out), table, spelling, 1).logits(held.tokens)
        report["folds"][name] = measures.separation(held.labels, logits)
        print(name, report["folds"][name], file=sys.stderr, flush=True)
        scores += zip(held.sources.tolist(), held.labels.tolist(), logits.tolist(), strict=True)
    settings = measures.calibrated(scores, flagged=FLAGGED, blocked=BLOCKED)
    data = file_of(fit(train, table, spelling, TWINS), names, rounded_table, unit, settings)
    asked.out.write_bytes(data)
    report |= measures.report(Model(data), asked.data)
    text = json.dumps(report, indent=1)
    if asked.card is not None:
        measures.write_card(asked.card, report, data)
    if asked.report is not None:
        asked.report.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
