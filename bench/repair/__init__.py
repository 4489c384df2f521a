"""How much of a gain is repair, and how much is taste?"""
