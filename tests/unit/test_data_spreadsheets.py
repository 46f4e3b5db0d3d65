"""What a spreadsheet has made numbers and dates of is put back where names on the disk tell, or it
is refused with the row."""

from __future__ import annotations

import csv
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_huggingface import read, told

from iad_r1.data import spreadsheets
from iad_r1.errors import DataError

HEADER = ("image", "product", "split", "label", "mask", "defect_type")
# 1-2, typed on some day of 2026, as programs of several countries and pandas show it
SHOWN = ("02-Jan", "01-Feb", "Feb-01", "01. Feb", "2026-02-01", "01.02.2026", "1/2/2026", "2/1/26",
         "2026-02-01 00:00:00", "2026-02-01T00:00:00.000")  # fmt: skip


def write(root: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    """A table of image, product, label and type, with a file for each picture that has an end."""
    root.mkdir(exist_ok=True)
    with (root / "meta.csv").open("w", newline="", encoding="utf-8") as out:
        lines = csv.writer(out)
        lines.writerow(HEADER)
        for image, product, label, kind in rows:
            lines.writerow((image, product, "train", label, "", kind))
            if Path(image).suffix == ".png":
                empty(root / image)
    return root


def empty(path: Path) -> None:
    """Whoever opens it notices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@given(st.dates(date(2000, 1, 1), date(2029, 12, 31)), st.sampled_from("-._ "), st.booleans())
def test_a_date_is_known_again_in_every_form_that_spreadsheets_write(day, mark, turned):
    typed = mark.join(map(str, (day.month, day.day) if turned else (day.day, day.month)))
    other = f"{day.day % 28 + 1}-{day.month % 12 + 1}"
    forms = ("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d-%b", "%b-%d", "%d. %B", "%d-%b-%Y",
             "%Y-%m-%d 00:00:00")  # fmt: skip
    for form in forms:
        shown = day.strftime(form)
        assert spreadsheets.is_date(shown), shown
        found = spreadsheets.meant(shown, [typed, "bolt", f"{typed}-{day.year}", "line 3"])
        assert typed in found and not {"bolt", "line 3"} & set(found), shown
        if {day.day, day.month} != {day.day % 28 + 1, day.month % 12 + 1}:
            assert not spreadsheets.meant(shown, [other])


@given(st.integers(0, 99999), st.integers(1, 9))
def test_a_number_is_known_again_without_its_zeros(number, width):
    typed = f"{number:0{width}}"
    for shown in (str(number), f"{number}.0"):
        assert spreadsheets.meant(shown, [typed, str(number + 1), f"a{number}"]) == [typed]


@pytest.mark.parametrize(
    "name",
    ["bolt", "1-2", "1/2", "bolt 3", "a-12", "M6", "12.5", "10.20.30", "line 2026", "may",
     "PCB-2021-A", "2026-13-45", "marker 3", "janus-2", "part 7-11", "mar_3", "001", ""],
)  # fmt: skip
def test_what_is_no_date_is_left_alone(name):
    assert not spreadsheets.is_date(name)


def test_a_date_of_another_year_is_another_one():
    typed = ["1-2", "1-2-26", "2026-1-2", "1-2-25"]
    assert spreadsheets.meant("2026-02-01", typed) == typed[:3]
    assert spreadsheets.meant("02-Jan", typed) == typed[:1]


def test_long_numbers_are_known_by_the_digits_that_are_left():
    typed = ["20231027120000123456", "20241027120000123456", "12e4"]
    assert spreadsheets.meant("2.02E+19", typed) == [*typed[:1], *typed[1:2]]
    assert spreadsheets.meant("2.023E+19", typed) == typed[:1]
    assert spreadsheets.meant("1.20E+05", typed) == typed[2:]


@pytest.mark.parametrize("shown", SHOWN[:2] + SHOWN[4:7])
def test_products_and_types_are_what_the_folders_of_their_pictures_say(shown, tmp_path):
    root = write(
        tmp_path / "parts",
        [("1-2/good/a.png", shown, "0", ""), ("1-2/007/b.png", shown, "1", "7"),
         ("elsewhere/c.png", shown, "0", ""), ("bolt/d.png", "bolt", "0", "")],
    )  # fmt: skip
    found = read(root)
    assert [s.product for s in found] == ["1-2", "1-2", "1-2", "bolt"]
    assert found[1].solution.type == "007"
    said = told(root).announce()
    assert f"product {shown!r} read as '1-2' in 3 rows, as their folders are called" in said
    assert "defect_type '7' read as '007' in 1 rows" in said


def test_a_product_that_is_called_as_its_folder_is_not_changed(tmp_path):
    names = ("1", "2026-02-01")
    rows = [(f"{name}/{label}.png", name, label, "") for name in names for label in "01"]
    root = write(tmp_path / "parts", rows)
    assert {s.product for s in read(root)} == set(names)
    assert "read as" not in told(root).announce()
    rows = [(f"pictures/{i}.png", str(i), "0", "") for i in range(3)]
    assert {s.product for s in read(write(tmp_path / "others", rows))} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("rows", "say"),
    [
        ([("a.png", "02-Jan", "0", "")], r"meta\.csv, line 2: product='02-Jan' is a date: a"),
        ([("a.png", "bolt", "1", "2026-03-01")], r"line 2: defect_type='2026-03-01' is a date"),
        ([("01/a.png", "1", "0", ""), ("001/b.png", "1", "0", ""), ("c.png", "1", "0", "")],
         r"line 4: product='1' may be 001 or 01"),
        ([("7", "bolt", "0", "")], r"line 2: image='7' names none of .* as text"),
        ([("02-Jan", "bolt", "0", "")], r"line 2: image='02-Jan' names none of the pictures"),
        ([("good/02-Jan", "bolt", "0", ""), ("good/1-2.png", "b", "0", ""),
          ("good/2-1.png", "b", "0", "")], r"line 2: image='good/02-Jan' may be 1-2\.png or 2"),
    ],
)  # fmt: skip
def test_what_nothing_tells_is_refused_with_the_row(rows, say, tmp_path):
    with pytest.raises(DataError, match=say):
        read(write(tmp_path / "parts", rows))


@pytest.mark.parametrize(
    ("shown", "there"),
    [("good/7", "good/007.png"), ("good/frame", "good/frame.JPG"), ("7", "0007.bmp"),
     *((shown, "1-2.png") for shown in SHOWN), ("7.0", "07.tif")],
)  # fmt: skip
def test_a_picture_whose_name_was_changed_or_has_no_end_is_found(shown, there, tmp_path):
    root = write(tmp_path / "parts", [(shown, "bolt", "0", "")])
    empty(root / there)
    empty(root / "good" / "another.png")
    assert [s.image for s in read(root)] == [root / there]
