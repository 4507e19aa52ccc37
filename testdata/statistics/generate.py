#!/usr/bin/env python3
"""Writes log2.json (binary logarithms, rounded both ways) and kraft.json (price lists filled to the brim)."""

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


def mass(price):
    return mpf(2) ** (-mpf(price) / 10**6)


def brimful(symbols, cheapest, dearest):
    """Random prices, and the least last price, in microbits, with which the masses sum to at most 1."""
    while True:
        prices = [random.randint(cheapest, dearest) for _ in range(symbols - 1)]
        rest = 1 - mp.fsum(mass(price) for price in prices)
        if rest > mass(60 * 10**6):
            break
    last = int(mp.ceil(-mp.log(rest) / mp.log(2) * 10**6))
    assert mass(last) < rest < mass(last - 1)
    return prices + [last]


def lists():
    for symbols, bits in [(2, 1), (3, 1.7), (4, 2), (5, 2.5), (8, 3), (16, 4.2), (100, 7)]:
        for _ in range(12):
            yield brimful(symbols, int(bits * 700_000), int(bits * 3_000_000))
    # A first price so low that next to nothing is left.
    for tiny in [1, 2, 10, 1_000]:
        yield brimful(2, tiny, tiny)


def write(name, vectors):
    lines = ",\n".join(json.dumps(one) for one in vectors)
    pathlib.Path(__file__).with_name(name).write_text(f"[\n{lines}\n]\n")


write("log2.json", [vector(num, den) for num, den in dict.fromkeys(ratios())])
write("kraft.json", list(lists()))
