"""An outside model is asked what a model of ours is asked: the same words, pictures and judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from iad_r1.chat.client import Client, messages, p_yes
from iad_r1.chat.replies import Replies, Reply
from iad_r1.judge.votes import majority
from iad_r1.rollouts.prompting import conversation, scaled, shown
from iad_r1.settings.backbone import ApiBackbone
from iad_r1.settings.config import Config
from iad_r1.store.run_folder import RunFolder
from iad_r1.types import Completion, Prediction, Sample, StopReason

Judge = Callable[
    [Sample, Completion, str, int, float | None], Prediction
]  # of split, shots, P(yes)
UNKNOWN = -1  # the ids of its tokens; the service tells how many there are


class Outside:
    """A service to ask, and how its answers are graded.

    What it says is kept for all runs beside their folders, with what each has paid. That is in
    `asked` of summary.json, too.
    """

    def __init__(self, config: Config, folder: RunFolder, judge: Judge) -> None:
        assert isinstance(config.backbone, ApiBackbone)
        self.settings, self.folder, self.judge = config.evaluate, folder, judge
        service = config.backbone
        if self.settings.samples > 1 and service.temperature is not None:
            service = service.model_copy(update={"temperature": self.settings.temperature})
        kept = service.replies or folder.outputs / "replies.sqlite"
        self.client = Client(service, Replies(Path(kept), str(folder.path)), service.logprobs)

    def answers(
        self, samples: Sequence[Sample], split: str, shots: int
    ) -> Iterator[list[Prediction]]:
        """Predictions as the replies come, one at a time: the majority of several samples."""
        asked, draws = [partial(self._messages, s, shots) for s in samples], self.settings.samples
        try:
            for number, replies in self.client.ask(asked, self.settings.max_tokens, draws):
                drawn = [self._graded(samples[number], reply, split, shots) for reply in replies]
                yield drawn if draws == 1 else [majority(drawn)]
        finally:  # it is paid for, whatever ends the run
            self.folder.update_summary(asked=asdict(self.client.spent))

    def close(self) -> None:
        """Say what asking cost."""
        print(self.client.spent.in_words(), flush=True)
        self.client.replies.close()

    def _graded(self, sample: Sample, reply: Reply, split: str, shots: int) -> Prediction:
        share = p_yes(reply) if sample.question.options is None else None
        return self.judge(sample, completion(reply), split, shots, share)

    def _messages(self, sample: Sample, shots: int) -> list[dict[str, Any]]:
        words = conversation(self.settings.prompt, sample, shots)
        return messages(words, [scaled(each, self.settings) for each in shown(sample, shots)])


def completion(reply: Reply) -> Completion:
    """A reply as what a sampler of ours draws. A refusal answers nothing, whatever it says."""
    said = "" if reply.stop == "refused" else reply.text
    return Completion(said, (UNKNOWN,) * reply.tokens_out, (), StopReason(reply.stop))
