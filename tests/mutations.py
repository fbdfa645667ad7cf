"""Ways to damage a file or to forge one, each a function of a seeded generator: every input can be made again."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

_LIMITS = [0, 1, 7, 127, 128, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1]
_DEEP, _ENDLESS, _DIGITS = "~deep~", "~endless~", "~digits~"  # stand in a text for what json.dumps cannot write
_STRANGE_TEXTS = ["", " ", "\x00", "\ud800", "\u2028", "../../x", "x" * 5000, "NaN", "-1", "0", "00", "1e400", "\u0663"]
_STRANGE_TEXTS += ["</script><script>alert(1)</script>", "{0} %s {x}", "9" * 5000, "\u202e", "null"]
_STRANGE_NUMBERS = [0, -1, 1, 2, 3, 5, 255, 256, 2**16, 2**31, 2**40, 2**63, 2**64, 10**30, 10**400, -(10**400)]
_STRANGE_NUMBERS += [
    0.5,
    2.0,
    -0.0,
    1e-320,
    5e-324,
    1e-30,
    1e30,
    1e300,
    -1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
]


# ------------------------------------------------------------------------------------------------------------- bytes


def damaged(rng: random.Random, content: bytes, first: int = 0, last: int | None = None) -> bytes:
    """The bytes with one to four things wrong between ``first`` and ``last``."""
    end = len(content) if last is None else last
    held = bytearray(content[first:end])
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_DAMAGES)(rng, held)
    return content[:first] + bytes(held) + content[end:]


def _span(rng: random.Random, held: bytearray) -> slice:
    start = rng.randrange(len(held) + 1)
    return slice(start, min(len(held), start + rng.choice((1, 2, 4, 8, 64, 1024))))


def _flip(rng: random.Random, held: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if held:
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, held: bytearray) -> None:
    del held[rng.randrange(len(held) + 1) :]


def _remove(rng: random.Random, held: bytearray) -> None:
    del held[_span(rng, held)]


def _insert(rng: random.Random, held: bytearray) -> None:
    place = rng.randrange(len(held) + 1)
    held[place:place] = rng.randbytes(rng.choice((1, 2, 4, 64)))


def _overwrite(rng: random.Random, held: bytearray) -> None:
    span = _span(rng, held)
    length = span.stop - span.start
    held[span] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def _repeat(rng: random.Random, held: bytearray) -> None:
    held[_span(rng, held)] = held[_span(rng, held)] * rng.choice((1, 2, 50))


def _limit(rng: random.Random, held: bytearray) -> None:
    """A number that some arithmetic overflows at, in the form that a header has."""
    width = rng.choice((1, 2, 4, 8))
    place = rng.randrange(max(1, len(held)))
    order = "little" if rng.random() < 0.5 else "big"
    held[place : place + width] = (rng.choice(_LIMITS) % 256**width).to_bytes(width, order)


_DAMAGES: list[Callable[[random.Random, bytearray], None]] = [
    *(_flip, _flip, _flip, _cut, _remove, _insert, _overwrite, _repeat, _limit, _limit)
]


def with_a_lie(rng: random.Random, footer: bytes) -> bytes:
    """The footer of a parquet file, in Thrift's compact form, where one number of 32 or 64 bits is another."""
    fields = [k for k in range(len(footer) - 1) if footer[k] & 15 in (5, 6) and 16 <= footer[k] < 64]
    counts = [k for k in fields if footer[k + 1] == 2 * 12]  # of rows and values, in shards of twelve rows
    first = rng.choice(counts if counts and rng.random() < 0.5 else fields) + 1
    last = first
    while last < len(footer) - 1 and footer[last] & 128:
        last += 1
    number, lie = rng.choice((rng.randrange(100), *(2 * limit for limit in _LIMITS), 1)), b""
    while number >= 128:
        number, lie = number >> 7, lie + bytes([number & 127 | 128])
    return footer[:first] + lie + bytes([number]) + footer[last + 1 :]


# -------------------------------------------------------------------------------------------------------------- JSON


def strange_value(rng: random.Random) -> Any:
    """Something that no entry of a configuration should be."""
    kind = rng.randrange(10)
    if kind < 5:
        return rng.choice(_STRANGE_NUMBERS)
    if kind < 7:
        return rng.choice([*_STRANGE_TEXTS, _DEEP, _ENDLESS, _DIGITS])
    if kind == 7:
        nested: Any = 1
        for _ in range(rng.choice((1, 3, 300))):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    if kind == 8:
        return [rng.choice(_STRANGE_NUMBERS) for _ in range(rng.choice((0, 1, 2, 3, 4, 5)))]
    return rng.choice((None, True, False, [], {}, [[]], {"": None}, [None] * 4, {"height": 1, "width": 2**40}))


def changed(rng: random.Random, entries: Any, times: int | None = None) -> Any:
    """Entries of a JSON file with one to three of them replaced, removed, renamed or doubled, at any depth."""
    entries = deepcopy(entries)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(_places(entries) or [([entries], 0)])
        action = rng.randrange(6)
        if action == 4:
            del holder[key]
        elif action == 5 and isinstance(holder, dict):
            holder[rng.choice(_STRANGE_TEXTS)] = holder.pop(key)
        elif action == 5:
            holder.append(holder[key])
        elif action == 3 and isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice((-1, 2, 1000, 10**9)) + rng.choice((0, 1, -1))
        else:
            holder[key] = strange_value(rng)
    return entries


def _places(entries: Any) -> list[tuple[Any, Any]]:
    if not isinstance(entries, dict | list):
        return []
    keys = list(entries) if isinstance(entries, dict) else list(range(len(entries)))
    return [place for key in keys for place in ((entries, key), *_places(entries[key]))]


