"""Fewer bits for a network's layers, in place, with an account of what was done.

`schemes` and `table` say what a study may ask for, and `backend` what a backend is, without torch;
`quantize` sorts a network's layers and has them converted by one (`simulated`, `torchao`,
`bitsandbytes`, or a plug-in's); `account` is what it came to. Begin with `backend`.
"""
