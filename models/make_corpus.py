#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the training text of models/kjv-moe: the King James Bible as plain, flowing bytes.

Needs the Debian packages bible-kjv and bible-kjv-text (apt-get install bible-kjv bible-kjv-text); the text is in the
public domain. A chapter becomes a heading line and one paragraph, its verses joined by spaces, verse numbers dropped.
Chapters are split by their index alone, so the same package always gives the same three files:

    train.txt    what the model learns from
    valid.txt    every 64th chapter, from the 33rd on: chooses the checkpoint and the settings
    heldout.txt  every 64th chapter, from the 11th on: gives the reported bits per byte, and nothing else

Usage: models/make_corpus.py [--out models/corpus]
"""
import argparse
import hashlib
import pathlib
import re
import subprocess
import sys

WHOLE_TEXT = "gen1:1-rev22:21"
CHAPTERS = 1189
SPLIT_PERIOD, VALID_PHASE, HELDOUT_PHASE = 64, 32, 10


def read_chapters():
    """Return [(heading, [verse, ...])], in the order of the book."""
    try:
        # -l sets the line width: wide enough for any verse, so that one line is one verse.
        raw = subprocess.run(["bible", "-l99999", WHOLE_TEXT], check=True, capture_output=True).stdout.decode("ascii")
    except FileNotFoundError:
        sys.exit("make_corpus: no program 'bible': apt-get install bible-kjv bible-kjv-text")
    chapters = []
    for line in raw.splitlines():
        verse = re.match(r" +(\d+) (.*)", line)
        if verse:
            chapters[-1][1].append(" ".join(verse[2].split()))
        elif line.strip():
            chapters.append((line.strip(), []))
    if len(chapters) != CHAPTERS or not all(verses for _, verses in chapters):
        sys.exit(f"make_corpus: expected {CHAPTERS} chapters with verses, found {len(chapters)}: another text?")
    return chapters


def split_of(index):
    phase = index % SPLIT_PERIOD
    return {VALID_PHASE: "valid", HELDOUT_PHASE: "heldout"}.get(phase, "train")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "corpus")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    texts = {"train": "", "valid": "", "heldout": ""}
    for index, (heading, verses) in enumerate(read_chapters()):
        texts[split_of(index)] += f"{heading}\n{' '.join(verses)}\n\n"
    for name, text in texts.items():
        data = text.encode("ascii")
        (out / f"{name}.txt").write_bytes(data)
        print(f"{name}.txt: {len(data)} bytes, {text.count(chr(10) * 2)} chapters, "
              f"sha256 {hashlib.sha256(data).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
