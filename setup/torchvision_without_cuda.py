"""Let torchvision be imported beside a CPU build of torch.

The package index serves one torchvision for Linux, and it is built for CUDA. Beside a CPU torch
its compiled operators cannot be loaded, which torchvision itself tolerates, but one of its Python
modules then attaches shape rules to operators that were never declared, and `import torchvision`
dies with `operator torchvision::nms does not exist`. The image transforms, which are all that the
processors of Qwen2-VL, Qwen2.5-VL and LLaVA-OneVision need, are plain Python and would work.

So this module declares those operators (their signatures, without an implementation: calling one
still fails) in the moment before torchvision needs them. It has to happen in every process, also
in those that libraries start by themselves, hence an import hook that a `.pth` file in
site-packages switches on when the interpreter starts. Starting costs one tiny import, which is
why the others here are inside functions; torch is touched only where torchvision is imported.

`make` runs `python setup/torchvision_without_cuda.py`, which installs the hook only where it is
needed: where torch has no CUDA and torchvision cannot be imported. A GPU environment is left as
it is, and the hook does nothing if a torch with CUDA is installed later.
"""

from __future__ import annotations

import sys

NAME = "torchvision_without_cuda"
TRIGGER = "torchvision._meta_registrations"  # imported right after the operators were looked for
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Imports torchvision as if no hook were there.
PROBE = f"""
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != {NAME!r}]
import torchvision
"""
_declared: list[object] = []  # torch forgets a declaration together with its library object


class DeclareOperators:
    """A finder that finds nothing: it acts when torchvision's shape rules are about to load."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        """Declare the operators if `fullname` is the module that needs them; None otherwise too,
        so the import goes on to the usual finders."""
        if fullname == TRIGGER and not _declared and operators_are_missing():
            declare_operators()


def operators_are_missing() -> bool:
    """Whether torch is a build without CUDA and torchvision could not load its operators."""
    import torch
    from torchvision import extension

    return torch.version.cuda is None and not extension._has_ops()


def declare_operators() -> None:
    """Declare to torch the operators that torchvision's Python code refers to."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)


def switch_on() -> None:
    """Put the hook in front of this interpreter's finders, once."""
    if not any(isinstance(finder, DeclareOperators) for finder in sys.meta_path):
        # A finder is any object with `find_spec`; the base class would cost an import at start.
        sys.meta_path.insert(0, DeclareOperators())  # pyright: ignore[reportArgumentType]


def install() -> None:
    """Put this module and its `.pth` switch into site-packages if this environment needs them,
    and take them out if it does not."""
    import shutil
    import subprocess
    import sysconfig
    from pathlib import Path

    packages = Path(sysconfig.get_paths()["purelib"])
    module, switch = packages / f"{NAME}.py", packages / f"{NAME}.pth"
    bare = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if bare.returncode == 0:
        module.unlink(missing_ok=True)
        switch.unlink(missing_ok=True)
        return
    if "operator torchvision::" not in bare.stderr:
        sys.exit(f"torchvision cannot be imported, and not for the known reason:\n{bare.stderr}")
    shutil.copyfile(__file__, module)
    switch.write_text(f"import {NAME}; {NAME}.switch_on()\n", encoding="utf-8")
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True)
    print("torch has no CUDA: installed the hook that lets torchvision be imported beside it")


if __name__ == "__main__":
    install()
