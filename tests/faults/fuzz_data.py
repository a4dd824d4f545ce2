"""Mutators that know data and settings: rows, texts, tables, archives, pictures, YAML; and places for output."""
# ruff: noqa: E501

import gzip
import io
import json
import os
import random
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from ruamel.yaml import YAML
from tests.faults import fuzz_mutators as m
from tests.faults import fuzz_values as v

LONG = "x" * 20_000_000


def _odd_row(rng: random.Random, row: Any) -> tuple[str, Any]:
    kind = rng.randrange(4)
    if kind == 0 and isinstance(row, dict) and row:
        key = rng.choice(sorted(row))
        wrapped = [[row[key]], {"a": row[key]}, m.any_value(rng)]
        row[key] = rng.choice(["", " \n ", "\ud800", "<eos>", "<pad>", "a" * 3000, *wrapped])
        return f"{key} = {str(row[key])[:40]!a}", row
    if kind == 1:
        value = m.any_value(rng)
        return f"a row {str(value)[:40]!a}", value
    rows = [row]
    return m.change_value(rng, rows), rows[0] if rows else None


def change_rows(rng: random.Random, path: Path) -> str:
    """One row of JSON lines (compressed or not), or the lines as a whole."""
    packed = path.suffix == ".gz"
    text = gzip.decompress(path.read_bytes()).decode() if packed else path.read_text()
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    do = rng.choice(v.ROW_CHANGES)
    if do == "row":
        do, row = _odd_row(rng, json.loads(lines[at]))
        lines[at] = m.dump(row)
        text = "\n".join(lines) + "\n"
    options: dict[str, str | bytes] = {
        "BOM": "\ufeff" + text, "UTF-16": text.encode("utf-16"), "latin-1": text.replace("a", "é").encode("latin-1"),
        "NUL": text + "\0", "U+2028": text.replace('"}', '\u2028"}'), "one line": text.replace("\n", " "), "blank": " \n\n",
        "CR": text.replace("\n", "\r"), "empty lines": "\n \n" + text.replace("\n", "\n\n"),
    }  # fmt: skip
    content = options.get(do, text)
    if do == "long":
        content = text + json.dumps({"text": LONG, "query": LONG, "response": LONG}) + "\n"
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    return f"line {at + 1}: {do}"


def change_text(rng: random.Random, path: Path) -> str:
    """A plain text in other encodings, of other lengths."""
    text = path.read_text()
    what, content = rng.choice(
        [
            ("BOM", "\ufeff" + text), ("UTF-16", text.encode("utf-16")), ("UTF-32", text.encode("utf-32")), ("NUL", text + "\0" * 99),
            ("surrogates", (text + "\ud800").encode("utf-8", "surrogatepass")), ("GBK", (text + "中文").encode("gbk")), ("one line", text.replace("\n", "")),
            ("20 MB in one line", LONG), ("20 MB of blank lines", "\n" * 20_000_000), ("blank", " \n \n"), ("a letter", "a"), ("unknown letters", "中" * 3000),
            ("special tokens", "<eos> <pad> <unk>\n\n" * 300), ("CR", text.replace("\n", "\r")), ("combining", "e" + "\u0301" * 10_000),
        ]
    )  # fmt: skip
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return what


