"""Data sets of the Hugging Face hub on a disk: tables with pictures in them, as `save_to_disk`,
`to_parquet` and `load_dataset` leave them, and the tables of `imagefolder`.

    <root>/[<split>/]data-00000-of-00001.arrow     or <split>-00000-of-00001.parquet, or any names
    <root>/[<split>/]metadata.csv                  or .jsonl or .parquet, with the column file_name

Columns are called as those of `meta.csv` (`data/tables.py`), and a class label by its name. A label
that says neither good nor defective is a type of defect, if another one says good. Where there is
no label, the folder of a picture is one. Pictures inside of tables are unpacked once, into the
folder of `data/cache.py`, because everything else reads files.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iad_r1.data import cache, faults, folders, tables
from iad_r1.data.exports.annotated import TOOLS, Annotated, Mark, only_split
from iad_r1.data.exports.tree import Tree, splits
from iad_r1.errors import DataError
from iad_r1.store import keys

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "Hugging Face"
FILES = (
    "an .arrow or .parquet file with pictures in it, or metadata.csv, metadata.jsonl or "
    "metadata.parquet"
)
_LEFTOVERS = ("cache-", "indices-")  # of `map` and `shuffle`, beside the data
_UNPACKED = "unpacked"  # in the folder of the cache
_AT_ONCE = 64  # rows

Row = Mapping[str, str]


def recognise(tree: Tree) -> list[Path]:
    """The tables."""
    found = tree.of(".arrow", ".parquet", ".csv", ".jsonl")
    return [file for file in found if not file.name.startswith(_LEFTOVERS) and _is_ours(file)]


def annotated(tree: Tree, files: Sequence[Path]) -> Iterator[Annotated]:
    """The pictures of all tables."""
    found = [(file, *_read(file)) for file in files]
    _check_labels({row.get("label", "") for _, _, rows in found for row in rows}, files[0])
    for file, inside, rows in found:
        said = only_split(tree.splits_of(file), str(file))
        unpacked = _unpacked(file) if inside else {}
        for n, row in enumerate(rows):
            with faults.of_one():
                where = f"{file}, row {n}"
                files_of = {name: unpacked.get((n, at)) for name, at in inside.items()}
                split = only_split({_split(row["split"], where)} if row.get("split") else (), where)
                one = _of_row(tree, file, where, row, files_of, split or said)
                yield replace(one, overruled=said if split and split != said else "")


def _of_row(
    tree: Tree, file: Path, where: str, row: Row, inside: Mapping[str, Path | None], split: str
) -> Annotated:
    listed = None
    if "image" in inside:
        image = inside["image"]
        if image is None:
            raise DataError(f"{where}: it has no picture. Take it out of the data set.")
        listed = file.parent / f"{file.stem}-{image.name}"
    else:
        image = tree.find(row["image"], file, where)
    mask = inside.get("mask")
    if row.get("mask"):
        mask = file.parent / row["mask"]
    label = row.get("label") or ("" if listed else _folder(image))
    if not label:
        raise DataError(
            f"{where}: nothing says whether its picture is good. Add a column label with 0 (good) "
            "or 1 (defective)."
        )
    marks = list(_marks(label, row.get("defect_type", ""), where))
    product = folders.words(row.get("product", "")) or (tree.name if listed else "")
    return Annotated(image, marks, None, split, where, mask, listed, product)


def _marks(label: str, kind: str, where: str) -> Iterator[Mark]:
    defective = _is_defective(label)
    if not defective:
        yield Mark("good", where)
    elif not kind and label.lower() not in tables.LABELS:
        kind = label
    if defective or kind.lower() not in folders.UNTYPED:
        yield Mark(kind or "defective", where)


def _is_defective(label: str) -> bool:
    return tables.LABELS.get(label.lower(), not folders.is_good(label))


def _check_labels(labels: set[str], file: Path) -> None:
    """Labels that are names are types of defects only beside one that says good."""
    said = {label for label in labels if label and label.lower() not in tables.LABELS}
    if said and all(_is_defective(label) for label in labels if label):
        raise DataError(
            f"{file}: its labels ({', '.join(sorted(said)[:5])}) would be types of defects, but "
            "none says good. Call that of good pictures good, or write 0 (good) and 1 (defective) "
            "into the column label."
        )


def _folder(image: Path) -> str:
    """The label that the folder of a picture is; "" for one that is named after a split or tool."""
    name = image.parent.name
    return "" if splits(Path(name)) or folders.words(name).lower() in TOOLS else name


def _split(said: str, where: str) -> str:
    if said.lower() not in folders.SPLIT_NAMES:
        raise DataError(f"{where}: split={said!r} is unknown. Use train, test or validation.")
    return folders.SPLIT_NAMES[said.lower()]


# --- tables --------------------------------------------------------------------------------------


def _is_ours(file: Path) -> bool:
    if not _is_binary(file):
        with file.open("rb") as lines:
            return file.stem == "metadata" and b"file_name" in lines.readline()
    schema = _schema(file)
    return bool(_pictures(schema)) or (file.stem == "metadata" and "file_name" in schema.names)


def _is_binary(file: Path) -> bool:
    return file.suffix.lower() in (".arrow", ".parquet")


def _read(file: Path) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Of a table the number of the columns that hold pictures, by what they are ("image" or
    "mask"), and the texts of every row by the names that columns have here."""
    if not _is_binary(file):
        rows = _lines(file)
        header = dict.fromkeys(name for row in rows for name in row if name)  # a row may lack some
        columns = tables.columns_of(file, list(header), ("image",))
        for n, row in enumerate(rows) if list(header)[-1] in columns.values() else ():
            with faults.of_one():
                if None in row:  # as the reader of CSV says it
                    raise DataError(
                        f"{file}, row {n}: more values than columns. Quote values that hold a ','."
                    )
        return {}, [{name: _text(row.get(own)) for name, own in columns.items()} for row in rows]
    schema = _schema(file)
    pictures = _pictures(schema)
    inside = tables.columns_of(file, pictures, ())
    left = [name for name in pictures if name not in inside.values()]
    if pictures and "image" not in inside:
        if len(left) != 1:
            raise DataError(
                f"{file}: which column is the image, {' or '.join(pictures)}? Call it image."
            )
        inside["image"] = left[0]
    texts = [name for name in schema.names if name not in pictures]
    columns = tables.columns_of(file, texts, () if pictures else ("image",))
    columns = {name: own for name, own in columns.items() if name not in inside}
    names = _class_names(schema)
    rows = _columns(file, list(columns.values()))
    return {name: schema.names.index(own) for name, own in inside.items()}, [
        {name: _text(row[own], names.get(own)) for name, own in columns.items()} for row in rows
    ]


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix.lower() == ".csv":
                return list(csv.DictReader(lines, strict=True))
            return [
                folders.mapping(json.loads(line), f"{file}, line {number}")
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
    except (ValueError, csv.Error) as error:
        kind = "a comma-separated UTF-8 table" if file.suffix.lower() == ".csv" else "lines of JSON"
        raise DataError(f"{file} is not {kind} ({error}).") from None


def _text(value: Any, names: Sequence[str] | None = None) -> str:
    if names is not None and value is not None:
        return str(names[value]) if value >= 0 else ""  # -1: not labelled
    return "" if value is None else str(value).strip()


def _pictures(schema: pa.Schema) -> list[str]:
    """The columns that hold files."""
    import pyarrow as pa

    return [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= set(field.type.names)
    ]


def _class_names(schema: pa.Schema) -> dict[str, Sequence[str]]:
    """What the numbers of columns stand for."""
    said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = said.get("info", {}).get("features", {})
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


@contextmanager
def _read_by_arrow(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} cannot be read ({error}). Replace it, or take it out of the folder."
        ) from None


