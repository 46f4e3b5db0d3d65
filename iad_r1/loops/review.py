"""The page of `stage=review`: an item of a build is read, then accepted, rejected or edited.

The browser says who reviews and which item is shown; what was decided is on disk. So a page that
was killed goes on where it was, and several reviewers may use one page, or several.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gradio

from iad_r1.data import images
from iad_r1.data.mix import Photo
from iad_r1.errors import DataError, IadError
from iad_r1.expert import review
from iad_r1.expert.filters import Alike
from iad_r1.expert.lists import rows
from iad_r1.expert.review import Decision, Decisions, Row, Text, Verdict
from iad_r1.grid import as_grid
from iad_r1.loops import expert_ad, pages
from iad_r1.loops.opening import check_same_data
from iad_r1.report import inspected, overlay, review_page
from iad_r1.settings.config import read
from iad_r1.settings.expert import ExpertSettings, ReviewSettings
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Sample

USER = "reviewer"  # the name beside the token
SIDE = 1024  # pixels of the longer side of a picture on the page
STATES = {"All": "all", "To do": "open", "Accepted": "accept", "Edited": "edit",
          "Rejected": "reject"}  # fmt: skip
UPLOAD = 1  # megabytes: nothing is dropped here


def write(build: RunFolder) -> None:
    """Write the lists and the card of a build as reviewers left them."""
    with build.locked():
        expert_ad.write_lists(read(build.config_file), build)


def run(stage: ReviewSettings, build: RunFolder, token: str | None) -> None:
    """Serve the page until Ctrl-C."""
    print("reading the data set that was written about ...", flush=True)
    with serving(Desk(build), stage, token) as address:
        pages.wait(address, USER, token)


class Items:
    """The items of a build in their order, each read from its file when it is asked for."""

    def __init__(self, drafts: Path) -> None:
        self.drafts = drafts
        self._starts: list[int] = []
        self.ids: list[str] = []
        with drafts.open("rb") as file:
            start = 0
            for line in file:
                row = json.loads(line)
                if not row["rejected"]:
                    self._starts.append(start)
                    self.ids.append(row["id"])
                start += len(line)
        self._numbers = {id: number for number, id in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def number(self, id: str) -> int:
        """Where an item stands. DataError if there is none of that id."""
        if id not in self._numbers:
            raise DataError("No item is shown. Choose others above.")
        return self._numbers[id]

    def row(self, number: int) -> Row:
        """The line of an item."""
        with self.drafts.open("rb") as file:
            file.seek(self._starts[number])
            return json.loads(file.readline())


class Desk:
    """What the page asks: items, decisions, and what an edit breaks."""

    def __init__(self, build: RunFolder) -> None:
        config = read(build.config_file)
        assert isinstance(config.stage, ExpertSettings)
        self.build, self.grid = build, str(as_grid(config.grid))
        self.rules, self.alike = expert_ad.rules(config), config.stage.alike
        self.base = expert_ad.base_of(config, build)
        photos: dict[str, Photo] = {}
        check_same_data(build, expert_ad.read_data(config, photos))
        self.samples: dict[str, Sample] = {id: photo.sample for id, photo in photos.items()}
        self.drafts = build.path / expert_ad.DRAFTS
        self.items = Items(self.drafts)
        self.decisions = Decisions(build.path / review.FOLDER)
        review.outcomes_of(rows(self.drafts), self.decisions.standing())

    # --- what a reviewer does ---

    def enter(self, typed: str, state: str) -> tuple[Any, ...]:
        """A name was typed, or is known from before: the first item that is to do."""
        try:
            name = review.named(typed, self.decisions.standing())
        except DataError as error:
            return self._refused(str(error))
        own = self.decisions.standing().get(name, {})
        to_do = (number for number, id in enumerate(self.items.ids) if id not in own)
        return self._shown(name, state, self._from(name, state, next(to_do, 0), 1))

    def load(self, stored: str, state: str) -> tuple[Any, ...]:
        """The page was opened, by somebody whose name the browser knows, or nobody."""
        return self.enter(stored, state) if stored else self._refused("")

    def choose(self, name: str, state: str, at: str) -> tuple[Any, ...]:
        """Items of a state are asked for: this one if it is of them, else the next one."""
        start = self.items.number(at) if at else 0
        number = self._from(name, state, start, 1)
        return self._shown(name, state, self._from(name, state, 0, 1) if number is None else number)

    def step(self, by: int, name: str, state: str, at: str) -> tuple[Any, ...]:
        """Forth (1) or back (-1)."""
        try:
            number = self._from(name, state, self.items.number(at) + by, by)
        except DataError as error:
            return self._refused(str(error))
        if number is None:
            return self._refused("This is the last one." if by > 0 else "This is the first one.")
        return self._shown(name, state, number)

    def decide(
        self, verdict: Verdict, name: str, state: str, at: str, reason: str, *text: str
    ) -> tuple[Any, ...]:
        """Keep a decision about the item that was shown, and go on. What an edit breaks is said,
        and it is not kept."""
        try:
            name = review.named(name, self.decisions.standing())
            number = self.items.number(at)
            row = self.items.row(number)
            decision = self._decision(verdict, row, reason, text)
            review.append(self.decisions.folder, name, decision)
        except IadError as error:
            return self._refused(str(error))
        except OSError as error:
            return self._refused(f"This was not kept: {error.strerror}. Make room, and try again.")
        return self._after(name, state, number)

    # --- deciding ---

    def _decision(self, verdict: Verdict, row: Row, reason: str, text: Sequence[str]) -> Decision:
        said = None
        if verdict == "edit":
            description, reasoning, kind = (part.strip() for part in text)
            said = Text(description, reasoning, None if row["location"] is None else kind)
            self._check(row, said)
        if verdict == "reject" and not reason.strip():
            raise DataError("Say why it is rejected.")
        why = reason.strip() if verdict == "reject" else None
        return Decision(row["id"], review.digest(row), verdict, time.time(), why, said)

    def _check(self, row: Row, text: Text) -> None:
        """DataError that says what an edit breaks."""
        if text == review.text_of(row):
            raise DataError("Nothing is changed. Accept it, or cancel.")
        new = review.edited(row, text)
        wrong = review.broken(new, self.grid, self.rules)
        if not wrong and (twin := self._twin(new)) is not None:
            wrong = [twin]
        if wrong:
            said = "; ".join(f"{why.reason} ({why.found})" for why in wrong)
            raise DataError(f"A filter refuses this text: {said}.")

    def _twin(self, new: Row) -> Any:
        """The item whose text an edited one nearly equals."""
        near = Alike(self.alike)
        for row in rows(self.drafts):
            others = row["id"] != new["id"] and not row["rejected"]
            if others and review.about(row) == review.about(new):
                near.add(row["id"], review.about(row), row["reasoning"])
        return near.find(review.about(new), new["reasoning"])

    # --- going on ---

    def _from(self, name: str, state: str, start: int, by: int) -> int | None:
        """The first item of a state from number `start` on, in steps of `by`."""
        own = self.decisions.standing().get(name, {})
        number = start
        while 0 <= number < len(self.items):
            decision = own.get(self.items.ids[number])
            if state == "all" or state == ("open" if decision is None else decision.verdict):
                return number
            number += by
        return None

    def _after(self, name: str, state: str, number: int) -> tuple[Any, ...]:
        """What is shown after a decision: the next of the state, else the first that is to do, else
        the last of the state."""
        following = self._from(name, state, number + 1, 1)
        if following is None and state in ("all", "open"):
            following = self._from(name, "open", 0, 1)
        if following is None:
            following = self._from(name, state, number, -1)
        return self._shown(name, state, following)

    # --- what is shown ---

    def _refused(self, why: str) -> tuple[Any, ...]:
        """All stays as it is, but for what is said."""
        return (*[gradio.skip()] * (len(OUTPUTS) - 1), review_page.notice(why))

    def _shown(self, name: str, state: str, number: int | None) -> tuple[Any, ...]:
        """The values of `OUTPUTS`."""
        standing = self.decisions.standing()
        own = standing.get(name, {})
        head = review_page.head(name, len(self.items), list(own.values()))
        team = review_page.team(standing, self.decisions.times())
        if number is None:
            empty = review_page.empty(all_done=state == "open")
            return name, name, "", head, empty, "", "", gradio.update(), "", team, ""
        row = self.items.row(number)
        decision = own.get(row["id"])
        item = review_page.item(row, number, len(self.items), decision, *self._pictures(row))
        text = (decision and decision.text) or review.text_of(row)
        kind = gradio.update(value=text.type or "", visible=text.type is not None)
        reason = (decision and decision.reason) or ""
        return (name, name, row["id"], head, item, text.description, text.reasoning, kind,
                reason, team, "")  # fmt: skip

    def _pictures(self, row: Row) -> Iterator[review_page.Picture]:
        """The item's, with the outline of its mask, and the good one beside it."""
        yield _picture(lambda: self._marked(row))
        file = self.base / row["reference"]["picture"]
        yield _picture(lambda: (images.upright(file), ""))

    def _marked(self, row: Row) -> tuple[Any, str]:
        sample = self.samples[row["id"]]
        mask = images.open_mask(sample)
        return images.open_image(sample), "" if mask is None else overlay.outline(mask)


