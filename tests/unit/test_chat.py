"""Asking an outside model: against a real server that fails in every way that services do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from services import Service, body, served, words

from iad_r1.chat.client import Client, Messages, ServiceError, messages, p_yes, read, secret
from iad_r1.chat.replies import Replies, Reply, Token, Used
from iad_r1.errors import ConfigError, DataError
from iad_r1.settings.chat import Chat
from iad_r1.types import Conversation


@pytest.fixture
def service() -> Iterator[Service]:
    with served() as made:
        yield made


@pytest.fixture
def client(service: Service, tmp_path: Path) -> Callable[..., Client]:
    """Makes clients, each of a run of its own unless it is named."""
    made: list[str] = []

    def make(run: str | None = None, logprobs: bool = False, **more: Any) -> Client:
        given = {
            "model": "m", "base_url": service.url, "key": "NO_SUCH_KEY", "temperature": 0.0,
            "limit": "max_completion_tokens", "concurrency": 4, "timeout": 5.0,
            "retries": 3, "dollars_in": 1.0, "dollars_out": 10.0, "budget": None, "replies": None,
        }  # fmt: skip
        made.append(str(len(made)))
        file = tmp_path / "kept" / "replies.sqlite"
        return Client(Chat(**(given | more)), Replies(file, run or made[-1]), logprobs)

    return make


def asking(*texts: str) -> list[Callable[[], Messages]]:
    return [lambda text=text: [{"role": "user", "content": text}] for text in texts]


NAMES = [f"question {n}" for n in range(12)]


def said(client: Client, texts: list[str]) -> list[str]:
    found = sorted(client.ask(asking(*texts), 99), key=lambda pair: pair[0])
    return [reply.text for _, [reply] in found]


# --- many at once --------------------------------------------------------------------------------


def test_every_question_gets_its_own_reply_and_no_more_are_under_way_than_allowed(client, service):
    three = threading.Barrier(3)  # nobody is answered before three are waiting
    service.answer = lambda n, asked: (three.wait(20), (200, body(words(asked))))[1]
    asked = client(concurrency=3)
    assert said(asked, NAMES) == [f"said {name}" for name in NAMES]
    assert service.most == 3
    assert asked.spent.tokens_in == 12_000 and asked.spent.tokens_out == 120
    assert asked.spent.dollars == pytest.approx(12_000 / 1e6 * 1.0 + 120 / 1e6 * 10.0)
    assert service.asked[0]["max_completion_tokens"] == 99 and service.asked[0]["temperature"] == 0


def test_questions_are_taken_only_as_there_is_room(client):
    taken = []

    def questions() -> Iterator[Any]:
        for question in asking(*NAMES):
            taken.append(question)
            yield question

    replies = client(concurrency=2).ask(questions(), 99)
    next(replies)
    assert len(taken) == 4
    replies.close()


# --- faults of a service -------------------------------------------------------------------------

FAULTS: dict[str, tuple[int, bytes]] = {
    "too many requests": (429, b'{"error": {"message": "slow down"}}'),
    "a fault of the server": (500, b"oops"),
    "a gateway's page": (502, b"<html>bad gateway</html>"),
    "no JSON": (200, b"<html>welcome</html>"),
    "JSON that is cut off": (200, body("x")[:-30]),
    "nothing": (200, b""),
    "no choices": (200, b'{"choices": [], "usage": {}}'),
    "no text": (200, body(None)),
    "no usage": (200, body("x", usage=False)),
    "another JSON": (200, b'["hello"]'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_waited_out_and_counted(fault, client, service):
    service.answer = lambda n, asked: FAULTS[fault] if n == 0 else (200, body(words(asked)))
    asked = client()
    assert said(asked, ["a"]) == ["said a"]
    assert asked.spent.retries == 1 and asked.spent.replies == 1


@pytest.mark.parametrize("fault", ["no JSON", "a fault of the server"])
def test_a_fault_that_stays_ends_in_one_sentence_and_loses_no_reply(fault, client, service):
    service.answer = lambda n, asked: (
        FAULTS[fault] if words(asked) == "said bad" else (200, body(words(asked)))
    )
    with pytest.raises(ServiceError, match=r"m at http.*replies.sqlite: run again") as error:
        said(client(retries=1, concurrency=1), ["a", "b", "bad", "c"])
    assert "\n" not in str(error.value)
    before = len(service.asked)
    service.answer = lambda n, asked: (200, body(words(asked)))
    again = client()
    assert said(again, ["a", "b", "bad", "c"]) == ["said a", "said b", "said bad", "said c"]
    assert again.spent.kept >= 2 and len(service.asked) - before == again.spent.replies <= 2


def test_a_service_that_does_not_answer_in_time_is_given_up(client, service):
    waits = threading.Event()
    service.answer = lambda n, asked: (waits.wait(5), (200, body("late")))[1]
    with pytest.raises(ServiceError, match="timed out"):
        said(client(timeout=0.2, retries=0), ["a"])
    waits.set()


def test_nobody_at_the_address_ends_in_one_sentence(client):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(ServiceError, match="does not answer: Connection error"):
            said(client(base_url=url, retries=0), ["a"])


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_retry_mends_is_not_retried(status, client, service):
    service.answer = lambda n, asked: (status, b'{"error": {"message": "no such model"}}')
    with pytest.raises(ServiceError, match="no such model"):
        said(client(), ["a"])
    assert len(service.asked) == 1


# --- refusals, length, log-probs -----------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        (200, body(None, refusal="I cannot look at this.")),
        (200, body("", ended="content_filter")),
        (400, b'{"error": {"message": "filtered", "code": "content_filter"}}'),
    ],
)
def test_a_refusal_is_a_reply_that_is_counted(sent, client, service):
    service.answer = lambda n, asked: sent
    asked = client()
    ((_, [reply]),) = asked.ask(asking("a"), 99)
    assert reply.stop == "refused" and asked.spent.refused == 1


def test_a_reply_that_was_cut_off_says_so(client, service):
    service.answer = lambda n, asked: (200, body("long", ended="length"))
    ((_, [reply]),) = client().ask(asking("a"), 99)
    assert reply.stop == "length"


def token(text: str, **shares: float) -> dict[str, Any]:
    from math import log

    likeliest = [{"token": t, "logprob": log(p)} for t, p in shares.items()]
    return {"token": text, "logprob": 0.0, "top_logprobs": likeliest}


def test_p_yes_is_that_of_the_token_with_which_the_answer_begins(client, service):
    tokens = [
        token("<think>Yes", Yes=0.9), token("</think><answer", x=1.0),
        token(">", x=1.0), token("No", No=0.5, Yes=0.2, yes=0.1, Maybe=0.2), token("</answer>"),
    ]  # fmt: skip
    text = "".join(t["token"] for t in tokens)
    service.answer = lambda n, asked: (200, body(text, logprobs={"content": tokens}))
    ((_, [reply]),) = client(logprobs=True).ask(asking("a"), 99)
    assert p_yes(reply) == pytest.approx(0.3 / 0.8)
    assert service.asked[0]["logprobs"] is True and service.asked[0]["top_logprobs"] == 20


def test_p_yes_of_a_reply_without_tags_is_that_of_its_first_token():
    first = Token("Yes", {"Yes": -0.1, "No": -2.3})
    assert p_yes(Reply("Yes.", "stop", 1, 1, (first, Token(".", {})))) == pytest.approx(0.9, 1e-2)


def test_p_yes_is_unknown_without_log_probs_and_where_neither_word_is_likely():
    assert p_yes(Reply("Yes", "stop", 1, 1)) is None
    assert p_yes(Reply("Hm", "stop", 1, 1, (Token("Hm", {"Hm": 0.0}),))) is None


def test_log_probs_that_were_asked_and_do_not_come_are_no_reply():
    with pytest.raises(ValueError, match="logprobs=false"):
        read(body("Yes").decode(), logprobs=True)


# --- what is kept --------------------------------------------------------------------------------


def test_nothing_is_asked_twice_and_any_change_of_what_is_asked_is_asked_anew(client, service):
    said(client(), ["a", "b"])
    again = client()
    assert said(again, ["a", "b"]) == ["said a", "said b"]
    assert len(service.asked) == 2
    assert (again.spent.replies, again.spent.kept, again.spent.dollars) == (0, 2, 0)
    for change in (
        {"model": "other"},
        {"temperature": 0.5},
        {"limit": "max_tokens"},
    ):
        before = len(service.asked)
        said(client(**change), ["a"])
        assert len(service.asked) == before + 1, change


def test_what_is_asked_twice_at_the_same_time_is_paid_once(client, service):
    asked = client(concurrency=4)
    assert said(asked, ["a"] * 8) == ["said a"] * 8
    assert len(service.asked) == 1
    assert (asked.spent.replies, asked.spent.tokens_in) == (1, 1000)


def test_two_clients_share_a_file_of_replies(client, service):
    one, other = client(), client()
    said(one, NAMES)
    assert said(other, NAMES) == [f"said {name}" for name in NAMES]
    assert len(service.asked) == len(NAMES)


KILLED = """
import sys
from pathlib import Path
from iad_r1.chat.client import Client
from iad_r1.chat.replies import Replies, Reply, Token, Used
from iad_r1.settings.chat import Chat
client = Client(Chat.model_validate_json(sys.argv[1]), Replies(Path(sys.argv[2]), "killed"))
asked = [lambda n=n: [{"role": "user", "content": f"question {n}"}] for n in range(12)]
for number, _ in client.ask(asked, 99):
    print(number, flush=True)
