#!/usr/bin/env python3
"""`caravan rouge` against Python's rouge-score: the same bits, pair by pair and aggregated.

usage: rouge_reference_test.py PROGRAM SOURCE_DIR [PAIRS.jsonl...]

Runs in the environment that tools/install_dependencies.sh makes at SOURCE_DIR/.venv, and fails when
it is not there. PAIRS.jsonl: further files with "prediction" and "reference" in each line.
"""

import json
import os
import pathlib
import random
import sys
import tempfile

from cli_tools import run, scaled

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
MEASURES = ("precision", "recall", "fmeasure")
NUM_PAIRS = scaled(10_000)

ROOTS = """abil adjust agree allow analog argu bless bowdler cease commun conflat control cri decis
depend di electr enjoy fail feed fizz fli form geo happ hesit hop hous infer irrit lov motor news
oper plaster poni predict radic rat real relat sens sky spi succeed tann theo tri troubl valu
vietnam yyy gyroscop 2nd mp3 x9""".split()
SUFFIXES = """s es ies ss sses ed ied eed ing ings y ly ally alli ational tional enci anci izer bli
abli entli eli ousli ization ation ator alism iveness fulness ousness aliti iviti biliti fulli logi
icate ative alize iciti ical ful ness al ance ence er ic able ible ant ement ment ent sion tion ion
ou ism ate iti ous ive ize e ll l at bl iz izing ating bling ied yed eyed ying""".split()
# Letters whose lower form is ASCII, letters whose lower form is not, separators that \\s knows, and
# what is none of these.
ODD = "İKıſßÉéÅÅΣςⅧA١２ﬁ\u0307\u00a0\u0085\u2028\u001c\u0000\u200b—’“”🙂漢字ǅ\t\r-_'./"


def enter_environment(root):
    """Starts this script again in SOURCE_DIR/.venv, unless it runs there already."""
    environment = (pathlib.Path(root) / ".venv").resolve()
    if pathlib.Path(sys.prefix).resolve() == environment:
        return
    python = environment / "bin" / "python"
    if not python.exists():
        sys.exit(
            f"{python} is not there: run `tools/install_dependencies.sh test`, which makes it with "
            "rouge-score in it"
        )
    os.execv(python, [str(python), "-B", *sys.argv])


if len(sys.argv) < 3:
    sys.exit(__doc__)
enter_environment(sys.argv[2])

# These are in that environment only.
import numpy
from rouge_score import rouge_scorer, scoring


def tree_texts(root):
    """Paragraphs of text that lies in the tree."""
    root = pathlib.Path(root)
    paths = sorted((root / "docs").glob("*.md")) + sorted((root / "models").rglob("*.md"))
    text = "\n\n".join(path.read_text() for path in [root / "README.md", *paths])
    text += (root / "tests/data/wikitext-2-raw/wiki.test.raw").read_text()[:400_000]
    paragraphs = [p.strip() for p in text.split("\n\n")] + [p.strip() for p in text.split("\n")]
    with open(root / "tests/data/tokenizer/hf_goldens.jsonl", encoding="utf-8") as file:
        paragraphs += [json.loads(line)["text"] for line in file]
    return [p for p in paragraphs if 0 < len(p) < 4000]


