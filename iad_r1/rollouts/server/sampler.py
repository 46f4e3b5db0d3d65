"""The server sampler: vLLM servers on GPUs or hosts of their own, asked over HTTP.

A prompt is given as unexpanded token ids with the very pictures the trainer encodes, as PNG, which
loses nothing; what a server makes of it comes back with each answer and is compared. Weights are
pushed with `weight_push` and carry a version. A server says with each token which version drew it,
so that one that was started again is found out: it is given the weights anew before it is asked,
and answers of any other version are thrown away.
"""

from __future__ import annotations

import base64
import io
import queue
import secrets
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor, nn

from iad_r1.backbones.backbone import Backbone, Prompt
from iad_r1.errors import ConfigError, IadError, MismatchError, TrainingError
from iad_r1.processes import distributed
from iad_r1.rollouts.colocate.sampler import (
    IN_FLIGHT,
    Change,
    as_completion,
    check_ids,
    check_length,
    sampling_options,
)
from iad_r1.rollouts.colocate.weights import hub_weights
from iad_r1.rollouts.sampling import Sampler, Sampling, Seed
from iad_r1.rollouts.server.client import Gone, Server, Stopped
from iad_r1.rollouts.server.push import push, reset, rpc
from iad_r1.settings.config import Config
from iad_r1.settings.rollout import VllmServerRollout
from iad_r1.types import Completion

T = TypeVar("T")
ATTEMPTS = 3  # to give weights to a server that goes away meanwhile
MOST_THREADS = 256  # requests that one rank has under way at one server


@dataclass(frozen=True)
class Served:
    """What a run wants of its servers: the `name` they go by, and the `command` that starts one."""

    name: str
    command: str


def served(config: Config, tiles: int | None) -> Served:
    """A server's name says which model it runs, in which precision and with which picture sizes.

    `tiles`: the limit that its own processor has to know (`tile_limit`).
    """
    backbone, kind, precision = config.backbone, config.weights.name, config.engine.precision
    chosen = f"backbone={backbone.name} weights={kind} engine.precision={precision}"
    if tiles is not None:
        chosen += f" grpo.max_pixels={tiles}"
    return Served(chosen, f"python run.py stage=serve rollout=vllm_server {chosen}")


