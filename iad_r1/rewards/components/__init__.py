"""Reward components, one file each: `score(case, **settings) -> float | None`.

None says that the part does not apply to this image. To add one, write a file here and a line in a
set of `conf/rewards`.
"""