def change_parquet(rng: random.Random, path: Path) -> str:
    """A table with other columns, types or values; one that unpacks to gigabytes."""
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    rows = table.to_pylist()
    do = rng.choice(v.TABLE_CHANGES)
    if do == "gone":
        table = table.drop_columns([name])
    elif do == "renamed":
        new = rng.choice(["text", "sentence", "x", "", "TEXT"])
        table = table.rename_columns([new if column == name else column for column in table.column_names])
    elif do == "twice":
        table = table.append_column(name, table[name])
    elif do == "type":
        values, kind = rng.choice(
            [
                (b"a", pa.binary()), (["a"], pa.list_(pa.string())), ({"a": 1}, pa.struct([("a", pa.int64())])), (1, pa.int64()), (1.5, pa.float64()),
                (float("nan"), pa.float64()), (True, pa.bool_()), ("a", pa.dictionary(pa.int8(), pa.string())), ("a", pa.large_string()), (None, pa.null()),
                (5, pa.timestamp("ns")), ([("a", 1)], pa.map_(pa.string(), pa.int64())), (5, pa.duration("s")), (b"\xff", pa.binary()),
                ("a", pa.string_view()), (2**63, pa.uint64()), ([1.0, 2.0], pa.list_(pa.float64(), 2)), (b"abcd", pa.binary(4)),
            ]
        )  # fmt: skip
        table = table.set_column(table.column_names.index(name), name, pa.array([values] * len(rows), kind))
        do = f"type {kind}"
    elif do in ("value", "null"):
        at = rng.randrange(len(rows))
        old = rows[at][name]
        texts = [rng.choice(v.STRINGS).encode("utf-8", "replace").decode(), "", "\0"]
        odd = texts if isinstance(old, str) else [[], [float("nan")] * 4, {}, -1, 10**6, 0.5]
        rows[at][name] = None if do == "null" else rng.choice(odd)
        table = pa.Table.from_pylist(rows, schema=table.schema)
        do = f"row {at} = {str(rows[at][name])[:40]!a}"
    elif do == "no rows":
        table = table.slice(0, 0)
    elif do == "bomb":
        big = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000_000, pa.int32()), pa.array(["y" * 10_000]))
        table = pa.table({name: big})
    elif do == "metadata":
        pandas = rng.choice(["{", "[]", "null", '{"index_columns": 5}'])
        table = table.replace_schema_metadata({"pandas": pandas, "huge": "x" * 10**6})
    elif do == "index":
        table = table.append_column("__index_level_0__", pa.array(range(len(rows))))
    packed, group = rng.choice(["NONE", "ZSTD", "SNAPPY"]), rng.choice([1, 7, 1000000])
    pq.write_table(table, path, row_group_size=1000000 if do == "bomb" else group, compression=packed)
    return f"{name}: {do}"


