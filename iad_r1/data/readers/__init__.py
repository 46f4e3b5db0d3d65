"""One module for each data set or layout: its `Settings` and `read`.

The contract is `iad_r1.settings.data.ReaderModule`. A reader says what there is; what trains, what
tests and what stands beside a picture is decided in `iad_r1.data.mix`.
"""