class ServerSampler(Sampler):
    """vLLM servers that several ranks share.

    Args:
        backbone: whose weights the servers are given and whose processor encodes prompts.
        settings: of `rollout=vllm_server`.
        wanted: which model the servers have to run.
    """

    shared = True  # by all ranks

    def __init__(self, backbone: Backbone, settings: VllmServerRollout, wanted: Served) -> None:
        self.backbone, self.settings, self.wanted = backbone, settings, wanted
        self.servers = [Server(url, settings.patience, wanted.command) for url in settings.servers]
        self.sums: dict[str, float] | None = None  # of the weights as they were last sent
        self.version = ""  # of those weights, on every rank
        self.thrown = 0  # answers that were not of that version
        self._change: Change | None = None
        self._run, self._syncs = secrets.token_hex(8), 0
        self._restoring = threading.Lock()
        self._desks: set[_Desk] = set()  # of the calls that are under way
        self._moving = self._closed = False

    def stream(
        self, asked: Iterable[tuple[Prompt, Seed]], sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(number of the prompt, its G completions), in the order in which they are finished.

        Prompts are taken from `asked` as the servers have room for them, and go to whichever
        server is free.
        """
        if self.sums is None:
            raise MismatchError(
                "the rollout servers were asked before they were given weights. Call "
                "sampler.sync() first; this is a fault of ours."
            )
        waiting: dict[int, Prompt] = {}
        desk = _Desk(self.servers, self._room(sampling.group_size), self._answer)
        self._desks.add(desk)
        try:
            if self._closed:
                raise Stopped
            for index, (prompt, seed) in enumerate(asked):
                waiting[index] = prompt
                desk.put(index, self._request(prompt, sampling, seed))
                while len(waiting) >= desk.room or (waiting and desk.has_answer()):
                    yield self._next(desk, waiting)
            while waiting:
                yield self._next(desk, waiting)
        finally:
            desk.close()
            self._desks.discard(desk)

    def sync(self, change: Change | None = None) -> None:
        """Send the trainer's weights as they are now to all servers; every rank calls it at the
        same place, and rank 0 sends.

        Args:
            change: what to send instead of a weight, by its name on the hub (the parity gate's
                probe); None: the weight itself.

        MismatchError names every weight that has no counterpart on the other side, and a server
        that runs another model; TrainingError a server that stays away.
        """
        if self._desks:
            raise MismatchError(
                "the rollout servers would be given other weights while they draw a batch, so its "
                "completions would be of both. Use grpo.overlap=0, and report this."
            )
        self._moving = False
        self._syncs += 1
        # from all ranks: nobody asks the servers any more
        self.version = f"{distributed.everyone(self._run)[0]}/{self._syncs}"
        self._change = change
        for _ in range(ATTEMPTS):
            failed, self.sums = distributed.everyone(self._try_to_sync())[0]
            if isinstance(failed, IadError):
                raise failed
            if not failed:
                return
        raise TrainingError(
            f"a rollout server went away {ATTEMPTS} times while it was given weights; the last "
            f"time: {failed}. Checkpoints are intact. See what it printed; {self.wanted.command}"
        )

    def weight_sums(self) -> dict[str, float]:
        """Sum of the elements of each parameter of each server, by vLLM's name and the server."""
        return {
            _of(server.url, name): value
            for server in self.servers
            for name, value in self._steadily(server, lambda s=server: rpc(s, "iad_sums")).items()
        }

    def processed(self, prompt: Prompt) -> tuple[list[int], list[Mapping[str, Any]]]:
        """What vLLM makes of a prompt: its expanded token ids, and each picture's tensors as they
        are handed to the vision tower; the same on all servers, or MismatchError."""
        found = [
            self._steadily(server, lambda s=server: self._processed(s, prompt))
            for server in self.servers
        ]
        for server, other in zip(self.servers[1:], found[1:], strict=True):
            if not _same(found[0], other):
                raise MismatchError(
                    f"{prompt.name or 'a prompt'}: {self.servers[0].url} and {server.url} make "
                    "different tokens or pictures of it. Start both with the same settings."
                )
        return found[0]

    def reset_encoder_cache(self) -> None:
        """Forget image features: they are kept by the picture, whatever the weights."""
        self._reset("/reset_encoder_cache")

    def reset_processor_cache(self) -> None:
        """Forget processed pictures."""
        self._reset("/reset_mm_cache")

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of prompts."""
        self._reset("/reset_prefix_cache")

    def let_weights_move(self) -> None:
        """Say that the trainer's weights change from now on: until the next `sync` a server that
        lost its weights cannot be given them again."""
        self._moving = True

    def close(self) -> None:
        """Give up what another thread is asking, which gets `Stopped`. The servers go on, and the
        next run gives them its own weights."""
        self._closed = True
        for desk in list(self._desks):
            desk.close()

    # --- requests ------------------------------------------------------------------------------

    def _room(self, group_size: int) -> int:
        """Requests under way at one server."""
        return min(MOST_THREADS, max(1, IN_FLIGHT * self.settings.max_num_seqs // group_size))

    def _request(self, prompt: Prompt, sampling: Sampling, seed: Seed) -> dict[str, Any]:
        check_length(prompt, sampling.max_tokens, self.settings.max_model_len)
        return request(self.backbone, prompt, sampling, seed)

    def _answer(self, server: Server, asked: Any, stop: threading.Event) -> Any:
        """A server's answer, drawn from the weights of this version."""
        while True:
            found = self._steadily(
                server, lambda: server.ask("/inference/v1/generate", asked), stop
            )
            if is_whole(found, self.version):
                return found
            with self._restoring:
                self.thrown += 1
            _say(f"{server.url}: an answer of other weights was thrown away ({self.thrown} so far)")

    def _next(self, desk: _Desk, waiting: dict[int, Prompt]) -> tuple[int, list[Completion]]:
        index, answer = desk.answer()
        prompt = waiting.pop(index)
        check_ids(prompt, answer["prompt_token_ids"])
        ordered = sorted(answer["choices"], key=lambda choice: choice["index"])
        return index, [self._completion(prompt, choice) for choice in ordered]

    def _completion(self, prompt: Prompt, choice: Mapping[str, Any]) -> Completion:
        tokens = tuple(choice["token_ids"])
        logprobs = tuple(token["logprob"] for token in choice["logprobs"]["content"])
        reasons = choice["finish_reason"], choice["stop_reason"]
        return as_completion(self.backbone, prompt, tokens, logprobs, *reasons)

    def _processed(self, server: Server, prompt: Prompt) -> tuple[list[int], list[Any]]:
        for path in ("/reset_encoder_cache", "/reset_mm_cache", "/reset_prefix_cache"):
            reset(server, path)  # or the tower would not be asked
        rpc(server, "iad_watch_pictures")
        try:
            asked = self._request(prompt, Sampling(1, 1, 0.0), ())
            answer = server.ask("/inference/v1/generate", asked)
        finally:
            pictures = rpc(server, "iad_seen_pictures")
        shown = [{key: tensor(value) for key, value in picture.items()} for picture in pictures]
        return answer["prompt_token_ids"], shown

    def _reset(self, path: str) -> None:
        for server in self.servers:
            self._steadily(server, lambda s=server: reset(s, path))

    def _steadily(
        self, server: Server, call: Callable[[], T], stop: threading.Event | None = None
    ) -> T:
        """The answer of a server that has these weights; it is waited for, and given them anew if
        it lost them."""

        def attempt() -> T:
            self._restore(server)
            return call()

        return server.patiently(attempt, stop)

    # --- weights -------------------------------------------------------------------------------

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in hub_weights(self.backbone.model):
            yield name, value if self._change is None else self._change(name, value)

    def _try_to_sync(self) -> tuple[IadError | str, dict[str, float]]:
        """What went wrong (a string: a server went away meanwhile), and the sums of what was sent.

        Every rank reads the weights to the end, also when sending fails: ZeRO-3 gathers them on
        all ranks together.
        """
        failed, sums = "", {}
        weights = self._weights()
        try:
            if distributed.is_main():
                for server in self.servers:
                    server.patiently(lambda server=server: self._check(server))
                sums = push(self.servers, weights, self.version)
        except Gone as why:
            failed = str(why)
        except IadError as error:
            failed = error
        for _ in weights:
            pass
        return failed, {_of(url, name): v for url, held in sums.items() for name, v in held.items()}

    def _restore(self, server: Server) -> None:
        """Give a server that was started again its weights; one thread at a time."""
        if self._held(server) == self.version:
            return
        with self._restoring:
            if self._held(server) == self.version:
                return
            self._check(server)
            self._check_not_shared(server)
            if self._moving:
                raise TrainingError(
                    f"{server.url} has lost its weights while it drew a batch, and they cannot be "
                    "sent again: the policy is being trained meanwhile (grpo.overlap=1). "
                    "Checkpoints are intact: go on with the same command and resume=auto."
                )
            _say(f"{server.url} has lost its weights: it is given them again before it answers.")
            check_whole(self.backbone.model.parameters())
            push([server], self._weights(), self.version)

    def _held(self, server: Server) -> str:
        """The version of a server's weights."""
        return server.ask("/weight_info")["weight_version"]

    def _check_not_shared(self, server: Server) -> None:
        """MismatchError if another run has given the server its weights meanwhile."""
        run, number, _ = self._held(server).partition("/")
        if number and run != self.version.partition("/")[0]:
            raise MismatchError(
                f"{server.url} was given other weights by another run while this one used it. Each "
                f"run needs servers of its own: {self.wanted.command} rollout.port=<another>, then "
                "go on with the same command, rollout.servers=[...] and resume=auto."
            )

    def _check(self, server: Server) -> None:
        """Errors unless a server is one that this run can use."""
        server.ask("/health")
        (model,) = server.ask("/v1/models")["data"]
        if model["id"] != self.wanted.name:
            raise MismatchError(
                f"{server.url} serves another model than this run's:\n  it serves  {model['id']}\n"
                f"  wanted is  {self.wanted.name}\nStart it with: {self.wanted.command}; or leave "
                "it out of rollout.servers."
            )
        wanted = self.settings.max_model_len
        if wanted is not None and model["max_model_len"] < wanted:
            raise ConfigError(
                f"{server.url} has room for {model['max_model_len']} tokens, and this run needs "
                f"{wanted}. Start the server with rollout.max_model_len={wanted}, or lower that of "
                "the run, which then refuses longer prompts."
            )


class _Desk:
    """The requests of one call: a queue, and threads that each take them to one server.

    Args:
        room: threads for each server, at most.
        work: (server, request, stop) to answer.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        room: int,
        work: Callable[[Server, Any, threading.Event], Any],
    ) -> None:
        self.servers, self.room, self._work = servers, room * len(servers), work
        self._todo: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Any] | Exception] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads = 0

    def put(self, index: int, asked: Any) -> None:
        """Have a request answered."""
        self._todo.put((index, asked))
        if self._threads < self.room:
            server = self.servers[self._threads % len(self.servers)]
            # daemons: Ctrl-C does not wait for a server that hangs
            threading.Thread(target=self._run, args=(server,), daemon=True).start()
            self._threads += 1

    def has_answer(self) -> bool:
        """Whether `answer` would return at once."""
        return not self._done.empty()

    def answer(self) -> tuple[int, Any]:
        """The next answer with its number. Raises what went wrong on the way."""
        found = self._done.get()
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """End the threads; what is under way is given up. Whoever waits for an answer, in another
        thread, gets `Stopped`."""
        self._stop.set()
        self._done.put(Stopped())
        for _ in range(self._threads):
            self._todo.put(None)
        for server in self.servers:
            server.hang_up()

    def _run(self, server: Server) -> None:
        while (item := self._todo.get()) is not None and not self._stop.is_set():
            index, asked = item
            try:
                self._done.put((index, self._work(server, asked, self._stop)))
            except Stopped:
                return
            except Exception as error:  # whatever it is: raised where the answer is waited for
                self._done.put(error)
                return


def request(backbone: Backbone, prompt: Prompt, sampling: Sampling, seed: Seed) -> dict[str, Any]:
    """The body of a request for a group: tokens in, tokens out."""
    return {
        "token_ids": backbone.tokenizer(prompt.text)["input_ids"],
        "content_parts": [{"type": "image_url", "url": png(image)} for image in prompt.images],
        "sampling_params": sampling_options(backbone, sampling, seed),
        "return_token_ids": True,
    }


def png(image: Image) -> str:
    """A picture as a data URL, bit for bit."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def is_whole(answer: Mapping[str, Any], version: str) -> bool:
    """Whether all tokens of an answer were drawn from one version of the weights, and no sample
    was given up because another rank gave the server its weights again."""
    choices = answer["choices"]
    spans = [span for choice in choices for span in choice["weight_versions"] or ()]
    aborted = any(choice["finish_reason"] == "abort" for choice in choices)
    return not aborted and {span["version"] for span in spans} == {version}


def tensor(value: Mapping[str, Any]) -> Tensor:
    """The inverse of `vllm_worker.as_text`."""
    data = bytearray(base64.b64decode(value["data"]))
    dtype = getattr(torch, value["dtype"])
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.view(value["shape"])


def _same(one: tuple[list[int], list[Any]], other: tuple[list[int], list[Any]]) -> bool:
    """Whether two servers make the same tokens and pictures of a prompt."""
    same_pictures = [a.keys() for a in one[1]] == [b.keys() for b in other[1]] and all(
        torch.equal(a[key], b[key]) for a, b in zip(one[1], other[1], strict=True) for key in a
    )
    return one[0] == other[0] and same_pictures


def check_whole(parameters: Iterable[nn.Parameter]) -> None:
    """TrainingError unless this rank holds all of every weight: it alone will read them, and ZeRO-3
    can put parts together on all ranks at once only."""
    for parameter in parameters:
        if getattr(getattr(parameter, "ds_status", None), "name", "AVAILABLE") != "AVAILABLE":
            raise TrainingError(
                "a rollout server was started again while this rank holds only a part of the "
                "weights (engine=zero3), so it cannot be given them. Checkpoints are intact: go on "
                "with the same command and resume=auto."
            )


def _of(url: str, name: str) -> str:
    return f"{name} on {url}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
