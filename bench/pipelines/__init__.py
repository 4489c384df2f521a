"""Are cached images those of plain calls, for every class of diffusers?"""