class PairMaker:
    """Pairs of texts of several kinds, the same for the same seed."""

    def __init__(self, seed, texts):
        self.random = random.Random(seed)
        self.texts = texts

    def soup(self):
        """Few different words, so that there are many equal subsequences to choose from."""
        r = self.random
        words = [f"w{i}" for i in range(r.choice((1, 2, 3, 5, 9, 40)))]
        return [" ".join(r.choices(words, k=r.randrange(60))) for _ in range(2)]

    def lines(self):
        """Soups of several lines, with empty ones."""
        r = self.random
        words = [f"w{i}" for i in range(r.choice((2, 4, 8, 20)))]
        ends = ("\n", "\n", "\n\n", "\r\n", " ", "\n/\n", "\n ")
        return [
            "".join(
                " ".join(r.choices(words, k=r.randrange(12))) + r.choice(ends)
                for _ in range(r.randrange(9))
            )
            for _ in range(2)
        ]

    def inflected(self):
        """The same roots with other endings: what a stemmer maps to each other."""
        r = self.random
        roots = r.sample(ROOTS, 6)
        return [
            " ".join(
                r.choice(roots) + r.choice(SUFFIXES) + (r.choice(SUFFIXES) * (r.random() < 0.3))
                for _ in range(r.randrange(1, 30))
            )
            for _ in range(2)
        ]

    def letters(self):
        """Short words over few letters: every corner of the stemmer's conditions."""
        r = self.random
        return [
            " ".join(
                "".join(r.choices("aeiouybdlstz", k=r.randrange(1, 9)))
                + r.choice(["", *SUFFIXES])
                for _ in range(r.randrange(25))
            )
            for _ in range(2)
        ]

    def unicode(self):
        r = self.random
        letters = ODD + "aAbBiIkK09 \n"
        return ["".join(r.choices(letters, k=r.randrange(50))) for _ in range(2)]

    def edge(self):
        r = self.random
        return [r.choice(("", " ", "\n", "/", "a", "the", "The the\nTHE", "é", ".\n.")) for _ in "ab"]

    def edited(self, text):
        """The text with words dropped, doubled, swapped or replaced and lines broken elsewhere."""
        r = self.random
        words = text.split(" ")
        for _ in range(r.randrange(1, 2 + len(words) // 2)):
            i = r.randrange(len(words))
            action = r.randrange(5)
            if action == 0 and len(words) > 1:
                del words[i]
            elif action == 1:
                words.insert(i, words[r.randrange(len(words))])
            elif action == 2:
                words[i] = words[i] + r.choice(("\n", "s", "ing", "ed", " ."))
            elif action == 3:
                words[i] = words[i].upper()
            else:
                j = r.randrange(len(words))
                words[i], words[j] = words[j], words[i]
        return " ".join(words)

    def tree(self):
        """Text of the tree beside an edited copy, a part of it, or other text."""
        r = self.random
        target = r.choice(self.texts)[:600]
        other = r.choice((target, target, r.choice(self.texts)[:600]))
        return [target, self.edited(other)]

    def long(self):
        """Lines of more than 64 words: several machine words for a column of the table."""
        r = self.random
        words = [f"w{i}" for i in range(r.choice((2, 10, 100)))]
        return [
            "\n".join(" ".join(r.choices(words, k=r.randrange(60, 270))) for _ in range(2))
            for _ in range(2)
        ]

    def pairs(self, count):
        kinds = [
            *(self.soup, self.lines, self.lines, self.inflected, self.letters),
            *(self.unicode, self.edge, self.tree, self.tree),
        ]
        made = [kinds[i % len(kinds)]() for i in range(count)]
        return made + [self.long() for _ in range(40)]


def reference_scores(pairs, use_stemmer):
    scorer = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=use_stemmer)
    return [scorer.score(target, prediction) for target, prediction in pairs]


def reference_intervals(scores):
    numpy.random.seed(0)
    aggregator = scoring.BootstrapAggregator()
    for score in scores:
        aggregator.add_scores(score)
    return aggregator.aggregate()


def caravan_rouge(program, pairs, use_stemmer, directory):
    """The objects that `caravan rouge --per-example --json` prints: the examples', the total's."""
    path = directory / "pairs.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for target, prediction in pairs:
            file.write(json.dumps({"prediction": prediction, "reference": target}) + "\n")
    flags = ["--use-stemmer"] if use_stemmer else []
    result = run(program, "rouge", "--predictions", path, "--per-example", "--json", *flags)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    if len(rows) != len(pairs) + 1:
        sys.exit(f"caravan rouge: {len(rows)} lines for {len(pairs)} pairs: {result.stderr}")
    return rows[:-1], rows[-1]


def same(ours, theirs):
    return all(ours[m] == float(getattr(theirs, m)) for m in MEASURES)


def check(program, name, pairs, use_stemmer, directory):
    """Compares all scores and the intervals of the mean; returns how many differ, and theirs."""
    rows, total = caravan_rouge(program, pairs, use_stemmer, directory)
    scores = reference_scores(pairs, use_stemmer)
    num_different = 0
    for pair, row, score in zip(pairs, rows, scores):
        for kind in KINDS:
            if not same(row["scores"][kind], score[kind]):
                num_different += 1
                if num_different <= 5:
                    print(f"{kind} of {pair!r}: {row['scores'][kind]}, expected {score[kind]}")
    intervals = reference_intervals(scores)
    for kind in KINDS:
        for bound in ("low", "mid", "high"):
            if not same(total[kind][bound], getattr(intervals[kind], bound)):
                num_different += 1
                print(f"{kind} {bound} of all: {total[kind][bound]}, expected {intervals[kind]}")
    stems = "stems" if use_stemmer else "words"
    print(f"{name}, {stems}: {len(pairs)} pairs, {num_different} of {4 * len(pairs) + 12} differ")
    return num_different, scores


def check_variety(words, stems):
    """The made pairs are of use: many score, and many tell the kinds and the stemmer apart."""
    counts = {
        "score": sum(0 < s["rouge2"].fmeasure < 1 for s in words),
        "tell rougeL from rougeLsum": sum(s["rougeL"] != s["rougeLsum"] for s in words),
        "tell stems from words": sum(w != s for w, s in zip(words, stems)),
    }
    for what, count in counts.items():
        print(f"{count} of {len(words)} made pairs {what}")
    return all(count > NUM_PAIRS / 20 for count in counts.values())


def read_pairs(path):
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row["reference"], row["prediction"]) for row in rows]


def main():
    program, root = sys.argv[1:3]
    maker = PairMaker(0, tree_texts(root))
    sets = {"made": maker.pairs(NUM_PAIRS)}
    for count in (1, 2, 3, 7, 64, 65, 129):  # the index below n is drawn in other ways
        sets[f"{count} alone"] = maker.pairs(count)[:count]
    for path in sys.argv[3:]:
        sets[path] = read_pairs(path)
    num_different = 0
    made = []
    with tempfile.TemporaryDirectory() as directory:
        for name, pairs in sets.items():
            for use_stemmer in (False, True):
                count, scores = check(program, name, pairs, use_stemmer, pathlib.Path(directory))
                num_different += count
                if name == "made":
                    made.append(scores)
    return 1 if num_different or not check_variety(*made) else 0


if __name__ == "__main__":
    sys.exit(main())
