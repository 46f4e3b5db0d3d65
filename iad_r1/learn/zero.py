"""`engine=zero2`, `engine=zero3`: DeepSpeed keeps gradients and optimiser states, and in stage 3
the weights, in parts on the ranks.

Stage 3 gathers the weights of one layer at a time, on all ranks together, so every rank must run
the same layers in the same order. The training pass does: `backward` runs it on parts. What differs
from rank to rank (completions of other lengths, pictures seen before) runs inside `whole`, where
each rank holds all weights of one model: rollouts, the reference, features of a frozen tower.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import ops
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from iad_r1.backbones.packing import unwrap
from iad_r1.errors import TrainingError
from iad_r1.learn import optim
from iad_r1.learn.learner import STATE, Learner, Part
from iad_r1.processes import distributed
from iad_r1.settings.engine import ZeroEngine
from iad_r1.settings.training import Optimiser

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")  # what is kept of every parameter, float32
SHARD = 4 * 2**30  # bytes of states in one file, and the most that rank 0 collects in memory
HELD = "held"  # stands among the layers that use a parameter, so that none of them gives it back

# DeepSpeed's exchanges call a function of torch that has a new name.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
# A kernel that DeepSpeed compiles for minutes before its first exchange on a CPU, and that only
# inference uses. Gloo does without.
ops.__compatible_ops__["deepspeed_shm_comm"] = False


class ZeroLearner(Learner):
    """The same steps as `Learner`, with DeepSpeed's bookkeeping.

    The losses of the loops are divided by counts over all ranks, and DeepSpeed averages gradients
    over ranks, so each loss is multiplied by their number. Moments, and the weights they update,
    are float32 whatever the model's precision. A parameter that no picture or word reaches has a
    gradient of zero here, not none: weight decay acts on it.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Optimiser,
        steps: int,
        engine: ZeroEngine,
        *,
        lr_scale: float = 1.0,
        vision_lr_scale: float = 1.0,
    ) -> None:
        super().__init__(
            model,
            settings,
            steps,
            lr_scale=lr_scale,
            vision_lr_scale=vision_lr_scale,
            offloaded=engine.offload == "cpu",
        )
        self.parted = engine.name == "zero3"  # the weights too
        self.config = deepspeed_config(engine, settings.max_grad_norm)
        self.taken = 0  # optimiser steps
        self.waiting = 0  # backward passes since the last of them
        self.engine: Any = deepspeed.initialize(
            model=_Root(model), optimizer=self.adam, config=self.config
        )[0]
        self.held: list[Any] = []  # parameters, with what DeepSpeed adds to them
        if self.parted:
            self.held = read_directly(model)
            self._free_head()

    def begin_masters(self) -> list[tuple[nn.Parameter, Tensor]]:
        """None: DeepSpeed keeps float32 copies itself."""
        return []

    def accumulate(self, parts: Sequence[Part], where: str, idle: Part | None = None) -> float:
        """Add the gradient of this rank's part of the loss (see `Learner.accumulate`)."""
        most = max(distributed.everyone(len(parts)))
        mine = [*parts, *[_weightless(idle, where)] * (most - len(parts))]
        return sum(self._pass(part, where, last=i + 1 == most) for i, part in enumerate(mine))

    def _pass(self, part: Part, where: str, last: bool) -> float:
        self._hold()
        self.engine.set_gradient_accumulation_boundary(last)
        loss = self.engine(part)
        optim.check_finite(loss, where)
        self.engine.backward(loss * distributed.world())
        self.waiting += 1
        return loss.item()

    def update(self, where: str) -> dict[str, float]:
        """Take the step, if any rank had a loss (see `Learner.update`)."""
        rate, norm = optim.lr(self.adam), 0.0
        if self.waiting:
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm())
            if not self.engine.was_step_applied():
                raise optim.not_finite(norm, where)
            self.taken += 1
        self.schedule.step()
        self.waiting = 0
        return {"grad_norm": norm, "learning_rate": rate}

    # --- weights in parts and whole ----------------------------------------------------------

    @contextmanager
    def whole(self, *modules: nn.Module, change: bool = False) -> Iterator[None]:
        """See `Learner.whole`. A pass through a model that is whole exchanges nothing."""
        modules = modules or (self.model,)
        mine = self.model in modules
        with self._gathered(modules, change), self._without_hooks() if mine else nullcontext():
            yield
        if mine and change:
            self._take_over_weights()

    def store(self, module: nn.Module) -> None:
        """Keep a module that never learns as the weights are kept: in parts, if they are."""
        if self.parted:
            deepspeed.zero.Init(module=module, config_dict_or_path=self.config)

    def _gathered(self, modules: Sequence[nn.Module], change: bool) -> Any:
        if not self.parted:
            return nullcontext()
        parameters = [parameter for module in modules for parameter in module.parameters()]
        changer = 0 if change else None  # all ranks make the same change; rank 0's is kept
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=changer)

    @contextmanager
    def _without_hooks(self) -> Iterator[None]:
        """Inside, the layers neither gather nor give back weights."""
        if not self.parted:
            yield
            return
        offload = self.engine.optimizer.parameter_offload
        parameters: list[Any] = list(self.model.parameters())
        for parameter in parameters:
            parameter.ds_active_sub_modules.clear()
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        yield
        offload._register_deepspeed_module(offload.module)
        self._free_head()

    def _free_head(self) -> None:
        """The output layer runs once per block of tokens, more often on one rank than on another,
        so it may not take part in the common order; `_hold` provides its weight."""
        head = output_layer(self.model)
        if head is not None:
            head._forward_hooks.clear()
            head._forward_pre_hooks.clear()

    def _hold(self) -> None:
        """Gather what is read outside its layer's own pass, until the optimiser's step."""
        if not self.held:
            return
        missing = [p for p in self.held if p.ds_status is ZeroParamStatus.NOT_AVAILABLE]
        if missing:
            missing[0].all_gather(param_list=missing)
        for parameter in self.held:
            parameter.ds_active_sub_modules.add(HELD)

    def _take_over_weights(self) -> None:
        """Let the optimiser go on from the weights of the model, which were changed."""
        for _, parameter in self._learning():
            gathered = deepspeed.zero.GatheredParameters([parameter], enabled=self.parted)
            with gathered:
                value = parameter.detach().float().clone()
            safe_set_full_fp32_param(parameter, value)

    # --- checkpoints -------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write optimiser and schedule into `folder`, one whole tensor after the other, so that
        any number of ranks can go on from it; every rank calls it."""
        shards = _Shards(folder)
        for name, parameter in self._learning():
            shards.add(f"{WEIGHT}/{name}", safe_get_full_fp32_param(parameter))
            for key in MOMENTS if self.taken else ():
                shards.add(f"{key}/{name}", safe_get_full_optimizer_state(parameter, key))
        shards.close()
        if distributed.is_main():
            state = {"schedule": self.schedule.state_dict(), "taken": self.taken}
            torch.save(state, folder / STATE)

    def load(self, folder: Path) -> None:
        """Take optimiser and schedule up where `save` left them, on any number of ranks."""
        state = torch.load(folder / STATE, weights_only=True)
        self.schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self.adam.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.taken = state["taken"]
        self._begin_moments()
        found = _read_shards(folder)
        for name, parameter in self._learning():
            safe_set_full_fp32_param(parameter, found(f"{WEIGHT}/{name}"))
            for key in MOMENTS if self.taken else ():
                safe_set_full_optimizer_state(parameter, found(f"{key}/{name}"), key)

    def _begin_moments(self) -> None:
        """What AdamW creates at its first step, for `load` to fill."""
        if not self.taken:
            return
        zero = self.engine.optimizer
        name = "fp32_partitioned_groups_flat" if self.parted else "single_partition_of_fp32_groups"
        for part in getattr(zero, name):
            moments = {key: torch.zeros_like(part) for key in MOMENTS}
            # the fused kernel counts where it computes
            device = part.device if self.adam.defaults["fused"] else torch.device("cpu")
            step = torch.tensor(float(self.taken), device=device)
            self.adam.state[part] = {"step": step, **moments}
        if not self.parted:
            zero._lazy_init_hp_params_optimizer_state()

    def _learning(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        """Make the model an ordinary one again, whole on every rank."""
        found: dict[int, nn.Parameter] = {}
        for parameter in self.model.parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.parted):
                copy = parameter.detach().clone()
            found[id(parameter)] = nn.Parameter(copy, requires_grad=parameter.requires_grad)
        self.engine.destroy()
        for module in self.model.modules():
            names = {n: p if p is None else found[id(p)] for n, p in module._parameters.items()}
            _forget_deepspeed(module)
            module._parameters = names
        self.engine, self.held = None, []


def _weightless(idle: Part | None, where: str) -> Part:
    """The same computation, without weight in the loss."""

    def part() -> Tensor:
        if idle is None:
            raise TrainingError(f"{where}: ranks differ in their work, and this loss forbids it")
        return 0.0 * idle()

    return part


class _Root(nn.Module):
    """What DeepSpeed sees as the model: its pass is any computation with the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