def _picture(opened: Any) -> review_page.Picture:
    """For the page; one that cannot be read says so in its place."""
    try:
        picture, outline = opened()
    except IadError as error:
        return review_page.Picture(None, (1, 1), "", str(error))
    size = picture.size
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=inspected.QUALITY)
    return review_page.Picture(overlay.data_uri(buffer.getvalue()), size, outline, None)


# --- the page ------------------------------------------------------------------------------------

# what `Desk` answers: kept in the browser, who reviews, which item; then what is seen
OUTPUTS = ("stored", "who", "at", "head", "item", "description", "reasoning", "type", "reason",
           "team", "notice")  # fmt: skip
DONE = "() => iadReview.done()"


def serving(desk: Desk, stage: ReviewSettings, token: str | None) -> Any:
    """Inside, the page is served, at the address that is given."""
    style, script = review_page.style(), review_page.script()
    return pages.serving(lambda: build(desk), stage, USER, token, style, UPLOAD, script)


def build(desk: Desk) -> gradio.Blocks:
    """The page itself."""
    made: dict[str, Any] = {}
    with gradio.Blocks(title="Review", analytics_enabled=False) as page:
        made["stored"] = gradio.BrowserState("", storage_key="iad_r1.reviewer", secret="reviewer")
        for key in ("who", "at"):
            made[key] = gradio.Textbox(visible="hidden", elem_id=f"iad-{key}")
        with gradio.Column(elem_id="iad-name"):
            gradio.Markdown("# Review\nYour decisions are kept under your name.")
            typed = gradio.Textbox(label="Your name", max_lines=1, max_length=60)
            enter = gradio.Button("Review", variant="primary")
        with gradio.Column(elem_id="iad-review"):
            made["head"] = gradio.HTML(js_on_load=None)
            with gradio.Row(elem_id="iad-bar"):
                state = gradio.Radio(
                    list(STATES.items()), value="all", label="Items", elem_id="iad-states",
                    container=False, show_label=False,
                )  # fmt: skip
                other = gradio.Button("Another reviewer", size="sm", elem_id="iad-other")
            made["item"] = gradio.HTML(js_on_load=None, elem_id="iad-item")
            with gradio.Row(elem_id="iad-actions"):
                shown = {key: _button(key) for key in ("back", "next", "mask")}
                shown |= {key: _button(key) for key in ("accept", "edit", "reject")}
            with gradio.Column(elem_id="iad-rejecting"):
                made["reason"] = gradio.Textbox(label="Why it is rejected", max_lines=1)
                with gradio.Row():
                    rejected = gradio.Button("Reject (Enter)", variant="stop", size="sm")
                    cancel = [gradio.Button("Cancel (Esc)", size="sm")]
            with gradio.Column(elem_id="iad-editing"):
                made["description"] = gradio.Textbox(label="Description", lines=3)
                made["reasoning"] = gradio.Textbox(label="Reasoning", lines=5)
                made["type"] = gradio.Textbox(label="Type", max_lines=1)
                with gradio.Row():
                    taken = gradio.Button("Take the edit (Ctrl+Enter)", variant="primary",
                                          size="sm", elem_id="iad-take")  # fmt: skip
                    cancel.append(gradio.Button("Cancel (Esc)", size="sm"))
        made["notice"] = gradio.HTML(js_on_load=None, elem_id="iad-notice")
        made["team"] = gradio.HTML(js_on_load=None, elem_id="iad-team")

        outputs = [made[key] for key in OUTPUTS]
        here, text = [made["who"], state, made["at"]], [made[key] for key in ("description",
                                                        "reasoning", "type")]  # fmt: skip

        def asks(event: Any, answer: Any, inputs: Sequence[Any]) -> None:
            event(answer, inputs, outputs, api_visibility="private", show_progress="hidden").then(
                None, js=DONE
            )

        asks(page.load, desk.load, [made["stored"], state])
        for event in (typed.submit, enter.click):
            asks(event, desk.enter, [typed, state])
        asks(state.input, desk.choose, here)
        for key, by in (("back", -1), ("next", 1)):
            asks(shown[key].click, partial(desk.step, by), here)
        asks(shown["accept"].click, partial(desk.decide, "accept"), [*here, made["reason"]])
        for event in (rejected.click, made["reason"].submit):
            asks(event, partial(desk.decide, "reject"), [*here, made["reason"]])
        asks(taken.click, partial(desk.decide, "edit"), [*here, made["reason"], *text])
        for key, mode in (("edit", "editing"), ("reject", "rejecting")):
            shown[key].click(None, js=f"() => iadReview.mode('{mode}')")
        for button in cancel:
            button.click(None, js="() => iadReview.mode('reading')")
        other.click(None, js="() => iadReview.mode('naming')")
        shown["mask"].click(None, js="() => iadReview.mask()")
    return page


_BUTTONS: dict[str, tuple[str, Literal["primary", "secondary", "stop"]]] = {
    "back": ("← Back", "secondary"),
    "next": ("Next →", "secondary"),
    "mask": ("Mask (M)", "secondary"),
    "accept": ("Accept (A)", "primary"),
    "edit": ("Edit (E)", "secondary"),
    "reject": ("Reject (R)", "stop"),
}


def _button(key: str) -> gradio.Button:
    """One of those below an item, with its key."""
    text, variant = _BUTTONS[key]
    return gradio.Button(text, variant=variant, elem_id=f"iad-{key}", size="sm", min_width=80)