def json_bytes(entries: Any, indent: int | None = None) -> bytes:
    """A JSON file, also of what lies too deep or has too many digits for ``json.dumps``."""
    text = json.dumps(entries, indent=indent)
    text = text.replace(f'"{_DEEP}"', "[" * 400 + "]" * 400).replace(f'"{_ENDLESS}"', "[" * 100_000)
    return text.replace(f'"{_DIGITS}"', "7" * 5000).encode("utf-8", "replace")


def forged_json(rng: random.Random, entries: Any) -> bytes:
    """A JSON file with something wrong in its entries, or in its text."""
    kind = rng.randrange(12)
    if kind == 0:
        return damaged(rng, json_bytes(entries, indent=2))
    if kind == 1:
        return json_bytes(entries).decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    if kind == 2:
        return json_bytes(strange_value(rng))
    if kind == 3:
        return json_bytes(entries).replace(
            b'"', rng.choice((b'"\xff', b"'", b'"\xed\xa0\x80')), rng.choice((1, 7, 10**6))
        )
    return json_bytes(changed(rng, entries))


# ------------------------------------------------------------------------------------------------- pickles, archives


class Writes:
    """What writes a file when it is unpickled by something that runs what a pickle asks for."""

    def __init__(self, path: Path) -> None:
        self.command = f"touch '{path}'"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def hostile_pickle(rng: random.Random, witness: Path) -> bytes:
    """A pickle by hand that would call something and leave ``witness`` behind."""
    module, name = rng.choice((("os", "system"), ("posix", "system"), ("builtins", "exec"), ("subprocess", "call")))
    code = f"touch '{witness}'" if name == "system" else f"open({str(witness)!r}, 'w')"
    if name == "call":
        return pickle.dumps({"a": Writes(witness)}, protocol=rng.choice((0, 2, 4)))
    return f"c{module}\n{name}\n(V{code}\ntR.".encode()


def damaged_archive(rng: random.Random, content: bytes) -> bytes:
    """A zip file, as torch writes them, with one of its members damaged, forged or gone, and its sums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as held, zipfile.ZipFile(buffer, "w") as written:
        names = held.namelist()
        victim = next(name for name in names if name.endswith("data.pkl")) if rng.random() < 0.7 else rng.choice(names)
        for name in names:
            member = held.read(name)
            if name == victim:
                if rng.random() < 0.1:
                    continue
                member = damaged(rng, member)
            deflated = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
            written.writestr(zipfile.ZipInfo(name), member, deflated)  # without the time of day
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------- pictures


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, each its type and its data."""
    chunks, place = [], 8
    while place + 8 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of such chunks, with their sums right."""
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@cache
def zeros(count: int) -> bytes:
    """So many zeros, compressed to a two-hundredth."""
    return zlib.compress(bytes(count), 1)


def blank_png(width: int, height: int, bits: int = 8, colour: int = 0, rows: int | None = None) -> bytes:
    """A PNG of zeros, of which only some rows may be there, or far too many."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    line = 1 + (width * channels * bits + 7) // 8
    packed = zeros(min(2**26, line * (height if rows is None else rows)))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    palette = [(b"PLTE", bytes(3))] if colour == 3 else []
    return png_of([(b"IHDR", header), *palette, (b"IDAT", packed), (b"IEND", b"")])


def forged_png(rng: random.Random, content: bytes) -> bytes:
    """A PNG whose chunks are lies with right sums, or bombs."""
    chunks = png_chunks(content)
    kind = rng.randrange(8)
    if kind == 0:  # another header, on purpose or not
        header = bytearray(chunks[0][1])
        fields = {"width": (0, 4), "height": (4, 8), "bits": (8, 9), "colour": (9, 10), "way": (10, 13)}
        first, last = fields[rng.choice(list(fields))]
        header[first:last] = (rng.choice(_LIMITS) % 256 ** (last - first)).to_bytes(last - first, "big")
        chunks[0] = (b"IHDR", bytes(header))
    elif kind == 1:  # text that grows when it is unpacked
        bomb = zeros(2**27)
        told = rng.choice(((b"zTXt", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)))
        chunks.insert(rng.randrange(1, len(chunks)), told)
    elif kind == 2:  # pixels that go on and on
        return blank_png(40, 24, rows=rng.choice((1, 1_000_000)))
    elif kind == 3:
        return blank_png(*rng.choice(((2**31 - 1, 1), (1, 2**31 - 1), (40_000, 40_000), (100_000, 2_000))), rows=1)
    elif kind == 4:
        rng.shuffle(chunks)
    elif kind == 5:
        chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(chunks))
    elif kind == 6:
        del chunks[rng.randrange(len(chunks))]
    else:
        place = rng.randrange(len(chunks))
        chunks[place] = (chunks[place][0], damaged(rng, chunks[place][1]))
    return png_of(chunks)


def forged_jpeg(rng: random.Random, content: bytes) -> bytes:
    """A JPEG with another size in its header, or with segments damaged, doubled or gone."""
    segments, place = [], 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        length = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        segments.append(content[place : place + length])
        place += length
    rest = content[place:]
    victim = rng.randrange(len(segments))
    if rng.random() < 0.5:
        victim = next((k for k, each in enumerate(segments) if each[1] in (0xC0, 0xC2)), victim)
        size = struct.pack(">HH", *(rng.choice((0, 1, 24, 300, 65_535)) for _ in range(2)))
        segments[victim] = segments[victim][:5] + size + segments[victim][9:]
    else:
        segments[victim] = rng.choice((b"", segments[victim] * 2, damaged(rng, segments[victim], 2)))
    return content[:2] + b"".join(segments) + rest
