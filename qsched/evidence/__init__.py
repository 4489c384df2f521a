"""What counts as evidence for a better schedule: looks, distances to real images, their limits.

`table` is the `[validation]` table; `appearance` measures how an image set looks and `guards` holds
it against limits; `distances` are FID's and KID's; `real_images` the ones that they compare with;
`impression` says whether a few look like images at all. Begin with `table`.
"""