def deepspeed_config(engine: ZeroEngine, max_grad_norm: float) -> dict[str, Any]:
    """The settings of DeepSpeed; those it would choose well by itself are left to it."""
    zero: dict[str, Any] = {"stage": 3 if engine.name == "zero3" else 2}
    if engine.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
        if engine.name == "zero3":
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # the loops count samples themselves
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW, as everywhere else here
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": engine.precision == "bfloat16", "check_grad_overflow": True},
        "steps_per_print": None,
    }


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that turns states into logits, if the model has one."""
    find = getattr(unwrap(model), "get_output_embeddings", None)
    return None if find is None else find()


def read_directly(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that are used outside the pass of the layer they belong to: the output layer's,
    and those of modules that are made of others (`image_newline` of LLaVA)."""
    owners = [m for m in model.modules() if next(m.children(), None) is not None]
    head = output_layer(model)
    owners += [] if head is None else [head]
    found = [p for owner in owners for p in owner.parameters(recurse=False)]
    return list(dict.fromkeys(found))


def _forget_deepspeed(module: nn.Module) -> None:
    """Remove what DeepSpeed left in a module: another engine would find it and misread it."""
    left = ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt")
    for name in [*module.__dict__]:
        if name.startswith("ds_") or name in (*left, "_external_params", "_original_parameters"):
            delattr(module, name)


