"""Fewer bits for a network's layers, in place, with an account of what was done.

`schemes` and `table` say what a study may ask for, without torch; `quantize` sorts a network's
layers and converts them by a backend (`simulated`, `torchao`, `bitsandbytes`, or a plug-in's);
`account` is what it came to. Begin with `quantize`.
"""
