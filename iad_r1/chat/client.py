"""Many conversations with one outside model at once.

The `openai` client retries what may pass: no connection, time-outs, 408, 409, 429 and 5xx, with
back-off, for as long as the service asks. Here a reply that is no reply is retried too.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from threading import Condition
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from iad_r1.chat.replies import Replies, Reply, Token, Used, key
from iad_r1.errors import ConfigError, IadError
from iad_r1.settings.chat import Chat
from iad_r1.types import Conversation

ANSWER = "<answer>"
LIKELIEST = 20  # alternatives asked for at each token: the most that OpenAI gives
FILTERED = ("content_filter", "content_policy_violation", "data_inspection_failed")  # by code
NO_KEY = "none"  # what a server of one's own is told, which asks for none
Messages = Sequence[Mapping[str, Any]]


class ServiceError(IadError, RuntimeError):
    """An outside model could not be asked, or may not be: the budget is spent."""


@dataclass(frozen=True)
class Spent(Used):
    """What asking has cost a run so far."""

    dollars: float

    def in_words(self) -> str:
        """One line about it."""
        cost = f", {self.dollars:.4g} dollars" if self.dollars else ""
        return (
            f"{self.replies:,} replies ({self.kept:,} more were kept from before), "
            f"{self.refused:,} refusals, {self.retries:,} requests again; "
            f"{self.tokens_in:,} tokens in and {self.tokens_out:,} out{cost}"
        )


class Client:
    """Asks one model, and keeps what it says, and what that costs, in `replies`.

    Args:
        logprobs: ask for those of each token.
        form: the `response_format` that replies have to be in.

    ConfigError if the environment has no key for a service that needs one.
    """

    def __init__(
        self,
        settings: Chat,
        replies: Replies,
        logprobs: bool = False,
        form: Mapping[str, Any] | None = None,
    ) -> None:
        import openai

        self.settings, self.logprobs, self.form = settings, logprobs, form
        self.replies = replies
        self._turn, self._under_way = Condition(), set[str]()
        self._service = openai.OpenAI(
            api_key=secret(settings),
            base_url=settings.base_url,
            timeout=settings.timeout,
            max_retries=settings.retries,
        )

    @property
    def spent(self) -> Spent:
        """What the run has cost, in this process and those before it."""
        used, settings = self.replies.used(), self.settings
        dollars_in = used.tokens_in / 1e6 * (settings.dollars_in or 0)
        dollars_out = used.tokens_out / 1e6 * (settings.dollars_out or 0)
        return Spent(**asdict(used), dollars=dollars_in + dollars_out)

    def ask(
        self, asked: Iterable[Callable[[], Messages]], max_tokens: int, draws: int = 1
    ) -> Iterator[tuple[int, list[Reply]]]:
        """(number of the conversation, what was said) as they are finished, in any order.

        Conversations are taken from `asked` as there is room, and made by the threads that ask,
        for their pictures take long to encode. Each is asked `draws` times, one after the other.

        ServiceError if one cannot be had; those that are under way are waited for and kept.
        """
        numbered = enumerate(asked)
        waiting: dict[Future[list[Reply]], int] = {}
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            try:
                while True:
                    room = 2 * self.settings.concurrency - len(waiting)
                    for number, messages in islice(numbered, room):
                        job = pool.submit(self._replies, messages, max_tokens, draws)
                        waiting[job] = number
                    if not waiting:
                        return
                    for job in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield waiting.pop(job), job.result()
            finally:
                for job in waiting:
                    job.cancel()

    def _replies(
        self, messages: Callable[[], Messages], max_tokens: int, draws: int
    ) -> list[Reply]:
        settings = self.settings
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": messages(),
            settings.limit: max_tokens,
        }
        if settings.temperature is not None:
            request["temperature"] = settings.temperature
        if self.logprobs:
            request |= {"logprobs": True, "top_logprobs": LIKELIEST}
        if self.form is not None:
            request["response_format"] = self.form
        return [self._reply(request, draw) for draw in range(draws)]

    def _reply(self, request: Mapping[str, Any], draw: int) -> Reply:
        number = {"draw": draw} if draw else {}
        asked = key({**request, "base_url": self.settings.base_url, **number})
        with self._turn:  # who asks the same at the same time waits, and finds the reply
            self._turn.wait_for(lambda: asked not in self._under_way)
            self._under_way.add(asked)
        try:
            found = self.replies.find(asked)
            if found is None:
                self._check_budget()
                found = self._request(request, asked)
                self.replies.keep(asked, found)
            return found
        finally:
            with self._turn:
                self._under_way.remove(asked)
                self._turn.notify_all()

    def _request(self, request: Mapping[str, Any], asked: str) -> Reply:
        """One reply of the service; one that cannot be read is asked for again."""
        import openai

        problem = ""
        for attempt in range(self.settings.retries + 1):
            if attempt:
                self.replies.again(asked)
                time.sleep(min(0.5 * 2 ** (attempt - 1), 8))
            try:
                raw = self._service.chat.completions.with_raw_response.create(**request)
                if raw.retries_taken:
                    self.replies.again(asked, raw.retries_taken)
                return read(raw.text, self.logprobs)
            except openai.BadRequestError as error:
                if error.code in FILTERED:
                    return Reply("", "refused", 0, 0)
                raise self._failed(error) from None
            except openai.OpenAIError as error:  # the client has retried already
                raise self._failed(error) from None
            except ValueError as error:
                problem = str(error)
        raise ServiceError(
            f"{self._name}: {self.settings.retries + 1} replies in a row are none ({problem}). "
            f"{self._kept}"
        )

    @property
    def _name(self) -> str:
        return f"{self.settings.model} at {self.settings.base_url}"

    @property
    def _kept(self) -> str:
        return f"What was answered is in {self.replies.path}: run again, and it is not asked again."

    def _failed(self, error: Exception) -> ServiceError:
        return ServiceError(f"{self._name} does not answer: {error} {self._kept}")

    def _check_budget(self) -> None:
        budget = self.settings.budget
        if budget is not None and (spent := self.spent.dollars) >= budget:
            raise ServiceError(
                f"{self._name}: the budget of {budget:g} dollars is spent ({spent:.4g}). "
                f"{self._kept} Set a larger budget to go on."
            )


def require(settings: Chat) -> None:
    """ConfigError unless the service can be asked: its client is installed, and there is a key."""
    if find_spec("openai") is None:
        raise ConfigError(
            "outside models are asked through the package openai, which is not installed. Type: "
            'pip install "iad_r1[api]".'
        )
    secret(settings)


def secret(settings: Chat) -> str:
    """The key of the service, from the environment. ConfigError if there is none, but for a server
    on this machine."""
    found = os.environ.get(settings.key)
    if found:
        return found
    if urlsplit(settings.base_url).hostname in ("127.0.0.1", "localhost", "::1"):
        return NO_KEY
    raise ConfigError(
        f"{settings.base_url} needs a key, and the environment has no {settings.key}. Type: export "
        f"{settings.key}=<your key>. A key is never read from settings, which are written down."
    )


def read(text: str, logprobs: bool) -> Reply:
    """The reply in the JSON that a service sent. ValueError that says what is missing."""
    body = json.loads(text)
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        message, ended = choice["message"], choice["finish_reason"]
        words = message.get("content")
        refused = message.get("refusal") or ended == "content_filter"
        tokens = (choice.get("logprobs") or {}).get("content") or []
        likeliest = tuple(
            Token(t["token"], {o["token"]: o["logprob"] for o in t["top_logprobs"]}) for t in tokens
        )
        spent = usage["prompt_tokens"], usage["completion_tokens"]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}") from None
    if refused:
        return Reply(str(message.get("refusal") or words or ""), "refused", *spent)
    if not isinstance(words, str):
        raise ValueError("it has no text")
    if logprobs and words and not likeliest:
        raise ValueError("it has no log-probs; set logprobs=false for a service without them")
    return Reply(words, "length" if ended == "length" else "stop", *spent, likeliest)


def picture(image: Image.Image) -> dict[str, Any]:
    """The part of a message that shows a picture, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def messages(conversation: Conversation, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """A rendered prompt, its pictures where its words have `{image}`."""
    shown, parts = iter(images), []
    for number, words in enumerate(conversation.text.split("{image}")):
        parts += [picture(next(shown))] if number else []
        parts += [{"type": "text", "text": words}] if words.strip() else []
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return [*system, {"role": "user", "content": parts}]


def p_yes(reply: Reply) -> float | None:
    """P("Yes") against P("No"), in any case, of the token with which the answer begins; None
    without log-probs, or if none of the likeliest tokens is either.

    The answer begins behind `<answer>`, or with the reply if that has no tags. What the service
    does not list counts as nothing, so a share below its cut is lost.
    """
    at = reply.text.find(ANSWER)
    begins, end = at + len(ANSWER) if at >= 0 else 0, 0
    for token in reply.tokens:
        end += len(token.text)
        if end > begins and reply.text[begins:end].strip():
            shares = {"yes": 0.0, "no": 0.0}
            for text, logprob in token.likeliest.items():
                word = text.rpartition(">")[2].strip().lower()
                if word in shares:
                    shares[word] += math.exp(logprob)
            total = sum(shares.values())
            return shares["yes"] / total if total else None
    return None
