#!/usr/bin/env python3
"""Writes log2.json: binary logarithms of rationals, rounded up and down, by mpmath at 1,000 bits."""

import json
import pathlib
import random

from mpmath import mp, mpf

mp.prec = 1000
random.seed(20120607)


def vector(num, den):
    log2 = mp.log(mpf(num)) / mp.log(2) - mp.log(mpf(den)) / mp.log(2)
    power_of_two = num % den == 0 and (num // den) & (num // den - 1) == 0
    power_of_two |= den % num == 0 and (den // num) & (den // num - 1) == 0

    def ends(scale):
        if power_of_two:
            exact = scale * (num.bit_length() - den.bit_length())
            return [exact, exact]
        scaled = log2 * scale
        return [int(mp.floor(scaled)), int(mp.ceil(scaled))]

    return {
        "num": str(num),
        "den": str(den),
        "microbits": ends(10**6),
        "fixed40": ends(2**40),
    }


def ratios():
    top = 2**128 - 1
    yield from [(1, 1), (2, 1), (1, 2), (3, 3), (12, 3), (3, 12)]
    yield from [(top, 1), (1, top), (top, top - 1), (top - 1, top), (2**127, top), (top, 2**127)]
    yield from [(2**127, 2**127 - 1), (2**127 - 1, 2**127), (2**127 + 1, 2**127), (2**64 + 1, 2**64)]
    for k in range(1, 128, 7):
        yield from [(2**k + 1, 2**k), (2**k, 2**k + 1), (2**k + 1, 1), (1, 2**k - 1 or 1)]
    for m in [0, 1, 2, 10, 999, 10**6, 10**12, 2**60]:
        for s in [0, 1, m // 3, m]:
            if s <= m:
                yield (2 * m + 256, 2 * s + 1)
                yield (2 * m + 256, 2 * m + 255 - 2 * s)
    for n in range(2, 40):
        yield (n, 1)
    for _ in range(200):
        yield (random.getrandbits(random.randint(1, 128)) | 1, random.getrandbits(random.randint(1, 128)) | 1)


vectors = [vector(num, den) for num, den in dict.fromkeys(ratios())]
lines = ",\n".join(json.dumps(one) for one in vectors)
pathlib.Path(__file__).with_name("log2.json").write_text(f"[\n{lines}\n]\n")
