"""A study's best candidates on prompts, seeds and metrics that the search never saw.

`validation` is the whole of it: `controls` are the companion searches, `image_sets` makes and
measures the held-out images, `verdict` says what it takes to call a schedule better, and `outcome`
is what all of that comes to, stored and read by everything after. `preview` draws a few images
before any search. Begin with `outcome`.
"""
