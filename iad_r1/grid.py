"""Places in an image: words for the cells of a grid, and what they are worth (Eq. 4).

A cell is a 0-based, row-major index; a place is a set of cells. Three sources meet here and must
mean the same thing: words a model wrote, words a data set holds, and defect masks.

`parse_cells` reads whole words only and never guesses: text that names no place is None. The
matcher released with IAD-R1 is kept beside it (`released=True`) with its faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from iad_r1.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

Rule = Literal["centroid_largest", "centroid_all", "max_overlap", "multi"]

MOST = 99  # rows or columns
_MULTI_LIMIT = 3  # `multi` keeps this many components: more words than that describe nothing
_CACHED_LENGTH = 200  # longer texts are parsed but not remembered


class HasCells(Protocol):
    """Whatever has rows and columns, as the `grid` section of a configuration."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...


@dataclass(frozen=True)
class Grid:
    """`rows` x `cols` equal cells laid over an image."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= MOST and 1 <= self.cols <= MOST):
            raise ConfigError(f"grid={self}: 1 to {MOST} rows and columns. Try grid=3x3.")

    @classmethod
    def parse(cls, text: str) -> Grid:
        """`"3x3"` as a grid. Raises ConfigError on anything else."""
        match = re.fullmatch(r"\s*([1-9]\d?)\s*[xX*]\s*([1-9]\d?)\s*", text, re.ASCII)
        if match is None:
            raise ConfigError(f"grid={text!r} is not <rows>x<cols>, 1 to 99 each. Try grid=3x3.")
        return cls(int(match[1]), int(match[2]))

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return self.rows * self.cols

    def cell_at(self, x: float | Fraction, y: float | Fraction) -> int:
        """The cell that holds the point `x`, `y`, both as a share of the image in [0, 1]."""
        row = min(int(y * self.rows), self.rows - 1)
        return row * self.cols + min(int(x * self.cols), self.cols - 1)

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


def as_grid(grid: str | HasCells) -> Grid:
    """Whatever names a grid, as one."""
    if isinstance(grid, Grid):
        return grid
    return Grid.parse(grid) if isinstance(grid, str) else Grid(grid.rows, grid.cols)


# --- cell to words -----------------------------------------------------------------------------

_ROW_NAMES = {1: ("",), 2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
_COL_NAMES = {1: ("",), 2: ("left", "right"), 3: ("left", "center", "right")}
_WHOLE = "whole image"


def words(cell: int, grid: Grid | str) -> str:
    """The words for one cell: "top left", "center", "whole image" on 1x1, and "row 2 of 5, column
    4 of 5" once an axis has more than three parts. Raises ConfigError for a cell that is not there.
    """
    grid = as_grid(grid)
    if not 0 <= cell < grid.cells:
        raise ConfigError(f"cell {cell} is not on a {grid} grid: cells are 0 to {grid.cells - 1}.")
    if grid.cells == 1:
        return _WHOLE
    row, col = divmod(cell, grid.cols)
    if grid.rows > 3 or grid.cols > 3:
        return f"row {row + 1} of {grid.rows}, column {col + 1} of {grid.cols}"
    names = [_ROW_NAMES[grid.rows][row], _COL_NAMES[grid.cols][col]]
    return "center" if names == ["middle", "center"] else " ".join(filter(None, names))


def describe(cells: Iterable[int], grid: Grid | str) -> str:
    """The words for a set of cells, in reading order, joined by commas. Empty for no cell."""
    return ", ".join(words(cell, grid) for cell in sorted(set(cells)))


# --- words to cells ----------------------------------------------------------------------------

_TOP = ("top", "upper", "uppermost", "topmost")
_BOTTOM = ("bottom", "lower", "lowermost", "bottommost")
_LEFT = ("left", "leftmost")
_RIGHT = ("right", "rightmost")
_MIDDLE = frozenset(("middle", "center", "centre", "central", "mid"))
_EVERYWHERE = frozenset(("whole", "entire", "everywhere", "throughout"))
_DENIALS = frozenset(
    ("no", "not", "none", "never", "without", "except", "neither", "nor", "t", "outside")
)
_SEPARATORS = frozenset(("and", "or", "plus", "both", ";", "&"))
# "right" between two of these is no side: "it is right at the top"
_BEFORE_JUST = frozenset(
    ("", "is", "are", "was", "lies", "sits", "located", "found", "visible", ",")
)
_AFTER_JUST = frozenset(("at", "in", "on", "by", "near", "next", "here", "there", "above", "below"))
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_AXIS_NAMES = {"row": 0, "rows": 0, "column": 1, "columns": 1, "col": 1}
_TOKEN = re.compile(r"[a-z]+|[0-9]+(?:st|nd|rd|th)?|[;,/&]")
_DIGITS = re.compile(r"[0-9]+")

# What a word says about (row, column): -1 the first, 1 the last, None nothing.
_SIDES: dict[str, tuple[int | None, int | None]] = {
    **dict.fromkeys(_TOP, (-1, None)),
    **dict.fromkeys(_BOTTOM, (1, None)),
    **dict.fromkeys(_LEFT, (None, -1)),
    **dict.fromkeys(_RIGHT, (None, 1)),
}
_SIDES |= {
    first + second: (row if row is not None else other_row, col if col is not None else other_col)
    for (first, (row, col)), (second, (other_row, other_col)) in product(
        list(_SIDES.items()), repeat=2
    )
    if (row is None) != (other_row is None)
}


def parse_cells(text: str, grid: Grid | str) -> frozenset[int] | None:
    """The cells a text names, or None when it names none. Never raises on any text.

    A side without the other axis lies in the middle of it ("top" on 3x3 is top center; on an even
    axis the middle is two cells wide). "Whole image" is every cell. A place that is denied ("not
    at the top"), outside the grid ("row 7 of 5") or counted on another grid is None, because a
    text must say where the defect is, not where it is not.
    """
    grid = as_grid(grid)
    if len(text) <= _CACHED_LENGTH:
        return _parse_cached(text, grid)
    return _parse(text, grid)


@dataclass
class _Reader:
    """Reads words from left to right: the place at hand, and the cells of those before it."""

    grid: Grid
    row: int | None = None
    col: int | None = None
    middle: bool = False
    found: set[int] = field(default_factory=set)
    everywhere: bool = False

    def side(self, row: int | None, col: int | None) -> None:
        """Row and column indices that a word names; a second value for an axis is a new place."""
        if (row is not None and self.row is not None) or (col is not None and self.col is not None):
            self.close()
        self.row = row if row is not None else self.row
        self.col = col if col is not None else self.col

    def centre(self) -> None:
        """A word for the middle of whichever axis is not named."""
        if self.row is not None and self.col is not None:
            self.close()
        self.middle = True

    def comma(self) -> None:
        """Ends a place that needs nothing more."""
        row_known = self.row is not None or self.grid.rows == 1
        col_known = self.col is not None or self.grid.cols == 1
        if self.middle or (row_known and col_known):
            self.close()

    def close(self) -> None:
        """The place at hand is whole; the next word begins another."""
        self.found.update(self._cells())
        self.row, self.col, self.middle = None, None, False

    def share(self, row: bool, col: int | None) -> None:
        """A word such as "and" ends a place, which may share its row with the next one ("upper left
        and right") or the next one's column ("upper and lower left")."""
        kept = self.row if row and self.row is not None and self.col is not None else None
        if self.row is not None and self.col is None:
            self.col = col
        self.close()
        self.row = kept

    def _cells(self) -> Iterator[int]:
        """The cells meant; none when the words concern only an axis that has a single part."""
        row_named, col_named = (
            self.row is not None or self.middle,
            self.col is not None or self.middle,
        )
        single = self.grid.cells == 1 and (row_named or col_named)
        if single or (row_named and self.grid.rows > 1) or (col_named and self.grid.cols > 1):
            for row in _span(self.row, self.grid.rows):
                for col in _span(self.col, self.grid.cols):
                    yield row * self.grid.cols + col


def _span(index: int | None, parts: int) -> range:
    """The parts of one axis: the one named, or its middle (two parts on an even axis)."""
    if index is not None:
        return range(index, index + 1)
    return range((parts - 1) // 2, parts // 2 + 1)


def _parse(text: str, grid: Grid) -> frozenset[int] | None:
    tokens = _TOKEN.findall(text.lower())
    if not _DENIALS.isdisjoint(tokens):
        return None
    reader = _Reader(grid)
    at = 0
    while at < len(tokens):
        token = tokens[at]
        numbered = _numbered(tokens, at, grid)
        if numbered is not None:
            axis, index, at = numbered
            if index is None:
                return None
            reader.side(*((index, None) if axis == 0 else (None, index)))
            continue
        if token == "right" and _is_just(tokens, at):
            pass
        elif token in _SIDES:
            reader.side(*(_end(side, grid, axis) for axis, side in enumerate(_SIDES[token])))
        elif token in _MIDDLE:
            reader.centre()
        elif token in (",", "/"):
            reader.comma()
        elif token in _SEPARATORS:
            reader.share(*_shared(tokens, at, grid))
        elif token in _EVERYWHERE:
            reader.everywhere = True
        at += 1
    reader.close()
    if reader.everywhere and not reader.found:
        return frozenset(range(grid.cells))
    return frozenset(reader.found) or None


_parse_cached = lru_cache(maxsize=4096)(_parse)


def _is_just(tokens: Sequence[str], at: int) -> bool:
    """Whether "right" means "just" here."""
    before = tokens[at - 1] if at else ""
    return before in _BEFORE_JUST and not _AFTER_JUST.isdisjoint(tokens[at + 1 : at + 2])


def _shared(tokens: Sequence[str], at: int, grid: Grid) -> tuple[bool, int | None]:
    """For places with nothing but a separator between their words: whether the second one leaves
    its row out, and the column that the first one leaves out."""
    nothing = (None, None)
    before = _SIDES.get(tokens[at - 1], nothing) if at else nothing
    after, then = (_SIDES.get(token, nothing) for token in (*tokens[at + 1 : at + 3], "", "")[:2])
    row = None not in (before[1], after[1]) and after[0] is None and then[0] is None
    col = after[1] if after[1] is not None else then[1] if then[0] is None else None
    shares_col = None not in (before[0], after[0], col) and before[1] is None
    return row, _end(col, grid, 1) if shares_col else None


def _end(side: int | None, grid: Grid, axis: int) -> int | None:
    """The index of the first (-1) or last (1) part of an axis."""
    return {None: None, -1: 0, 1: (grid.rows, grid.cols)[axis] - 1}[side]


def _numbered(tokens: Sequence[str], at: int, grid: Grid) -> tuple[int, int | None, int] | None:
    """The axis, index (None if outside) and next position for "row 2 of 5" or "second row"."""
    here, after = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else ""
    if here in _AXIS_NAMES and after.isdigit():
        axis, number = _AXIS_NAMES[here], _number(after)
    elif after in _AXIS_NAMES and _number(here) is not None:
        axis, number = _AXIS_NAMES[after], _number(here)
    else:
        return None
    at += 2
    parts = (grid.rows, grid.cols)[axis]
    inside = number is not None and 1 <= number <= parts
    if at + 1 < len(tokens) and tokens[at] == "of" and tokens[at + 1].isdigit():
        inside = inside and _number(tokens[at + 1]) == parts
        at += 2
    return axis, number - 1 if inside and number is not None else None, at


def _number(token: str) -> int | None:
    """The value of "3", "3rd" or "third"; None for any other word.

    Three digits are read: that is beyond any grid already, and thousands of them are no number.
    """
    if token in _ORDINALS:
        return _ORDINALS.index(token) + 1
    digits = _DIGITS.match(token)
    return int(digits[0][:3]) if digits else None


# --- masks to cells ----------------------------------------------------------------------------


def cells_from_mask(
    mask: np.ndarray, grid: Grid | str, rule: Rule = "centroid_largest"
) -> frozenset[int]:
    """The cells of a defect mask `[H, W]` (non-zero is defective); empty for an empty mask.

    `centroid_largest`  the centroid of the largest 8-connected component (the first in reading
                        order among equals)
    `centroid_all`      the centroid of all defective pixels
    `max_overlap`       the cell with the most defective pixels (the first among equals)
    `multi`             the centroids of the three largest components

    The papers do not say how a mask became a word. Raises DataError for a mask that is not 2-D and
    ConfigError for an unknown rule.
    """
    return cells_on(mask, [as_grid(grid)], rule)[0]


def cells_on(mask: np.ndarray, grids: Sequence[Grid], rule: Rule) -> list[frozenset[int]]:
    """`cells_from_mask` on several grids at once."""
    import numpy as np

    if rule not in get_args(Rule):
        raise ConfigError(f"grid.mask_rule={rule!r} is unknown. Use {', '.join(get_args(Rule))}.")
    defective = np.asarray(mask) != 0
    if defective.ndim != 2:
        raise DataError(f"a mask must be [height, width]; this one has shape {defective.shape}.")
    if not defective.any():
        return [frozenset()] * len(grids)
    if rule == "max_overlap":
        return [frozenset((int(np.bincount(_cells_of_pixels(defective, grid)).argmax()),))
                for grid in grids]  # fmt: skip
    centroids = _centroids(defective, together=rule == "centroid_all")
    kept = centroids[: _MULTI_LIMIT if rule == "multi" else 1]
    return [frozenset(grid.cell_at(x, y) for x, y in kept) for grid in grids]


def cells_touched(mask: np.ndarray, grid: Grid | str) -> frozenset[int]:
    """Every cell in which a defect mask `[H, W]` (non-zero is defective) has a pixel."""
    import numpy as np

    return frozenset(np.unique(_cells_of_pixels(mask, as_grid(grid))).tolist())


def _cells_of_pixels(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """The cell that the centre of each defective pixel lies in, in whole numbers: no rounding at
    borders."""
    (rows, cols), (height, width) = mask.nonzero(), mask.shape
    row, col = (2 * rows + 1) * grid.rows // (2 * height), (2 * cols + 1) * grid.cols // (2 * width)
    return row * grid.cols + col


def _centroids(defective: np.ndarray, together: bool) -> list[tuple[Fraction, Fraction]]:
    """(x, y) of the mean pixel centre of every 8-connected component, largest component first, or
    of all of them `together`; as exact shares of the image: no rounding at borders."""
    import numpy as np
    from scipy import ndimage

    rows, cols = (np.flatnonzero(defective.any(axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(cols[0])
    marked = defective[top : rows[-1] + 1, left : cols[-1] + 1]  # all around it is sound
    components = [marked]
    if not together:
        labels = np.zeros(marked.shape, dtype=np.int32)
        ndimage.label(marked, structure=np.ones((3, 3)), output=labels)
        sizes = np.bincount(labels.ravel())
        largest_first = sorted(range(1, len(sizes)), key=sizes.__getitem__, reverse=True)
        components = [labels == label for label in largest_first[:_MULTI_LIMIT]]
    return [_centroid(component, top, left, defective.shape) for component in components]


def _centroid(
    component: np.ndarray, top: int, left: int, shape: tuple[int, ...]
) -> tuple[Fraction, Fraction]:
    """Of the pixels of a part of an image of this shape."""
    height, width = shape
    rows, cols = component.nonzero()
    n = len(rows)
    x, y = (Fraction(2 * (int(at.sum()) + n * first) + n, 2 * n)
            for at, first in ((cols, left), (rows, top)))  # fmt: skip
    return x / width, y / height


# --- what a place is worth ---------------------------------------------------------------------


def location_score(
    predicted: str,
    actual: str,
    grid: Grid | str = "3x3",
    released: bool = False,
    neighbour_credit: float = 0.0,
) -> float:
    """Eq. 4: 1.0 if both texts name the same cells, else 0.0.

    `neighbour_credit` is paid instead of 0.0 when every cell of either text touches (corners
    included) a cell of the other and `predicted` names no more cells than `actual`, so naming the
    whole image never collects it. Text that names no place scores 0.0, against any other.

    `released=True` is IAD-R1's published matcher: 3x3 only, substrings ("slower" is lower), and
    "center" for any text without a keyword. Raises ConfigError if it is asked for another grid.
    """
    grid = as_grid(grid)
    if released:
        if grid != Grid(3, 3):
            raise ConfigError(f"the released location matcher knows only 3x3, not {grid}.")
        return float(_released_region(predicted) == _released_region(actual))
    said, true = parse_cells(predicted, grid), parse_cells(actual, grid)
    if said is None or true is None:
        return 0.0
    if said == true:
        return 1.0
    near = len(said) <= len(true) and _touch(said, true, grid) and _touch(true, said, grid)
    return neighbour_credit if near else 0.0


def _touch(cells: frozenset[int], others: frozenset[int], grid: Grid) -> bool:
    """Whether every cell is, or is next to, one of `others`."""
    return all(any(distance(cell, other, grid) <= 1 for other in others) for cell in cells)


def distance(cell: int, other: int, grid: Grid) -> int:
    """How many cells lie between two, the second one counted, corners being neighbours."""
    (row, col), (other_row, other_col) = divmod(cell, grid.cols), divmod(other, grid.cols)
    return max(abs(row - other_row), abs(col - other_col))


# The first keyword that the text contains decides; none of them is the middle, 1.
_RELEASED_ROWS = (("top", 0), ("upper", 0), ("bottom", 2), ("lower", 2))
_RELEASED_COLS = (("left", 0), ("right", 2))


def _released_region(text: str) -> tuple[int, int]:
    """IAD-R1's (row, column) of a text. Any text without a keyword is the center."""
    text = text.lower()
    row, col = (
        next((part for keyword, part in keywords if keyword in text), 1)
        for keywords in (_RELEASED_ROWS, _RELEASED_COLS)
    )
    return row, col