"""


def test_a_killed_process_has_lost_no_reply_that_it_had_and_no_count(
    client, service, repository, tmp_path
):
    held = threading.Event()

    def answer(n: int, asked: dict[str, Any]) -> tuple[int, bytes]:
        if n == 0:
            return 500, b"oops"
        if n == 7:
            held.wait(30)
        return 200, body(None, refusal="No.") if n == 3 else body(words(asked))

    service.answer = answer
    settings = client(concurrency=1).settings
    replies = client().replies.path
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, settings.model_dump_json(), str(replies)],
        cwd=repository, env=dict(os.environ), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(6)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    held.set()
    assert len(seen) == 6
    again = client("killed")
    before = again.spent
    assert (before.replies, before.refused, before.retries) == (6, 1, 1)
    assert said(again, NAMES) == [f"said {name}" if name != NAMES[2] else "No." for name in NAMES]
    after = again.spent
    assert (after.replies, after.kept, after.refused, after.retries) == (12, 0, 1, 1)
    assert after.dollars == 2 * before.dollars == pytest.approx(12 * (1000 + 10 * 10) / 1e6)
    other = client()
    said(other, NAMES)
    assert (other.spent.kept, other.spent.refused, other.spent.dollars) == (12, 1, 0)


def test_what_was_used_is_summed_up_once_however_much_is_asked(tmp_path):
    """A budget asks before every question: 150,000 sums over 150,000 rows would take an hour."""
    replies, statements = Replies(tmp_path / "r.sqlite", "run"), list[str]()
    replies._file.set_trace_callback(statements.append)
    for number in range(6):
        asked = str(number % 4)
        if replies.find(asked) is None:
            replies.again(asked, number)
            replies.keep(asked, Reply("No", "refused" if number == 3 else "stop", 500, 7))
        replies.used()
    assert not [text for text in statements if "total(" in text]
    assert replies.used() == Used(4, 0, 0 + 1 + 2 + 3, 1, 2000, 28)
    assert Replies(tmp_path / "r.sqlite", "run").used() == replies.used()


def test_a_file_that_holds_no_replies_is_refused_and_named(tmp_path):
    file = tmp_path / "replies.sqlite"
    file.write_text("this is no database, and longer than its header would be" * 20)
    with pytest.raises(DataError, match=r"replies\.sqlite.*Move it away"):
        Replies(file, "a")


# --- money and keys ------------------------------------------------------------------------------


def test_a_budget_ends_the_asking_and_keeps_what_was_bought(client, service):
    each = 1000 / 1e6 + 10 * 10 / 1e6
    asked = client(budget=3 * each, concurrency=1)
    with pytest.raises(ServiceError, match=r"budget of 0\.0033 dollars is spent"):
        said(asked, NAMES)
    assert len(service.asked) == 3 == asked.spent.replies
    assert said(client(), NAMES[:3]) == [f"said {name}" for name in NAMES[:3]]
    assert len(service.asked) == 3


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    client, service, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    asked = client(key="MY_KEY")
    said(asked, ["a"])
    assert service.asked[0]["key"] == "Bearer sk-very-secret"
    asked.replies.close()
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"very-secret" not in file.read_bytes()
    assert "very-secret" not in asked.settings.model_dump_json()


def test_without_a_key_only_this_machine_is_asked(client):
    settings = client(key="NO_SUCH_KEY").settings
    assert secret(settings) == "none"
    elsewhere = settings.model_copy(update={"base_url": "https://api.example.com/v1"})
    with pytest.raises(ConfigError, match="export NO_SUCH_KEY="):
        secret(elsewhere)


# --- words and pictures --------------------------------------------------------------------------


def test_pictures_stand_where_the_words_have_them_and_lose_nothing():
    import base64
    import io

    shown = Image.effect_noise((9, 7), 60).convert("RGB")
    found = messages(Conversation("{image}\nIs it bad?", system="You inspect."), [shown])
    assert found[0] == {"role": "system", "content": "You inspect."}
    image, text = found[1]["content"]
    assert text == {"type": "text", "text": "\nIs it bad?"}
    sent = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(sent)).tobytes() == shown.tobytes()