def change_gzip(rng: random.Random, path: Path) -> str:
    """A gzip file that is cut off, damaged, doubled or something else."""
    raw = path.read_bytes()
    plain = gzip.decompress(raw)
    do, content = rng.choice(
        [
            ("bytes", b""), ("bytes", b""), ("bytes", b""), ("twice", raw + raw), ("rubbish after", raw + b"zz"), ("not compressed", plain),
            ("zlib", zlib.compress(plain)), ("of nothing", gzip.compress(b"")), ("of gzip", gzip.compress(raw)), ("a bomb", b""),
            ("checksum", raw[:-8] + b"\0\0\0\0" + raw[-4:]), ("body cut off", raw[: len(raw) // 2]),
        ]
    )  # fmt: skip
    if do == "bytes":
        return m.change_bytes(rng, path)
    if do == "a bomb":
        content = gzip.compress(b'{"text": "' + b"a" * 100_000_000 + b'"}\n', 1) * 40
    path.write_bytes(content)
    return do


def change_picture(rng: random.Random, path: Path) -> str:
    """A picture of another mode, format, size; one that promises more than it holds."""
    do = rng.choice(v.PICTURE_CHANGES)
    picture = Image.open(path).convert("RGB")
    picture.load()
    if do == "bytes":
        return m.change_bytes(rng, path)
    if do == "mode":
        mode, kind = rng.choice(v.MODES), rng.choice(v.FORMATS)
        base = picture.convert("L") if mode in ("I", "F") else picture
        made = Image.new(mode, picture.size) if mode in ("I;16", "RGBa", "La", "PA", "LA") else base.convert(mode)
        said = f"{mode} as {kind}"
        buffer = io.BytesIO()
        made.save(buffer, kind)
        content = buffer.getvalue()
        if rng.random() < 0.5:
            path.write_bytes(content)
        else:
            path.unlink()
            path.with_suffix("." + kind.lower()).write_bytes(content)
            said += " by its own suffix"
        return said
    if do == "size":
        size = rng.choice([(1, 1), (1, 5000), (5000, 1), (3, 200), (12000, 12000), (1, 65000)])
        Image.new("1", size).save(path, "PNG")
        return f"size {size}"
    if do == "exif":
        exif = Image.Exif()
        exif[0x0112] = rng.choice([1, 3, 6, 8, 0, 99])
        exif[0x010E] = "x" * rng.choice([1, 60000])
        picture.save(path, "JPEG", exif=exif)
        return f"turned {exif[0x0112]}"
    raw = path.read_bytes()
    if do == "claim":  # IHDR's width and height
        width, height = rng.choice([(60000, 60000), (2**31 - 1, 1), (0, 0), (20000, 20000), (2**31, 2**31), (41, 30)])
        head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + raw[24:29]
        content = raw[:12] + head + zlib.crc32(head).to_bytes(4, "big") + raw[33:]
    elif do == "chunk":
        packed = zlib.compress(b"x" * 100_000_000, 9) if rng.random() < 0.5 else rng.randbytes(50)
        body = rng.choice([b"zTXta\0\0", b"iCCPa\0\0", b"tEXta\0", b"iTXta\0\1\0\0\0"]) + packed
        content = raw[:33] + (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + raw[33:]
    elif do == "frames":
        buffer = io.BytesIO()
        picture.save(buffer, "GIF", save_all=True, append_images=[picture] * 300)
        content = buffer.getvalue()
    elif do == "name":
        new = rng.choice(v.PICTURE_NAMES)
        path.rename(path.with_name(new))
        return f"named {new!a}"
    else:
        content = rng.choice(v.NO_PICTURES)
    path.write_bytes(content)
    return f"{do} ({len(content)} bytes)"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)


def change_yaml(rng: random.Random, path: Path) -> str:
    """One value of a YAML file, or the whole in a form that YAML has and JSON has not."""
    text = path.read_text()
    if rng.random() < 0.7:
        value = YAML(typ="safe").load(text)
        said = m.change_value(rng, value)
        path.write_text(m.dump(value))
        return said
    what, content = rng.choice(
        [
            ("BOM", "\ufeff" + text), ("UTF-16", text.encode("utf-16")), ("cut off", text[: rng.randrange(len(text))]), ("NUL", text + "\0"),
            ("aliases", BOMB + text), ("itself", "x: &x [*x]\n" + text), ("itself as a mapping", "x: &x {y: *x}\n" + text), ("tabs", "\t" + text),
            ("two documents", text + "\n---\na: 1\n"), ("a tag", "x: !!python/name:os.system\n" + text), ("an unknown tag", "x: !y z\n" + text),
            ("a set", "x: !!set {a, b}\n" + text), ("a date", text.replace("seed: 42", "seed: 2001-01-01")), ("binary", "x: !!binary zz\n" + text),
            ("merge", "x: {<<: 5}\n" + text), ("list as key", "[1, 2]: 3\n" + text), ("mapping as key", "{a: 1}: 3\n" + text), ("empty", ""), ("a number", "5"),
            ("nan", text.replace("seed: 42", "seed: .nan")), ("infinity", text.replace("threads: 1", "threads: .inf")), ("a directive", "%YAML 9.9\n---\n" + text),
            ("octal", text.replace("seed: 42", "seed: 0o777")), ("a great seed", text.replace("seed: 42", f"seed: {10**30}")), ("deep", "x: " + "[" * 5000),
            ("many threads", text.replace("threads: 1", "threads: 1000000")), ("negative seed", text.replace("seed: 42", "seed: -1")),
            ("no key", ": \n" + text), ("null key", "null: 1\n" + text), ("a number as key", "5: 1\n" + text), ("a long key", "x" * 2000 + ": 1\n" + text),
            ("study elsewhere", text.replace("study: smoke", f"study: {rng.choice(['../../x', '/etc/passwd', 'a/b', '[x]', '~', '{}', '5'])}")),
        ]
    )  # fmt: skip
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return what


def places(commands: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every command with every place for its output, and where it may then write."""
    for name, flag in v.OUTPUTS.items():
        for place in v.PLACES:
            stem = os.path.normpath(place)
            outs = {stem, os.path.splitext(stem)[0], "log", {"link": "other", "dangling": "nowhere"}.get(place, stem)}
            yield f"{commands[name]} {flag} {place}", tuple(sorted(outs))


def make_places(rng: random.Random) -> str:
    """What other people have lying about: files under names that are ours too, links, a pipe."""
    chosen = [name for name in v.TAKEN if rng.random() < 0.5]
    for folder in ("other", "other/base", "other/ft", "other/checkpoints/checkpoint-1", "other/Sketch", "other/.cache"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in chosen:
            Path(folder, name).write_text(rng.choice(["{}", "mine", "[]"]))
    Path("link").symlink_to("other")
    Path("link-to-file").symlink_to("other/kept.txt")
    Path("other/kept.txt").write_text("mine")
    Path("dangling").symlink_to("nowhere")
    os.mkfifo("pipe")
    return f"other holds {chosen[:3]} ..."