class _Shards:
    """Tensors written to numbered files in `folder`, on rank 0."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tensors, self.size = folder, dict[str, Tensor](), 0
        self.index: dict[str, str] = {}

    def add(self, name: str, value: Tensor | None) -> None:
        """Keep a tensor; the file is written when it is large enough."""
        if not distributed.is_main():
            return
        assert value is not None, name  # DeepSpeed: the parameter does not learn
        self.tensors[name] = value.detach().cpu().clone()
        self.size += value.nbytes
        if self.size >= SHARD:
            self._write()

    def close(self) -> None:
        if distributed.is_main():
            self._write()
            text = json.dumps(self.index, indent=0)
            (self.folder / INDEX).write_text(text, encoding="utf-8")

    def _write(self) -> None:
        if not self.tensors:
            return
        file = f"optimiser-{len(set(self.index.values())):05d}.safetensors"
        save_file(self.tensors, self.folder / file)
        self.index |= dict.fromkeys(self.tensors, file)
        self.tensors, self.size = {}, 0


INDEX = "optimiser.index.json"


def _read_shards(folder: Path) -> Callable[[str], Tensor]:
    """A function from a name to the tensor that `_Shards` wrote under it."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))

    def find(name: str) -> Tensor:
        with safe_open(folder / index[name], framework="pt") as file:
            return file.get_tensor(name)

    return find