def _schema(file: Path) -> pa.Schema:
    from pyarrow import parquet

    with _read_by_arrow(file):
        if file.suffix.lower() == ".parquet":
            return parquet.read_schema(file)
        with _stream(file) as stream:
            return stream.schema


def _stream(file: Path) -> pa.RecordBatchStreamReader:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(file)))


def _batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    with _read_by_arrow(file):
        if file.suffix.lower() == ".parquet":
            with parquet.ParquetFile(file) as opened:
                yield from opened.iter_batches(_AT_ONCE, columns=list(columns))
            return
        with _stream(file) as stream:
            for batch in stream:
                yield batch.select(list(columns))


def _columns(file: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    return [row for batch in _batches(file, names) for row in batch.to_pylist()]


# --- pictures inside of tables -------------------------------------------------------------------


def _unpacked(file: Path) -> dict[tuple[int, int], Path]:
    """The pictures in a table by row and number of the column. They lie in a folder that is called
    by the content of the table, whole or not at all. Raises DataError."""
    with cache.Kept() as kept:
        digest = kept.found([file], ["content"], lambda: {"sha256": keys.digest(file)})["sha256"]
    folder = cache.folder() / _UNPACKED / digest[:32]
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix="partial-"))
            try:
                _unpack(file, partial)
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # or another run was faster
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise DataError(
                f"The pictures in {file} cannot be unpacked to {folder} ({error}). Name a folder "
                f"with room for them by the environment variable {cache.VARIABLE}."
            ) from None
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(folder.iterdir()):
        row, column = map(int, path.stem.split("-"))
        found[row, column] = path
    return found


def _unpack(file: Path, folder: Path) -> None:
    """A file for every picture, named by its row and the number of its column."""
    schema, row = _schema(file), 0
    numbers = {name: schema.names.index(name) for name in _pictures(schema)}
    for batch in _batches(file, list(numbers)):
        for n in range(batch.num_rows):
            for name, number in numbers.items():
                cell = batch.column(name)[n].as_py()
                if cell is not None:
                    content = _content(cell, f"{file}, row {row}, {name}", file.parent)
                    kind = _suffix(content)
                    (folder / f"{row:07}-{number}{kind}").write_bytes(content)
            row += 1


def _content(cell: Mapping[str, Any], where: str, folder: Path) -> bytes:
    """A picture of a table, which may be in a file that the table names."""
    if cell["bytes"] is not None:
        return cell["bytes"]
    named = folder / (cell["path"] or "")
    if not named.is_file():
        raise DataError(
            f"{where}: the picture is not in the table, and {cell['path'] or 'no file'} is not "
            "there. Save the data set with its pictures (save_to_disk)."
        )
    return named.read_bytes()


def _suffix(content: bytes) -> str:
    """What a picture's file is called at its end; nothing where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return f".{(picture.format or '').lower()}"
    except Exception:  # whatever a decoder says of it, the run says with the name of the file
        return ""
