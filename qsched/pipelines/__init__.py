"""Models: what is known of them, how they are loaded, and images made with nothing computed twice.

`catalog` declares the models, `table` the `[model]`, `[sampling]` and `[execution]` tables;
`folders` and `signatures` read a folder and diffusers' source, `effective` says what both come to;
`sources` and `loading` bring a quantized pipeline onto its `devices`; `twins` are tiny stand-ins;
`generator` makes images and owns the caches; `image_sets` writes them to disk. Begin with
`generator`.
"""
